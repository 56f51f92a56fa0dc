// `pergola status`: what the coordinator and its groups do now.
#include <cstdio>
#include <memory>

#include "base/cli/number_option.h"
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
  uint32_t timeout_ms = 5000;
};

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
  command->callback([=] {
    *exit_code = RunAdminCall("status", options->target,
                              [&](AdminClient& admin) { return PrintStatus(*options, admin); });
  });
}

}  // namespace pergola
