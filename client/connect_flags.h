// Where a command finds the coordinator: the flags that say it, the run file in their place, and
// the errors when neither helps.
#pragma once

#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/admin_client.h"
#include "client/context.h"

namespace pergola {

// The public listener: as --connect says, else as the run file says.
struct PublicTarget {
  std::string run_file;
  std::string connect;
};
void AddPublicFlags(CLI::App& command, const Context& context, PublicTarget* target);
// An address that can be dialled, as CheckDialable says.
absl::StatusOr<std::string> PublicAddress(const PublicTarget& target);

void AddAdminFlags(CLI::App& command, const Context& context, AdminTarget* target);
// Runs `call` and prints what goes wrong, `name` before the call's own errors. Returns the exit
// code: 0 done, 1 the call failed, 2 wrong flags or files.
int RunAdminCall(const std::string& name, const AdminTarget& target,
                 const std::function<absl::Status(AdminClient&)>& call);

}  // namespace pergola
