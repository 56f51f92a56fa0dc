// CHECK: our own bugs end the process with a line that names the place. Not for anything that a
// client, a file or a peer can cause; that is a Status.
#pragma once

#include <string>

namespace pergola {

// Prints "file:line: CHECK failed: expression: detail" and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              const std::string& detail);

}  // namespace pergola

#define PERGOLA_CHECK(condition) PERGOLA_CHECK_MSG(condition, "")
#define PERGOLA_CHECK_MSG(condition, detail)                            \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::pergola::CheckFailed(__FILE__, __LINE__, #condition, (detail)); \
  } while (false)
