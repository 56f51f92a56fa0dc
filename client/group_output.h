// Makes the output of mpirun and its ranks fit to read: leaves out the framed paragraphs in which
// mpirun repeats that a rank failed (`up` says it in one line), keeps every other line, and
// remembers the line that says why.
#pragma once

#include <string>
#include <vector>

namespace pergola {

class GroupOutput {
 public:
  // Takes one line, returns the lines to show now (none, the line, or a held paragraph).
  std::vector<std::string> Take(const std::string& line);
  // The output has ended: what is still held.
  std::vector<std::string> Finish();

  // The text of the last line of level E, else the last line of all; empty if there was none.
  std::string reason() const { return last_error_.empty() ? last_line_ : last_error_; }

 private:
  // A frame that does not close within so many lines is no frame.
  static constexpr size_t kMaxHeldLines = 64;

  void Remember(const std::string& line);

  bool in_frame_ = false;
  std::vector<std::string> held_;
  std::string last_error_;
  std::string last_line_;
};

}  // namespace pergola
