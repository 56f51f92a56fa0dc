#include "client/progress_line.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace pergola {

std::string ProgressText(const v1::Progress& progress) {
  if (progress.bytes_total() == 0) return progress.phase();
  constexpr int kWidth = 30;
  const double share = std::min(1.0, static_cast<double>(progress.bytes_done()) /
                                         static_cast<double>(progress.bytes_total()));
  const int filled = static_cast<int>(share * kWidth);
  return absl::StrFormat("%s [%s%s] %3.0f %% %.1f of %.1f MB", progress.phase(),
                         std::string(filled, '#'), std::string(kWidth - filled, '.'), 100.0 * share,
                         static_cast<double>(progress.bytes_done()) / 1e6,
                         static_cast<double>(progress.bytes_total()) / 1e6);
}

std::string ProgressLine::Update(const v1::Progress& progress, Time now) {
  const std::string text = ProgressText(progress);
  if (text.empty() || text == last_) return "";
  if (!terminal_ && !last_.empty() && now - last_time_ < kLineInterval) return "";
  last_ = text;
  last_time_ = now;
  if (!terminal_) return "pergola: " + text + "\n";
  open_ = true;
  // Back to the first column, and clear what a longer text before left over.
  return "\r\x1b[K" + text;
}

std::string ProgressLine::Interrupt() {
  if (!open_) return "";
  open_ = false;
  last_.clear();
  return "\r\x1b[K";
}

}  // namespace pergola
