#include "client/text_input.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/limits.h"
#include "base/status.h"
#include "client/utf8.h"

namespace pergola {

absl::Status CheckText(const std::string& text, const std::string& what) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is longer than the limit of ", kMaxTextBytes, " bytes"));
  }
  const size_t invalid = FirstInvalidUtf8(text);
  if (invalid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not valid UTF-8 at byte ", invalid));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& argument, const std::string& what) {
  std::string text = argument;
  if (argument == "-") {
    text.clear();
    char buffer[65536];
    size_t n = 0;
    while (text.size() <= kMaxTextBytes && (n = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0) {
      text.append(buffer, n);
    }
  }
  RETURN_IF_ERROR(CheckText(text, what));
  return text;
}

LineReader::Event LineReader::Next(std::string* line) {
  size_t searched = 0;
  for (;;) {
    const size_t end = buffer_.find('\n', searched);
    searched = buffer_.size();
    if (end != std::string::npos || (ended_ && !buffer_.empty())) {
      *line = buffer_.substr(0, end);
      buffer_.erase(0, end == std::string::npos ? end : end + 1);
      return Event::kLine;
    }
    if (ended_ || buffer_.size() > kMaxTextBytes) return Event::kEnd;
    pollfd fds[2] = {{input_, POLLIN, 0}, {interrupts_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;  // EINTR
    if (fds[1].revents != 0) return Event::kInterrupt;
    char bytes[4096];
    const ssize_t count = read(input_, bytes, sizeof(bytes));
    if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
    ended_ = count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN);
  }
}

}  // namespace pergola
