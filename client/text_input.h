// Text that people give: an argument or the whole of standard input, and a conversation's lines.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace pergola {

// INVALID_ARGUMENT, naming the text as `what` ("the prompt"), if it is too long for a request or
// not valid UTF-8.
absl::Status CheckText(const std::string& text, const std::string& what);

// The argument itself, or all of standard input if it is "-". Errors as CheckText's.
absl::StatusOr<std::string> ReadText(const std::string& argument, const std::string& what);

// Reads lines of a file descriptor, and notices when another one becomes readable in the meantime.
class LineReader {
 public:
  // Borrows both; `interrupts` may be -1: none.
  LineReader(int input, int interrupts) : input_(input), interrupts_(interrupts) {}

  enum class Event { kLine, kEnd, kInterrupt };
  // Waits. kLine: `line` is the next one without its line feed. kEnd: there is none, or it is
  // longer than a request may be.
  Event Next(std::string* line);

 private:
  const int input_;
  const int interrupts_;
  std::string buffer_;  // read and not yet given
  bool ended_ = false;
};

}  // namespace pergola
