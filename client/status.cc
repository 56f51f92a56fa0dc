// `pergola status`: what the coordinator and its groups do now.
#include <cstdio>
#include <memory>

#include "base/limits.h"
#include "base/status.h"
#include "client/admin_client.h"
#include "client/commands.h"
#include "client/run_file.h"
#include "client/status_text.h"
#include "google/protobuf/util/json_util.h"

namespace pergola {
namespace {

struct StatusOptions {
  AdminTarget target;
  bool json = false;
  uint32_t timeout_ms = 5000;
};

int Status(const StatusOptions& options) {
  absl::StatusOr<AdminClient> admin = ConnectAdmin(options.target);
  if (!admin.ok()) {
    std::fprintf(stderr, "pergola: %s\n", std::string(admin.status().message()).c_str());
    return kExitUsage;
  }
  const absl::StatusOr<v1::StatusResponse> status =
      admin->Status(std::chrono::milliseconds(options.timeout_ms));
  if (!status.ok()) {
    std::fprintf(stderr, "pergola: status: %s\n", std::string(status.status().message()).c_str());
    return 1;
  }
  std::string text;
  if (options.json) {
    google::protobuf::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    print.always_print_primitive_fields = true;
    if (!google::protobuf::util::MessageToJsonString(*status, &text, print).ok()) return 1;
    text += '\n';
  } else {
    text = StatusText(*status);
  }
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddStatus(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<StatusOptions>();
  options->target.run_file = DefaultRunFile(context.runtime_dir);
  CLI::App* command =
      app.add_subcommand("status", "Show groups, stages, hosts, blocks and what is running");
  command->add_flag("--json", options->json, "one JSON object, a StatusResponse (default: text)");
  command->add_option("--run-file", options->target.run_file, "run file of 'pergola up'")
      ->capture_default_str();
  command->add_option("--connect-internal", options->target.connect_internal,
                      "HOST:PORT of the internal listener (default: as the run file says)");
  command->add_option("--join-token-file", options->target.token_file,
                      "file with the join token (default: as the run file says)");
  command->add_option("--timeout-ms", options->timeout_ms, "milliseconds to wait for the answer")
      ->check(CLI::Range(1, 3600000))
      ->capture_default_str();
  command->callback([=] { *exit_code = Status(*options); });
}

}  // namespace pergola
