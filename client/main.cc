// The pergola command: reads what the system knows about this process, then hands over to a
// subcommand.
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "client/commands.h"

namespace pergola {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Context ReadContext() {
  Context context;
  for (char** entry = environ; *entry != nullptr; ++entry) context.environment.emplace_back(*entry);
  context.search_path = Variable("PATH");
  const std::string runtime = Variable("XDG_RUNTIME_DIR");
  context.runtime_dir =
      runtime.empty() ? "/tmp/pergola-" + std::to_string(getuid()) : runtime + "/pergola";
  std::error_code error;
  context.binary_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  char host[HOST_NAME_MAX + 1] = {};
  if (gethostname(host, sizeof(host) - 1) == 0) context.host_name = host;
  context.root = geteuid() == 0;
  context.stdin_is_terminal = isatty(STDIN_FILENO) == 1;
  context.stdout_is_terminal = isatty(STDOUT_FILENO) == 1;
  context.stderr_is_terminal = isatty(STDERR_FILENO) == 1;
  return context;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::RunCommandLine(pergola::ReadContext(), PERGOLA_VERSION, argc, argv);
}
