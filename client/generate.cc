// `pergola generate`: standard output holds the new text and nothing else; everything for people
// goes to standard error.
#include <unistd.h>

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
#include "client/resumable_stream.h"
#include "client/utf8.h"
#include "google/protobuf/util/json_util.h"

namespace pergola {
namespace {

struct GenerateOptions {
  std::string prompt;
  PublicTarget target;
  std::optional<uint32_t> max_new_tokens;
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool json = false;
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

v1::GenerateRequest MakeRequest(const GenerateOptions& options, const std::string& prompt) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  v1::SamplingParameters* sampling = request.mutable_sampling();
  if (options.temperature) sampling->set_temperature(*options.temperature);
  if (options.top_k) sampling->set_top_k(*options.top_k);
  if (options.top_p) sampling->set_top_p(*options.top_p);
  if (options.seed) sampling->set_seed(*options.seed);
  v1::StopConditions* stop = request.mutable_stop();
  if (options.max_new_tokens) stop->set_max_new_tokens(*options.max_new_tokens);
  for (const std::string& text : options.stop) stop->add_strings(text);
  stop->set_ignore_eos(options.ignore_eos);
  return request;
}

void WriteMessage(const GenerateOptions& options, const v1::GenerateResponse& message) {
  if (options.json) {
    google::protobuf::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    std::string line;
    if (google::protobuf::util::MessageToJsonString(message, &line, print).ok()) {
      std::fprintf(stdout, "%s\n", line.c_str());
    }
  } else {
    std::fwrite(message.text().data(), 1, message.text().size(), stdout);
  }
  std::fflush(stdout);
  if (message.continuity() == v1::CONTINUITY_SEMANTIC) {
    std::fprintf(stderr,
                 "pergola: the stream continues on other numerics: a valid continuation, perhaps "
                 "not the same words\n");
  }
}

// Tokens per second after the first one: what a reader sees.
void PrintStats(const v1::Usage& usage) {
  const double rest_s = (usage.total_ms() - usage.first_token_ms()) / 1e3;
  const double rate =
      usage.completion_tokens() > 1 && rest_s > 0 ? (usage.completion_tokens() - 1) / rest_s : 0.0;
  std::fprintf(stderr, "%u prompt tokens, %u new tokens, first after %.0f ms, then %.1f tokens/s\n",
               usage.prompt_tokens(), usage.completion_tokens(), usage.first_token_ms(), rate);
}

int Generate(const GenerateOptions& options, const Context& context) {
  const absl::StatusOr<std::string> prompt = ReadPrompt(options.prompt);
  if (!prompt.ok()) return Fail(prompt.status(), kExitUsage);
  for (const std::string& stop : options.stop) {
    if (FirstInvalidUtf8(stop) == stop.size()) continue;
    return Fail(absl::InvalidArgumentError("--stop is not valid UTF-8"), kExitUsage);
  }
  const absl::StatusOr<std::string> address = PublicAddress(options.target);
  if (!address.ok()) return Fail(address.status(), kExitUsage);
  ResumeOptions resume;
  if (options.resume_timeout_ms) {
    resume.resume_timeout = std::chrono::milliseconds(*options.resume_timeout_ms);
    resume.connect_timeout = resume.resume_timeout;
  }
  v1::Usage usage;
  resume.on_message = [&](const v1::GenerateResponse& message) {
    WriteMessage(options, message);
    if (message.has_finish()) usage = message.finish().usage();
  };
  resume.on_interruption = [](const grpc::Status& status) {
    std::fprintf(stderr, "pergola: interrupted (%s), resuming\n", status.error_message().c_str());
  };
  const grpc::Status status =
      RunResumableStream(Dial(*address), MakeRequest(options, *prompt), resume);
  // The terminal's next line starts on its own; the newline is not part of the text.
  if (context.stdout_is_terminal) std::fputc('\n', stderr);
  if (std::ferror(stdout) != 0) {
    return Fail(absl::DataLossError("cannot write to standard output"), 1);
  }
  if (status.ok()) {
    if (options.stats) PrintStats(usage);
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
  AddNumber(*command, "--max-new-tokens", &options->max_new_tokens, {1, UINT32_MAX},
            "most new tokens (default: what fits in the context, at most 2048)");
  AddNumber(*command, "--temperature", &options->temperature, {0, kMaxTemperature},
            "of the draws, 0: greedy (default: the model's, else 0)");
  AddNumber(*command, "--top-k", &options->top_k, {0, UINT32_MAX},
            "keep the K most probable tokens, 0: all (default: the model's, else 0)");
  AddNumber(*command, "--top-p", &options->top_p, {0, 1, true},
            "keep the smallest set of this probability (default: the model's, else 1)");
  AddNumber(*command, "--seed", &options->seed, {0, UINT64_MAX},
            "of the draws (default: the server draws one)");
  command
      ->add_option("--stop", options->stop, "end before this text; up to 16 times (default: none)")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag("--ignore-eos", options->ignore_eos,
                    "do not end at the model's end-of-sequence token (default: end)");
  command->add_flag("--json", options->json,
                    "one JSON object per line instead of text, each a GenerateResponse with ids, "
                    "text, and at last finish");
  command->add_flag("--stats", options->stats,
                    "at the end one line of tokens and times on standard error (default: none)");
  AddNumber(*command, "--resume-timeout-ms", &options->resume_timeout_ms, {0, 86'400'000},
            "milliseconds that one interruption or the first connection may last before giving up "
            "(default: 120000 and 5000)");
  command->callback([=, &context] { *exit_code = Generate(*options, context); });
}

}  // namespace pergola
