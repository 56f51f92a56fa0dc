// `pergola status`: what the coordinator and its groups do now, once or again and again.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/connect_flags.h"
#include "client/status_text.h"
#include "google/protobuf/util/json_util.h"

namespace pergola {
namespace {

struct StatusOptions {
  AdminTarget target;
  bool json = false;
  bool watch = false;
  std::optional<uint32_t> interval_ms;
  uint32_t timeout_ms = 5000;
};

constexpr uint32_t kDefaultIntervalMs = 1000;

absl::StatusOr<std::string> ToJson(const v1::StatusResponse& status) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  print.always_print_primitive_fields = true;
  std::string text;
  const auto done = google::protobuf::util::MessageToJsonString(status, &text, print);
  if (!done.ok()) return absl::InternalError(absl::StrCat("no JSON: ", done.ToString()));
  return text + "\n";
}

absl::Status PrintStatus(const StatusOptions& options, AdminClient& admin) {
  ASSIGN_OR_RETURN(const v1::StatusResponse status,
                   admin.Status(std::chrono::milliseconds(options.timeout_ms)));
  std::string text;
  if (options.json) {
    ASSIGN_OR_RETURN(text, ToJson(status));
  } else {
    text = StatusText(status);
  }
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Show(const std::string& text, bool redraw) {
  std::fputs((redraw ? Redrawn(text) : text).c_str(), stdout);
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return absl::OkStatus();
  return absl::DataLossError("cannot write to standard output");
}

// A coordinator that is started again comes back at the same address with the same token.
bool MayComeBack(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// Until interrupted: returns only if the first look fails, or a later one for good.
absl::Status Watch(const StatusOptions& options, bool terminal, AdminClient& admin) {
  const std::chrono::milliseconds interval(options.interval_ms.value_or(kDefaultIntervalMs));
  const bool redraw = terminal && !options.json;
  std::optional<v1::StatusResponse> before;
  bool any = false;
  for (auto due = std::chrono::steady_clock::now();;) {
    absl::StatusOr<v1::StatusResponse> status =
        admin.Status(std::chrono::milliseconds(options.timeout_ms));
    if (!status.ok() && (!any || !MayComeBack(status.status()))) return status.status();
    std::string text;
    if (!status.ok()) {
      // Nothing but looks on standard output, if a program reads it.
      if (options.json) Fail(status.status(), 1);
      if (!options.json) text = absl::StrCat("no answer: ", status.status().message(), "\n");
    } else if (options.json) {
      ASSIGN_OR_RETURN(text, ToJson(*status));
    } else {
      text =
          StatusText(*status, before.has_value() ? RatesBetween(*before, *status) : std::nullopt);
    }
    // Blocks that follow each other are set apart by an empty line.
    if (any && !redraw && !options.json) text.insert(0, "\n");
    RETURN_IF_ERROR(Show(text, redraw));
    any = true;
    if (status.ok()) before = *std::move(status);
    due = std::max(due + interval, std::chrono::steady_clock::now());
    std::this_thread::sleep_until(due);
  }
}

int RunStatus(const StatusOptions& options, const Context& context) {
  if (options.interval_ms.has_value() && !options.watch) {
    return Fail(absl::InvalidArgumentError(
                    absl::StrCat("--interval-ms ", *options.interval_ms, ": needs --watch")),
                kExitUsage);
  }
  return RunAdminCall("status", options.target, [&](AdminClient& admin) {
    return options.watch ? Watch(options, context.stdout_is_terminal, admin)
                         : PrintStatus(options, admin);
  });
}

}  // namespace

void AddStatus(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* command =
      app.add_subcommand("status", "Show groups, stages, hosts, blocks and what is running");
  command->add_flag("--json", options->json, "one JSON object, a StatusResponse (default: text)");
  AddAdminFlags(*command, context, &options->target);
  AddNumber(*command, "--timeout-ms", &options->timeout_ms, {1, 3'600'000},
            "milliseconds to wait for the answer")
      ->capture_default_str();
  command->add_flag("--watch", options->watch,
                    "look again and again until interrupted, with rates (default: once)");
  AddNumber(*command, "--interval-ms", &options->interval_ms, {100, 3'600'000},
            "milliseconds between two looks of --watch (default: 1000)");
  command->callback([=, &context] { *exit_code = RunStatus(*options, context); });
}

}  // namespace pergola
