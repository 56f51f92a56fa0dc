#include "coordinator/doors/request_builder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

// A numerics id is a SHA-256 in hex today; twice that leaves room and bounds what a client can make
// us keep.
constexpr size_t kMaxNumericsIdBytes = 128;

absl::Span<const int32_t> Ids(const v1::TokenIds& tokens) {
  return {tokens.ids().data(), static_cast<size_t>(tokens.ids_size())};
}

class Builder {
 public:
  Builder(const v1::GenerateRequest& request, const BuildInputs& inputs, SequenceRequest* sequence)
      : request_(request),
        inputs_(inputs),
        sequence_(*sequence),
        violations_(inputs.field_prefix) {}

  google::rpc::Status Build() {
    google::rpc::Status named = CheckModelName(request_.model(), *inputs_.served.parts);
    if (named.code() != 0) return named;
    RequestId();
    Sampling();
    Stops();
    const bool prompt_known = Prompt();
    Length(prompt_known);
    if (request_.has_resume() && violations_.empty()) ReceivedText();
    if (!violations_.empty()) return violations_.ToStatus();
    sequence_.text = MakeTextStream(*inputs_.served.tokenizer, StopStrings());
    sequence_.deadline = inputs_.deadline;
    return {};
  }

 private:
  void RequestId() {
    const std::string& id = request_.request_id();
    if (id.size() > kMaxRequestIdBytes) {
      violations_.Add("request_id", absl::StrCat(id.size(), " bytes exceed the limit of ",
                                                 kMaxRequestIdBytes, " bytes"));
    }
    sequence_.request_id = id.empty() ? inputs_.request_id : id;
  }

  // Hugging Face's meaning: the model's own parameters count only where it says do_sample; sampling
  // without a stated temperature is at 1.
  void Sampling() {
    const v1::SamplingParameters& asked = request_.sampling();
    const GenerationDefaults none;
    const GenerationDefaults& stated = inputs_.served.parts->defaults;
    const bool samples = stated.do_sample.value_or(false);
    const GenerationDefaults& defaults = samples ? stated : none;
    const uint64_t vocabulary = inputs_.limits.vocabulary_size;

    float temperature = defaults.temperature.value_or(samples ? 1.0F : 0.0F);
    if (asked.has_temperature()) {
      temperature = asked.temperature();
      if (!(temperature >= 0 && temperature <= kMaxTemperature)) {
        violations_.Add("sampling.temperature",
                        absl::StrCat(temperature, " is not in [0, ", kMaxTemperature, "]"));
      }
    }
    uint64_t top_k = std::min<uint64_t>(defaults.top_k.value_or(0), vocabulary);
    if (asked.has_top_k()) {
      top_k = asked.top_k();
      if (top_k > vocabulary) {
        violations_.Add("sampling.top_k",
                        absl::StrCat(top_k, " exceeds the vocabulary size of ", vocabulary));
      }
    }
    float top_p = defaults.top_p.value_or(1.0F);
    if (asked.has_top_p()) {
      top_p = asked.top_p();
      if (!(top_p > 0 && top_p <= 1)) {
        violations_.Add("sampling.top_p", absl::StrCat(top_p, " is not in (0, 1]"));
      }
    }
    v1::Sampling& sampling = sequence_.sampling;
    sampling.set_temperature(temperature > 0 ? temperature : 0.0F);  // -0 becomes 0
    sampling.set_top_k(static_cast<uint32_t>(top_k));
    sampling.set_top_p(top_p);
    Seed(asked, temperature > 0);
  }

  void Seed(const v1::SamplingParameters& asked, bool samples) {
    if (request_.has_resume()) {
      sequence_.seed = request_.resume().seed();
      if (asked.has_seed() && asked.seed() != sequence_.seed) {
        violations_.Add("resume.seed", absl::StrCat(sequence_.seed, " differs from sampling.seed, ",
                                                    asked.seed()));
      }
    } else if (asked.has_seed()) {
      sequence_.seed = asked.seed();
    } else if (samples && inputs_.draw_seed) {
      sequence_.seed = inputs_.draw_seed();
    }
  }

