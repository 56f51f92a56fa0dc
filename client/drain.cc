// `pergola drain`: stop admitting, let what runs end, then end the coordinator (and with it
// `pergola up`).
#include <cstdio>
#include <memory>

#include "base/limits.h"
#include "base/status.h"
#include "client/admin_client.h"
#include "client/commands.h"
#include "client/run_file.h"

namespace pergola {
namespace {

struct DrainOptions {
  AdminTarget target;
  uint32_t timeout_ms = 30000;
};

int Drain(const DrainOptions& options) {
  absl::StatusOr<AdminClient> admin = ConnectAdmin(options.target);
  if (!admin.ok()) {
    std::fprintf(stderr, "pergola: %s\n", std::string(admin.status().message()).c_str());
    return kExitUsage;
  }
  const absl::StatusOr<v1::DrainResponse> drained =
      admin->Drain(std::chrono::milliseconds(options.timeout_ms));
  if (!drained.ok()) {
    std::fprintf(stderr, "pergola: drain: %s\n", std::string(drained.status().message()).c_str());
    return 1;
  }
  std::fprintf(stdout, "drained: %u finished, %u cancelled\n", drained->finished(),
               drained->cancelled());
  return kExitOk;
}

}  // namespace

void AddDrain(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<DrainOptions>();
  options->target.run_file = DefaultRunFile(context.runtime_dir);
  CLI::App* command = app.add_subcommand(
      "drain", "Stop admitting requests, let the running ones end, then end the coordinator");
  command
      ->add_option("--timeout-ms", options->timeout_ms,
                   "milliseconds the running requests may take before they are cancelled")
      ->check(CLI::Range(1, 86400000))
      ->capture_default_str();
  command->add_option("--run-file", options->target.run_file, "run file of 'pergola up'")
      ->capture_default_str();
  command->add_option("--connect-internal", options->target.connect_internal,
                      "HOST:PORT of the internal listener (default: as the run file says)");
  command->add_option("--join-token-file", options->target.token_file,
                      "file with the join token (default: as the run file says)");
  command->callback([=] { *exit_code = Drain(*options); });
}

}  // namespace pergola
