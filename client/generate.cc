// `pergola generate`: standard output holds the new text and nothing else; everything for people
// goes to standard error.
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
#include "client/stream_output.h"
#include "client/text_input.h"

namespace pergola {
namespace {

struct GenerateOptions {
  std::string prompt;
  PublicTarget target;
  GenerateFlags flags;
  bool stats = false;
  std::optional<uint32_t> resume_timeout_ms;
};

ResumeOptions MakeResumeOptions(const GenerateOptions& options, StreamOutput& output) {
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
  const absl::StatusOr<std::string> prompt = ReadText(options.prompt, "the prompt");
  if (!prompt.ok()) return Fail(prompt.status(), kExitUsage);
  const absl::StatusOr<v1::GenerateRequest> request = MakeGenerateRequest(options.flags, *prompt);
  if (!request.ok()) return Fail(request.status(), kExitUsage);
  const absl::StatusOr<std::string> address = PublicAddress(options.target);
  if (!address.ok()) return Fail(address.status(), kExitUsage);
  StreamOutput output(options.flags.json, options.flags.sequences());
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
