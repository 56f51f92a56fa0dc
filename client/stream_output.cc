#include "client/stream_output.h"

#include <algorithm>
#include <cstdio>

#include "google/protobuf/util/json_util.h"

namespace pergola {

void StreamOutput::Write(const v1::GenerateResponse& message) {
  if (json_) {
    WriteJson(message);
  } else {
    WriteText(blocks_.Take(message));
  }
  if (message.has_finish()) Count(message.finish().usage());
  if (message.continuity() == v1::CONTINUITY_SEMANTIC) {
    std::fprintf(stderr,
                 "pergola: the stream continues on other numerics: a valid continuation, perhaps "
                 "not the same words\n");
  }
}

void StreamOutput::End() {
  if (!json_) WriteText(blocks_.Rest());
}

void StreamOutput::PrintStats() const {
  const double rest_s = (total_ms_ - first_token_ms_) / 1e3;
  const uint64_t rest = new_tokens_ > ended_ ? new_tokens_ - ended_ : 0;
  const std::string sequences =
      ended_ > 1 ? " in " + std::to_string(ended_) + " sequences" : std::string();
  std::fprintf(stderr,
               "%u prompt tokens, %llu new tokens%s, first after %.0f ms, then %.1f tokens/s\n",
               prompt_tokens_, static_cast<unsigned long long>(new_tokens_), sequences.c_str(),
               first_token_ms_, rest_s > 0 ? static_cast<double>(rest) / rest_s : 0.0);
}

void StreamOutput::WriteText(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void StreamOutput::WriteJson(const v1::GenerateResponse& message) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  std::string line;
  if (google::protobuf::util::MessageToJsonString(message, &line, print).ok()) {
    WriteText(line + "\n");
  }
}

void StreamOutput::Count(const v1::Usage& usage) {
  first_token_ms_ =
      ended_ == 0 ? usage.first_token_ms() : std::min(first_token_ms_, usage.first_token_ms());
  total_ms_ = std::max(total_ms_, usage.total_ms());
  prompt_tokens_ = usage.prompt_tokens();
  new_tokens_ += usage.completion_tokens();
  ++ended_;
}

}  // namespace pergola
