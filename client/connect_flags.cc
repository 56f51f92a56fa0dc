#include "client/connect_flags.h"

#include "base/limits.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/hosts.h"
#include "client/run_file.h"

namespace pergola {
namespace {

void AddRunFileFlag(CLI::App& command, const Context& context, std::string* run_file) {
  *run_file = DefaultRunFile(context.runtime_dir);
  command.add_option("--run-file", *run_file, "run file of 'pergola up'")->capture_default_str();
}

}  // namespace

void AddPublicFlags(CLI::App& command, const Context& context, PublicTarget* target) {
  command.add_option("--connect", target->connect,
                     "HOST:PORT of the public listener (default: as the run file says)");
  AddRunFileFlag(command, context, &target->run_file);
}

absl::StatusOr<std::string> PublicAddress(const PublicTarget& target) {
  if (!target.connect.empty()) {
    RETURN_IF_ERROR(CheckDialable("--connect", target.connect));
    return target.connect;
  }
  ASSIGN_OR_RETURN(const RunFile run, ReadRunFile(target.run_file));
  RETURN_IF_ERROR(
      CheckDialable(absl::StrCat("run file ", target.run_file, ":"), run.public_address));
  return run.public_address;
}

void AddAdminFlags(CLI::App& command, const Context& context, AdminTarget* target) {
  AddRunFileFlag(command, context, &target->run_file);
  command.add_option("--connect-internal", target->connect_internal,
                     "HOST:PORT of the internal listener (default: as the run file says)");
  command.add_option("--join-token-file", target->token_file,
                     "file with the join token (default: as the run file says)");
}

int RunAdminCall(const std::string& name, const AdminTarget& target,
                 const std::function<absl::Status(AdminClient&)>& call) {
  absl::StatusOr<AdminClient> admin = ConnectAdmin(target);
  if (!admin.ok()) return Fail(admin.status(), kExitUsage);
  const absl::Status done = call(*admin);
  if (!done.ok()) return Fail(Prefixed(done, name), 1);
  return kExitOk;
}

}  // namespace pergola
