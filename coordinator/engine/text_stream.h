// How the engine turns a sequence's tokens into text and sees stop strings, without knowing a
// tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pergola {

// One per sequence; used by the engine thread only.
class TextStream {
 public:
  struct Delta {
    std::string text;         // safe to show: whole UTF-8 characters, no part of a stop string
    bool stopped = false;     // a stop string was completed by this token; nothing follows
    std::string stop_string;  // which
  };
  virtual ~TextStream() = default;
  virtual Delta Push(int32_t id) = 0;
  // The end of the sequence without a stop string: what was held back (incomplete characters as
  // U+FFFD).
  virtual std::string Flush() = 0;
};

}  // namespace pergola
