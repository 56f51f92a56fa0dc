// What the process was started with, read once in main.cc and handed down: nothing below asks the
// system's environment.
#pragma once

#include <string>
#include <vector>

namespace pergola {

struct Context {
  std::vector<std::string> environment;  // "NAME=value", handed on to children
  std::string search_path;               // $PATH
  std::string runtime_dir;               // where run and token files stand; may not exist yet
  std::string binary_dir;                // of this program; the other programs stand beside it
  std::string host_name;
  bool root = false;
  bool stdin_is_terminal = false;
  bool stdout_is_terminal = false;
  bool stderr_is_terminal = false;
};

}  // namespace pergola
