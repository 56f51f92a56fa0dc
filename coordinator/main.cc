// pergola-coordinator: flags, signals and the order in which things start and end. Everything else
// has a home of its own: server.h (listeners), engine/ (sequences), text/ (tokenizer).
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/engine/engine.h"
#include "coordinator/private_file.h"
#include "coordinator/server.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "model/text_parts.h"

namespace pergola {
namespace {

struct Flags {
  std::string model;
  std::string join_token_file;
  std::string run_file;
  std::string trace;
  std::string log_level = "info";
  int64_t drain_timeout_ms = 30'000;
  int64_t failover_wait_ms = 10'000;
  int64_t step_timeout_ms = 60'000;
  int64_t step_ms = 100;
  int64_t max_queue_wait_ms = 60'000;
  ServerOptions server;
  EngineOptions engine;
};

void Declare(CLI::App* app, Flags* flags) {
  app->add_option("--model", flags->model,
                  "Model directory or .gguf file; only text parts are read")
      ->required();
  app->add_option("--listen", flags->server.listen, "Public address, HOST:PORT (port 0: any free)");
  app->add_option("--internal-listen", flags->server.internal_listen,
                  "Address for workers and operators; beyond loopback it needs a join token");
  app->add_option("--http-listen", flags->server.http_listen,
                  "Address of /metrics and /healthz, such as 127.0.0.1:9400; empty: none");
  app->add_option(
      "--join-token-file", flags->join_token_file,
      absl::StrCat("File of mode 0600 with the join token (default: environment variable ",
                   kJoinTokenVariable, ")"));
  app->add_option("--run-file", flags->run_file,
                  "Where to write pid and bound addresses, mode 0600");
  app->add_option("--trace", flags->trace, "Write a Chrome/Perfetto trace of plans to this file");
  app->add_option("--log-level", flags->log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}));
  AddNumber(*app, "--max-queued", &flags->engine.max_queued_sequences, {1, 1'000'000},
            "Sequences waiting for a slot; beyond: RESOURCE_EXHAUSTED");
  AddNumber(*app, "--max-queued-bytes", &flags->engine.max_queued_bytes,
            {int64_t{1} << 16, int64_t{1} << 40}, "Bytes of queued prompts");
  AddNumber(*app, "--max-calls", &flags->server.max_calls, {1, 1'000'000},
            "Generate, Chat and GenerateBatch calls in progress; beyond: RESOURCE_EXHAUSTED");
  AddNumber(*app, "--max-held-bytes", &flags->server.max_held_result_bytes,
            {int64_t{1} << 20, int64_t{1} << 40},
            "Results that GenerateBatch and best_of hold until all are there; beyond: "
            "RESOURCE_EXHAUSTED");
  AddNumber(*app, "--max-streams", &flags->server.max_streams, {1, 1'000'000},
            "HTTP/2 streams per connection");
  AddNumber(*app, "--slow-reader-timeout-ms", &flags->server.slow_reader_timeout_ms,
            {100, 86'400'000},
            "A client that takes nothing of its stream for so long: RESOURCE_EXHAUSTED");
  AddNumber(*app, "--text-threads", &flags->server.text_threads, {1, 64},
            "Threads that parse and tokenize");
  AddNumber(*app, "--failover-wait-ms", &flags->failover_wait_ms, {0, 86'400'000},
            "How long a lost sequence waits for a group of its own numerics id");
  AddNumber(*app, "--step-timeout-ms", &flags->step_timeout_ms, {1, 86'400'000},
            "A plan unanswered for so long loses the group");
  AddNumber(*app, "--drain-timeout-ms", &flags->drain_timeout_ms, {0, 86'400'000},
            "After SIGTERM or SIGINT: how long running sequences may take to end");
  AddNumber(*app, "--prefill-rows", &flags->engine.prefill_rows, {1, 1'000'000},
            "Most prompt tokens per plan beside decodes (chunked prefill), until --step-ms rules");
  AddNumber(*app, "--step-ms", &flags->step_ms, {0, 86'400'000},
            "While others decode, prompts get the rows that keep a step within this time; 0: "
            "--prefill-rows always");
  AddNumber(*app, "--max-queue-wait-ms", &flags->max_queue_wait_ms, {0, 86'400'000},
            "Estimated wait for a slot beyond which a request is refused; 0: none");
  app->add_flag("!--no-request-log", flags->engine.log_requests,
                "No line per ended sequence and about refusals");
  app->add_flag("!--no-prefix-cache", flags->engine.prefix_cache,
                "Compute every prompt anew instead of sharing blocks of equal beginnings");
}

// One line to standard error.
int Fail(const std::string& message) {
  fprintf(stderr, "pergola-coordinator: %s\n", message.c_str());
  return kExitUsage;
}

int Fail(const absl::Status& status) {
  return Fail(std::string(ToStd(status.message())));
}

absl::StatusOr<std::string> JoinToken(const Flags& flags) {
  if (!flags.join_token_file.empty()) return ReadTokenFile(flags.join_token_file);
  const char* token = getenv(kJoinTokenVariable);
  if (token == nullptr) return std::string();
  RETURN_IF_ERROR(CheckToken(token, absl::StrCat("environment variable ", kJoinTokenVariable)));
  return std::string(token);
}

