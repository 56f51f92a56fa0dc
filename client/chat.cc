// `pergola chat`: a conversation in the terminal. Standard output holds the answers and nothing
// else; everything for people goes to standard error.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/channel.h"
#include "client/commands.h"
#include "client/connect_flags.h"
#include "client/error_text.h"
#include "client/generate_flags.h"
#include "client/interrupt.h"
#include "client/resumable_stream.h"
#include "client/stream_output.h"
#include "client/text_input.h"

namespace pergola {
namespace {

constexpr char kHelp[] =
    "/reset forgets what was said, /quit ends (as does the end of input), Ctrl-C stops an answer";

struct ChatOptions {
  std::optional<std::string> system;
  std::optional<std::string> message;
  std::string variables;
  PublicTarget target;
  GenerateFlags flags;
  bool stats = false;
  std::optional<uint32_t> resume_timeout_ms;
};

// While it lives, an interrupt cancels.
class CancelOnInterrupt {
 public:
  CancelOnInterrupt(Interrupts* interrupts, StreamCanceller* canceller)
      : end_(eventfd(0, EFD_CLOEXEC)), thread_([this, interrupts, canceller] {
          pollfd fds[2] = {{interrupts->fd(), POLLIN, 0}, {end_, POLLIN, 0}};
          while (poll(fds, 2, -1) < 0) {  // EINTR
          }
          if (fds[0].revents == 0) return;
          interrupts->Take();
          canceller->Cancel();
        }) {}
  ~CancelOnInterrupt() {
    eventfd_write(end_, 1);
    thread_.join();
    close(end_);
  }
  CancelOnInterrupt(const CancelOnInterrupt&) = delete;
  CancelOnInterrupt& operator=(const CancelOnInterrupt&) = delete;

 private:
  const int end_;
  std::thread thread_;
};

class Chat {
 public:
  Chat(const ChatOptions& options, const Context& context, v1::GenerateRequest request)
      : options_(options), context_(context), request_(std::move(request)) {
    conversation_.set_variables_json(options.variables);
    Reset();
  }

  // Dials, and says one message or all that come.
  int Run();

 private:
  void Reset() {
    conversation_.clear_messages();
    if (options_.system) Add("system", *options_.system);
  }
  void Add(const std::string& role, std::string text) {
    v1::ChatMessage* message = conversation_.add_messages();
    message->set_role(role);
    message->set_content(std::move(text));
  }
  // Says `text` and streams the answer. What cannot be answered is forgotten.
  grpc::Status Say(std::string text);
  ResumeOptions MakeResumeOptions(StreamOutput* output, StreamCanceller* canceller,
                                  std::string* answer) const;
  int Converse();
  // Whether the line was a command; `*ends` if it ends the conversation.
  bool Command(const std::string& line, bool* ends);
  bool for_people() const { return context_.stdin_is_terminal && context_.stderr_is_terminal; }

