#include "client/group_output.h"

#include <utility>

namespace pergola {
namespace {

// The frame of Open MPI's show_help: a line of 74 dashes.
bool IsFrame(const std::string& line) {
  return line.size() >= 60 && line.find_first_not_of('-') == std::string::npos;
}

bool OnlyRepeatsFailure(const std::vector<std::string>& paragraph) {
  for (const std::string& line : paragraph) {
    for (const char* known :
         {"Primary job  terminated normally", "mpirun detected that one or more processes",
          "mpirun noticed that process rank", "MPI_ABORT was invoked on rank"}) {
      if (line.find(known) != std::string::npos) return true;
    }
  }
  return false;
}

// The text of "2026-01-01 00:00:00.000 E name text", or empty if the line is another.
std::string ErrorText(const std::string& line) {
  constexpr size_t kTime = 23;
  if (line.size() < kTime + 4 || line.compare(kTime, 3, " E ") != 0 || line[4] != '-') return "";
  return line.substr(kTime + 3);
}

}  // namespace

void GroupOutput::Remember(const std::string& line) {
  if (line.empty()) return;
  last_line_ = line;
  const std::string error = ErrorText(line);
  if (!error.empty()) last_error_ = error;
}

std::vector<std::string> GroupOutput::Take(const std::string& line) {
  if (!in_frame_ && !IsFrame(line)) {
    Remember(line);
    return {line};
  }
  held_.push_back(line);
  if (!in_frame_) {
    in_frame_ = true;
    return {};
  }
  const bool closed = IsFrame(line);
  if (!closed && held_.size() < kMaxHeldLines) return {};
  in_frame_ = false;
  std::vector<std::string> paragraph = std::exchange(held_, {});
  if (closed && OnlyRepeatsFailure(paragraph)) return {};
  for (const std::string& text : paragraph) {
    if (!IsFrame(text)) Remember(text);
  }
  return paragraph;
}

std::vector<std::string> GroupOutput::Finish() {
  in_frame_ = false;
  return std::exchange(held_, {});
}

}  // namespace pergola
