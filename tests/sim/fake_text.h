// A TextStream whose tokens are two-letter words and whose stop strings are pairs of tokens: enough
// to hold text back, to stop inside it and to flush.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/engine/text_stream.h"

namespace pergola::sim {

inline std::string WordOf(int32_t id) {
  return {static_cast<char>('a' + id / 26 % 26), static_cast<char>('a' + id % 26)};
}

class FakeText final : public TextStream {
 public:
  // Stops where `stop.first` is followed by `stop.second`; no stop if they are negative.
  explicit FakeText(std::pair<int32_t, int32_t> stop = {-1, -1}) : stop_(stop) {}

  Delta Push(int32_t id) override {
    Delta delta;
    if (held_ && id == stop_.second) {
      held_ = false;
      delta.stopped = true;
      delta.stop_string = WordOf(stop_.first) + WordOf(stop_.second);
      return delta;
    }
    delta.text = Flush();
    if (id == stop_.first) {
      held_ = true;
    } else {
      delta.text += WordOf(id);
    }
    return delta;
  }

  std::string Flush() override {
    if (!held_) return "";
    held_ = false;
    return WordOf(stop_.first);
  }

 private:
  const std::pair<int32_t, int32_t> stop_;
  bool held_ = false;
};

}  // namespace pergola::sim