absl::Status CheckWritable(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot write ", path, ": ", strerror(errno)));
  }
  close(fd);
  return absl::OkStatus();
}

// Libraries log through ours, and only where somebody asked for details: what matters of their
// errors is told in our own words.
void QuietLibraries() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    LOG_DEBUG("grpc {}:{} {}", args->file, args->line, args->message);
  });
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel, const char* file, int line, const std::string& message) {
        LOG_DEBUG("protobuf {}:{} {}", file, line, message);
      });
}

// The signals that end the process, as a file descriptor. Blocked before any thread starts, so in
// all of them.
int TakeSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signalfd(-1, &signals, SFD_CLOEXEC);
}

// Returns when drained; a first signal starts the drain, a second one ends the process at once.
void WaitForEnd(int signals, int drained, int64_t drain_timeout_ms, Engine* engine) {
  bool draining = false;
  while (true) {
    pollfd fds[2] = {{signals, POLLIN, 0}, {drained, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;  // EINTR
    if (fds[1].revents != 0) return;
    signalfd_siginfo info{};
    if (read(signals, &info, sizeof(info)) != sizeof(info)) continue;
    const int number = static_cast<int>(info.ssi_signo);
    if (draining) _exit(128 + number);
    draining = true;
    LOG_INFO("{}: draining, for at most {} ms; a second signal ends at once", strsignal(number),
             drain_timeout_ms);
    engine->Drain(drain_timeout_ms * 1000, [drained](const v1::DrainResponse& response) {
      LOG_INFO("drained: {} ended by themselves, {} cancelled", response.finished(),
               response.cancelled());
      eventfd_write(drained, 1);
    });
  }
}

int Serve(Flags flags, int signals) {
  auto token = JoinToken(flags);
  if (!token.ok()) return Fail(token.status());
  flags.server.join_token = *std::move(token);
  const auto parts = LoadTextParts(flags.model);
  if (!parts.ok()) return Fail(parts.status());
  for (const std::string& line : parts->defaults.ignored) LOG_WARN("{}", line);
  const auto tokenizer = Tokenizer::Create(*parts);
  if (!tokenizer.ok()) return Fail(Prefixed(tokenizer.status(), flags.model));
  const auto chat = ChatTemplate::Create(*parts);
  if (!chat.ok() && !absl::IsNotFound(chat.status())) {
    LOG_WARN("{}: Chat is refused: {}", flags.model, ToStd(chat.status().message()));
  }
  if (!flags.trace.empty()) {
    const absl::Status writable = CheckWritable(flags.trace);
    if (!writable.ok()) return Fail(writable);
  }

  const int64_t started_us = std::chrono::duration_cast<std::chrono::microseconds>(
                                 std::chrono::system_clock::now().time_since_epoch())
                                 .count();
  flags.engine.text_hash = parts->hash;
  flags.engine.failover_wait_us = flags.failover_wait_ms * 1000;
  flags.engine.step_timeout_us = flags.step_timeout_ms * 1000;
  flags.engine.step_target_us = flags.step_ms * 1000;
  flags.engine.max_queue_wait_us = flags.max_queue_wait_ms * 1000;
  flags.engine.slow_reader_timeout_us = flags.server.slow_reader_timeout_ms * 1000;
  flags.engine.start_time_us = static_cast<uint64_t>(started_us);
  const int drained = eventfd(0, EFD_CLOEXEC);
  Engine engine(flags.engine, flags.trace);
  const auto server = CoordinatorServer::Start(flags.server, {&*parts, tokenizer->get(), &chat},
                                               &engine, [drained] { eventfd_write(drained, 1); });
  if (!server.ok()) return Fail(server.status());
  const int64_t pid = getpid();
  if (!flags.run_file.empty()) {
    const absl::Status written = WriteRunFile(
        flags.run_file, {pid, (*server)->public_address(), (*server)->internal_address(),
                         flags.join_token_file, started_us, (*server)->http_address()});
    if (!written.ok()) return Fail(written);
  }
  if (flags.server.join_token.empty()) {
    LOG_WARN("no join token: every local user may attach workers and drain");
  }
  LOG_INFO("model {} on {}, workers on {}", parts->model_name, (*server)->public_address(),
           (*server)->internal_address());
  if (!(*server)->http_address().empty()) LOG_INFO("HTTP on {}", (*server)->http_address());
  WaitForEnd(signals, drained, flags.drain_timeout_ms, &engine);
  // Every sequence has ended; what remains is the last bytes on their way to clients.
  (*server)->Shutdown(std::chrono::seconds(2));
  engine.Stop();
  if (!flags.run_file.empty()) RemoveRunFile(flags.run_file, pid);
  LOG_INFO("ended");
  return kExitOk;
}

int Main(int argc, char** argv) {
  Flags flags;
  flags.engine.log_requests = true;
  const uint32_t cores = std::max(1U, std::thread::hardware_concurrency());
  flags.server.text_threads = std::clamp(cores / 2, 1U, 8U);
  CLI::App app("Pergola's coordinator: gRPC doors, scheduling and text. Holds no weights.",
               "pergola-coordinator");
  Declare(&app, &flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return Fail(error.what());
  }
  const int signals = TakeSignals();
  InitLog("coordinator", flags.log_level);
  QuietLibraries();
  return Serve(std::move(flags), signals);
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
