// The subcommands of `pergola`, one file each. Add*() declares the flags below `app`; when the
// command was chosen, its callback runs it and stores the exit code: 0 done, 1 failed, 2 wrong
// flags or files.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "client/context.h"

namespace pergola {

void AddUp(CLI::App& app, const Context& context, int* exit_code);
void AddGenerate(CLI::App& app, const Context& context, int* exit_code);
void AddChat(CLI::App& app, const Context& context, int* exit_code);
void AddStatus(CLI::App& app, const Context& context, int* exit_code);
void AddDrain(CLI::App& app, const Context& context, int* exit_code);
void AddBench(CLI::App& app, const Context& context, int* exit_code);
void AddPlan(CLI::App& app, const Context& context, int* exit_code);

// Runs the command that the arguments name and returns the exit code. What they get wrong is one
// line on standard error. `version` is what --version prints.
int RunCommandLine(const Context& context, const std::string& version, int argc,
                   const char* const* argv);

// Prints "pergola: " and the message on standard error; returns `exit_code`.
int Fail(const absl::Status& status, int exit_code);

}  // namespace pergola