  void Stops() {
    const v1::StopConditions& stop = request_.stop();
    if (static_cast<uint32_t>(stop.strings_size()) > kMaxStopStrings) {
      violations_.Add(
          "stop.strings",
          absl::StrCat(stop.strings_size(), " strings exceed the limit of ", kMaxStopStrings));
    }
    for (int i = 0; i < std::min<int>(stop.strings_size(), kMaxStopStrings); ++i) {
      StopString(stop.strings(i), absl::StrCat("stop.strings[", i, "]"));
    }
    if (static_cast<uint32_t>(stop.ids_size()) > kMaxStopIds) {
      violations_.Add("stop.ids",
                      absl::StrCat(stop.ids_size(), " ids exceed the limit of ", kMaxStopIds));
    } else {
      CheckIds({stop.ids().data(), static_cast<size_t>(stop.ids_size())},
               inputs_.limits.vocabulary_size, "stop.ids", &violations_);
      sequence_.stop_ids.assign(stop.ids().begin(), stop.ids().end());
    }
    if (!stop.ignore_eos()) sequence_.eos_ids = inputs_.served.parts->defaults.eos_ids;
  }

  void StopString(const std::string& text, const std::string& field) {
    if (text.empty() || text.size() > kMaxStopStringBytes) {
      violations_.Add(field, absl::StrCat("has ", text.size(), " bytes; a stop string has 1 to ",
                                          kMaxStopStringBytes));
    }
    const int64_t invalid = FindInvalidUtf8(text);
    if (invalid >= 0) violations_.Add(field, absl::StrCat("invalid UTF-8 at byte ", invalid));
  }

  std::vector<std::string> StopStrings() const {
    return {request_.stop().strings().begin(), request_.stop().strings().end()};
  }

  // Returns whether prompt_ids hold a usable prompt.
  bool Prompt() {
    if (request_.has_resume()) return ResumedPrompt();
    switch (request_.prompt_case()) {
      case v1::GenerateRequest::kText:
        return PromptText();
      case v1::GenerateRequest::kTokens:
        return PromptIds(request_.tokens(), "tokens.ids");
      case v1::GenerateRequest::PROMPT_NOT_SET:
        break;
    }
    violations_.Add("prompt", "unset; set text or tokens");
    return false;
  }

  bool PromptText() {
    if (!CheckText(request_.text(), "text", &violations_)) return false;
    auto ids = inputs_.served.tokenizer->Encode(request_.text(), /*add_special_tokens=*/true);
    if (!ids.ok()) {
      violations_.Add("text", std::string(ToStd(ids.status().message())));
      return false;
    }
    if (ids->empty()) {
      violations_.Add("text", "yields no token; at least 1 is needed");
      return false;
    }
    // A tokenizer may know more ids than the LM head has rows.
    if (!CheckIds(*ids, inputs_.limits.vocabulary_size, "text", &violations_)) return false;
    sequence_.prompt_ids = *std::move(ids);
    return true;
  }

  bool PromptIds(const v1::TokenIds& tokens, std::string_view field) {
    if (tokens.ids().empty()) {
      violations_.Add(field, "empty; at least 1 id is needed");
      return false;
    }
    if (!CheckIds(Ids(tokens), inputs_.limits.vocabulary_size, field, &violations_)) return false;
    sequence_.prompt_ids.assign(tokens.ids().begin(), tokens.ids().end());
    return true;
  }

  bool ResumedPrompt() {
    const v1::Resume& resume = request_.resume();
    if (request_.prompt_case() != v1::GenerateRequest::PROMPT_NOT_SET) {
      violations_.Add("prompt", "set together with resume; resume.prompt takes its place");
    }
    if (resume.numerics_id().size() > kMaxNumericsIdBytes) {
      violations_.Add("resume.numerics_id",
                      absl::StrCat(resume.numerics_id().size(), " bytes exceed the limit of ",
                                   kMaxNumericsIdBytes, " bytes"));
    } else {
      sequence_.resume_numerics_id = resume.numerics_id();
    }
    if (CheckIds(Ids(resume.received()), inputs_.limits.vocabulary_size, "resume.received.ids",
                 &violations_)) {
      const auto& ids = resume.received().ids();
      sequence_.received_ids.assign(ids.begin(), ids.end());
    }
    return PromptIds(resume.prompt(), "resume.prompt.ids");
  }

  std::string_view PromptField() const {
    if (request_.has_resume()) return "resume.prompt.ids";
    return request_.has_text() ? "text" : "tokens.ids";
  }