  const ChatOptions& options_;
  const Context& context_;
  const v1::GenerateRequest request_;
  Interrupts interrupts_;  // before the channel's threads
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  v1::ChatRequest conversation_;
};

ResumeOptions Chat::MakeResumeOptions(StreamOutput* output, StreamCanceller* canceller,
                                      std::string* answer) const {
  ResumeOptions resume;
  if (options_.resume_timeout_ms) {
    resume.resume_timeout = std::chrono::milliseconds(*options_.resume_timeout_ms);
    resume.connect_timeout = resume.resume_timeout;
  }
  resume.conversation = &conversation_;
  resume.canceller = canceller;
  resume.tenant = options_.flags.tenant;
  resume.on_message = [output, answer](const v1::GenerateResponse& message) {
    *answer += message.text();
    output->Write(message);
  };
  resume.on_interruption = [](const grpc::Status& status) {
    std::fprintf(stderr, "pergola: interrupted (%s), resuming\n", status.error_message().c_str());
  };
  return resume;
}

grpc::Status Chat::Say(std::string text) {
  Add("user", std::move(text));
  StreamOutput output(/*json=*/false, /*sequences=*/1);
  StreamCanceller canceller;
  std::string answer;
  grpc::Status status;
  {
    const CancelOnInterrupt cancels(&interrupts_, &canceller);
    status =
        RunResumableStream(channel_, request_, MakeResumeOptions(&output, &canceller, &answer));
  }
  output.End();
  // The next answer starts on its own line.
  if (!answer.empty() && answer.back() != '\n') std::fputc('\n', stdout);
  std::fflush(stdout);
  if (status.ok() && options_.stats) output.PrintStats();
  const bool stopped = status.error_code() == grpc::StatusCode::CANCELLED && canceller.cancelled();
  // A stopped answer is one as far as it was read.
  if (status.ok() || (stopped && !answer.empty())) {
    Add("assistant", std::move(answer));
  } else {
    conversation_.mutable_messages()->RemoveLast();
  }
  if (!status.ok() && !stopped) {
    std::fprintf(stderr, "pergola: %s: %s\n", address_.c_str(), ErrorText(status).c_str());
  }
  return status;
}

bool Chat::Command(const std::string& line, bool* ends) {
  if (line.empty() || line[0] != '/') return false;
  if (line == "/quit") {
    *ends = true;
  } else if (line == "/reset") {
    Reset();
  } else {
    std::fprintf(stderr, "pergola: no command %s; %s\n", line.c_str(), kHelp);
  }
  return true;
}

int Chat::Converse() {
  if (for_people()) std::fprintf(stderr, "%s\n", kHelp);
  LineReader lines(STDIN_FILENO, interrupts_.fd());
  int exit_code = kExitOk;
  std::string line;
  for (bool ends = false; !ends;) {
    if (for_people()) std::fputs("> ", stderr);
    const LineReader::Event event = lines.Next(&line);
    if (event != LineReader::Event::kLine) {
      if (for_people()) std::fputc('\n', stderr);
      // As the signal would have ended it.
      return interrupts_.Take() ? 128 + SIGINT : exit_code;
    }
    if (line.empty() || Command(line, &ends)) continue;
    const absl::Status checked = CheckText(line, "the message");
    if (!checked.ok()) {
      exit_code = Fail(checked, kExitUsage);
      continue;
    }
    const grpc::Status status = Say(line);
    if (std::ferror(stdout) != 0) {
      return Fail(absl::DataLossError("cannot write to standard output"), 1);
    }
    if (!status.ok() && status.error_code() != grpc::StatusCode::CANCELLED) exit_code = 1;
  }
  return exit_code;
}

int Chat::Run() {
  const absl::StatusOr<std::string> address = PublicAddress(options_.target);
  if (!address.ok()) return Fail(address.status(), kExitUsage);
  address_ = *address;
  channel_ = Dial(address_);
  if (!options_.message) return Converse();
  absl::StatusOr<std::string> text = ReadText(*options_.message, "the message");
  if (!text.ok()) return Fail(text.status(), kExitUsage);
  const grpc::Status status = Say(*std::move(text));
  if (std::ferror(stdout) != 0) {
    return Fail(absl::DataLossError("cannot write to standard output"), 1);
  }
  if (status.ok()) return kExitOk;
  if (status.error_code() == grpc::StatusCode::CANCELLED) return 128 + SIGINT;
  return status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ? kExitUsage : 1;
}

int RunChat(const ChatOptions& options, const Context& context) {
  absl::Status checked = CheckText(options.system.value_or(""), "--system");
  if (checked.ok()) checked = CheckText(options.variables, "--template-variables");
  if (!checked.ok()) return Fail(checked, kExitUsage);
  absl::StatusOr<v1::GenerateRequest> request = MakeGenerateRequest(options.flags, "");
  if (!request.ok()) return Fail(request.status(), kExitUsage);
  request->clear_prompt();
  return Chat(options, context, *std::move(request)).Run();
}

}  // namespace

void AddChat(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command =
      app.add_subcommand("chat", "Talk with the model: one message a line, the answer as it comes");
  command->footer(
      std::string("In the conversation: ") + kHelp +
      ".\nExample: pergola chat --system 'You are brief.' --message 'What is the capital of "
      "France?'");
  command->add_option("--message", options->message,
                      "say this, print the answer and end; - reads standard input (default: a "
                      "conversation)");
  command->add_option("--system", options->system,
                      "what the conversation begins with (default: what the template has)");
  command->add_option("--template-variables", options->variables,
                      "a JSON object for the chat template, such as '{\"enable_thinking\": false}' "
                      "(default: none)");
  AddPublicFlags(*command, context, &options->target);
  AddSharedFlags(*command, &options->flags);
  command->add_flag("--stats", options->stats,
                    "after each answer one line of tokens and times on standard error (default: "
                    "none)");
  AddNumber(*command, "--resume-timeout-ms", &options->resume_timeout_ms, {0, 86'400'000},
            "milliseconds that one interruption or the first connection may last before giving up "
            "(default: 120000 and 5000)");
  command->callback([=, &context] { *exit_code = RunChat(*options, context); });
}

}  // namespace pergola
