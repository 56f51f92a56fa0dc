#include "client/commands.h"

#include <cstdio>

#include "base/limits.h"

namespace pergola {

int RunCommandLine(const Context& context, const std::string& version, int argc,
                   const char* const* argv) {
  CLI::App app("pergola: generate text with large language models on several machines");
  app.set_version_flag("--version", "pergola " + version);
  app.require_subcommand(1);
  int exit_code = kExitOk;
  AddUp(app, context, &exit_code);
  AddGenerate(app, context, &exit_code);
  AddChat(app, context, &exit_code);
  AddStatus(app, context, &exit_code);
  AddDrain(app, context, &exit_code);
  AddBench(app, context, &exit_code);
  AddPlan(app, context, &exit_code);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    // A value that is refused names its limits; whoever mistakes a flag may need the list.
    const bool value = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ValidationError);
    return std::string("pergola: ") + error.what() + (value ? "\n" : "; --help shows the flags\n");
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return exit_code;
}

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "pergola: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

}  // namespace pergola