  // Prompt and new tokens together fit the context and the KV cache, or the request is refused
  // (DESIGN I5).
  void Length(bool prompt_known) {
    const RequestLimits& limits = inputs_.limits;
    const v1::StopConditions& stop = request_.stop();
    const uint64_t asked = stop.max_new_tokens();
    if (stop.has_max_new_tokens() && (asked == 0 || asked > limits.context_length)) {
      violations_.Add(
          "stop.max_new_tokens",
          absl::StrCat(asked, " is not in 1 to the context length of ", limits.context_length));
      return;
    }
    if (!prompt_known) return;
    const uint64_t prompt = sequence_.prompt_ids.size();
    const bool kv_bound = limits.kv_tokens > 0 && limits.kv_tokens < limits.context_length;
    const uint64_t room = kv_bound ? limits.kv_tokens : limits.context_length;
    const std::string limit =
        absl::StrCat(kv_bound ? "the KV cache of " : "the context length of ", room, " tokens");
    if (prompt >= room) {
      violations_.Add(PromptField(), absl::StrCat("the prompt's ", prompt,
                                                  " tokens and 1 new token exceed ", limit));
      return;
    }
    if (asked > room - prompt) {
      violations_.Add("stop.max_new_tokens", absl::StrCat("the prompt's ", prompt, " tokens and ",
                                                          asked, " new tokens exceed ", limit,
                                                          "; at most ", room - prompt, " fit"));
      return;
    }
    const uint64_t fallback = std::min<uint64_t>(kDefaultMaxNewTokens, room - prompt);
    sequence_.max_new_tokens = static_cast<uint32_t>(stop.has_max_new_tokens() ? asked : fallback);
    const auto received = static_cast<uint64_t>(request_.resume().received().ids_size());
    if (received > sequence_.max_new_tokens) {
      violations_.Add("resume.received.ids",
                      absl::StrCat(received, " received tokens exceed max_new_tokens, ",
                                   sequence_.max_new_tokens));
    }
  }

  // The received ids decide how much text can have been received. What is flushed at the end comes
  // with `finish`, and who has that resumes nothing.
  void ReceivedText() {
    std::string text;
    const auto stream = MakeTextStream(*inputs_.served.tokenizer, StopStrings());
    for (const int32_t id : sequence_.received_ids) {
      const TextStream::Delta delta = stream->Push(id);
      text += delta.text;
      if (delta.stopped) break;
    }
    const uint64_t bytes = request_.resume().text_bytes();
    if (bytes > text.size()) {
      violations_.Add("resume.text_bytes",
                      absl::StrCat(bytes, " exceed the ", text.size(),
                                   " bytes of text that the received ids make"));
    } else if (bytes < text.size() && (static_cast<unsigned char>(text[bytes]) & 0xC0) == 0x80) {
      violations_.Add("resume.text_bytes", absl::StrCat(bytes, " splits a UTF-8 character"));
    }
    sequence_.received_text_bytes = bytes;
  }

  const v1::GenerateRequest& request_;
  const BuildInputs& inputs_;
  SequenceRequest& sequence_;
  Violations violations_;
};

}  // namespace

RequestLimits LimitsFor(const TextParts& parts, const ServingLimits& serving) {
  const auto stated = [](int64_t value) {
    return static_cast<uint64_t>(std::max<int64_t>(value, 0));
  };
  RequestLimits limits;
  limits.context_length =
      serving.context_length > 0 ? serving.context_length : stated(parts.context_length);
  limits.vocabulary_size =
      serving.vocabulary_size > 0 ? serving.vocabulary_size : stated(parts.vocabulary_size);
  limits.kv_tokens = serving.kv_tokens;
  return limits;
}

google::rpc::Status BuildRequest(const v1::GenerateRequest& request, const BuildInputs& inputs,
                                 SequenceRequest* sequence) {
  return Builder(request, inputs, sequence).Build();
}

google::rpc::Status CheckModelName(const std::string& name, const TextParts& parts) {
  if (name.empty() || name == parts.model_name) return {};
  return ToRpcStatus(
      absl::NotFoundError(absl::StrCat("model ", Shown(name), " is not served; served is ",
                                       Shown(parts.model_name))),
      "MODEL_NOT_FOUND");
}

bool CheckText(const std::string& text, std::string_view field, Violations* violations) {
  if (text.size() > kMaxTextBytes) {
    violations->Add(
        field, absl::StrCat(text.size(), " bytes exceed the limit of ", kMaxTextBytes, " bytes"));
    return false;
  }
  const int64_t invalid = FindInvalidUtf8(text);
  if (invalid >= 0) violations->Add(field, absl::StrCat("invalid UTF-8 at byte ", invalid));
  return invalid < 0;
}

bool CheckIds(absl::Span<const int32_t> ids, uint64_t vocabulary_size, std::string_view field,
              Violations* violations) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < vocabulary_size) continue;
    violations->Add(
        field, absl::StrCat("id ", ids[i], " at [", i, "] is not in 0 to the vocabulary size of ",
                            vocabulary_size, " (exclusive)"));
    return false;
  }
  return true;
}

}  // namespace pergola
