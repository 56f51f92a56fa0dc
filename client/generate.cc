// `pergola generate`: standard output holds the new text and nothing else; everything for people
// goes to standard error.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/channel.h"
#include "client/commands.h"
#include "client/connect_flags.h"
#include "client/error_text.h"
#include "client/generate_flags.h"
#include "client/resumable_stream.h"
#include "client/text_blocks.h"
#include "client/utf8.h"
#include "google/protobuf/util/json_util.h"

namespace pergola {
namespace {

struct GenerateOptions {
  std::string prompt;
  PublicTarget target;
  GenerateFlags flags;
  bool stats = false;
  std::optional<uint32_t> resume_timeout_ms;
};

absl::StatusOr<std::string> ReadPrompt(const std::string& argument) {
  std::string prompt = argument;
  if (argument == "-") {
    prompt.clear();
    char buffer[65536];
    size_t n = 0;
    while (prompt.size() <= kMaxTextBytes &&
           (n = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0) {
      prompt.append(buffer, n);
    }
  }
  if (prompt.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt is longer than the limit of ", kMaxTextBytes, " bytes"));
  }
  const size_t invalid = FirstInvalidUtf8(prompt);
  if (invalid < prompt.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt is not valid UTF-8 at byte ", invalid));
  }
  return prompt;
}

// What has arrived, as it is shown, and counted for --stats.
class Output {
 public:
  explicit Output(const GenerateFlags& flags) : json_(flags.json), blocks_(flags.sequences()) {}

  void Write(const v1::GenerateResponse& message) {
    if (json_) {
      WriteJson(message);
    } else {
      Write(blocks_.Take(message));
    }
    if (message.has_finish()) Count(message.finish().usage());
    if (message.continuity() == v1::CONTINUITY_SEMANTIC) {
      std::fprintf(stderr,
                   "pergola: the stream continues on other numerics: a valid continuation, perhaps "
                   "not the same words\n");
    }
  }

  // The stream has ended, perhaps early.
  void End() {
    if (!json_) Write(blocks_.Rest());
  }

  // Tokens per second after the first one: what a reader sees.
  void PrintStats() const {
    const double rest_s = (total_ms_ - first_token_ms_) / 1e3;
    const uint64_t rest = new_tokens_ > ended_ ? new_tokens_ - ended_ : 0;
    const std::string sequences =
        ended_ > 1 ? " in " + std::to_string(ended_) + " sequences" : std::string();
    std::fprintf(stderr,
                 "%u prompt tokens, %llu new tokens%s, first after %.0f ms, then %.1f tokens/s\n",
                 prompt_tokens_, static_cast<unsigned long long>(new_tokens_), sequences.c_str(),
                 first_token_ms_, rest_s > 0 ? static_cast<double>(rest) / rest_s : 0.0);
  }

 private:
  static void Write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  static void WriteJson(const v1::GenerateResponse& message) {
    google::protobuf::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    std::string line;
    if (google::protobuf::util::MessageToJsonString(message, &line, print).ok()) {
      Write(line + "\n");
    }
  }

  void Count(const v1::Usage& usage) {
    first_token_ms_ =
        ended_ == 0 ? usage.first_token_ms() : std::min(first_token_ms_, usage.first_token_ms());
    total_ms_ = std::max(total_ms_, usage.total_ms());
    prompt_tokens_ = usage.prompt_tokens();
    new_tokens_ += usage.completion_tokens();
    ++ended_;
  }

  const bool json_;
  TextBlocks blocks_;
  uint32_t ended_ = 0;  // sequences
  uint32_t prompt_tokens_ = 0;
  uint64_t new_tokens_ = 0;
  double first_token_ms_ = 0;
  double total_ms_ = 0;
};

ResumeOptions MakeResumeOptions(const GenerateOptions& options, Output& output) {
  ResumeOptions resume;
  if (options.resume_timeout_ms) {
    resume.resume_timeout = std::chrono::milliseconds(*options.resume_timeout_ms);
    resume.connect_timeout = resume.resume_timeout;
  }
  resume.tenant = options.flags.tenant;
  resume.on_message = [&output](const v1::GenerateResponse& message) { output.Write(message); };
  resume.on_interruption = [](const grpc::Status& status) {
    std::fprintf(stderr, "pergola: interrupted (%s), resuming\n", status.error_message().c_str());
  };
  return resume;
}

int Generate(const GenerateOptions& options, const Context& context) {
  const absl::StatusOr<std::string> prompt = ReadPrompt(options.prompt);
  if (!prompt.ok()) return Fail(prompt.status(), kExitUsage);
  const absl::StatusOr<v1::GenerateRequest> request = MakeGenerateRequest(options.flags, *prompt);
  if (!request.ok()) return Fail(request.status(), kExitUsage);
  const absl::StatusOr<std::string> address = PublicAddress(options.target);
  if (!address.ok()) return Fail(address.status(), kExitUsage);
  Output output(options.flags);
  const grpc::Status status =
      RunResumableStream(Dial(*address), *request, MakeResumeOptions(options, output));
  output.End();
  // The terminal's next line starts on its own; the newline is not part of the text.
  if (context.stdout_is_terminal) std::fputc('\n', stderr);
  if (std::ferror(stdout) != 0) {
    return Fail(absl::DataLossError("cannot write to standard output"), 1);
  }
  if (status.ok()) {
    if (options.stats) output.PrintStats();
    return kExitOk;
  }
  std::fprintf(stderr, "pergola: %s: %s\n", address->c_str(), ErrorText(status).c_str());
  return status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ? kExitUsage : 1;
}

}  // namespace

void AddGenerate(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate", "Continue a prompt; standard output holds only the new text, as it comes");
  command->add_option("PROMPT", options->prompt, "text to continue; - reads standard input")
      ->required();
  AddPublicFlags(*command, context, &options->target);
  AddGenerateFlags(*command, &options->flags);
  command->add_flag("--stats", options->stats,
                    "at the end one line of tokens and times on standard error (default: none)");
  AddNumber(*command, "--resume-timeout-ms", &options->resume_timeout_ms, {0, 86'400'000},
            "milliseconds that one interruption or the first connection may last before giving up "
            "(default: 120000 and 5000)");
  command->callback([=, &context] { *exit_code = Generate(*options, context); });
}

}  // namespace pergola
