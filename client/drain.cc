// `pergola drain`: stop admitting, let what runs end, then end the coordinator (and with it
// `pergola up`).
#include <cstdio>
#include <memory>

#include "base/cli/number_option.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/connect_flags.h"

namespace pergola {
namespace {

struct DrainOptions {
  AdminTarget target;
  uint32_t timeout_ms = 30000;
};

absl::Status Drain(const DrainOptions& options, AdminClient& admin) {
  ASSIGN_OR_RETURN(const v1::DrainResponse drained,
                   admin.Drain(std::chrono::milliseconds(options.timeout_ms)));
  std::fprintf(stdout, "drained: %u finished, %u cancelled\n", drained.finished(),
               drained.cancelled());
  return absl::OkStatus();
}

}  // namespace

void AddDrain(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<DrainOptions>();
  CLI::App* command = app.add_subcommand(
      "drain", "Stop admitting requests, let the running ones end, then end the coordinator");
  AddNumber(*command, "--timeout-ms", &options->timeout_ms, {1, 86'400'000},
            "milliseconds the running requests may take before they are cancelled")
      ->capture_default_str();
  AddAdminFlags(*command, context, &options->target);
  command->callback([=] {
    *exit_code = RunAdminCall("drain", options->target,
                              [&](AdminClient& admin) { return Drain(*options, admin); });
  });
}

}  // namespace pergola
