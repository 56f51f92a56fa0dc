// The text of several sequences on one output, one block after the other. Pure.
#pragma once

#include <string>
#include <vector>

#include "pergola/v1/generation.pb.h"

namespace pergola {

// Blocks come in the order of their index, each as soon as its sequence and all before it have
// ended: a line "--- 1" (2, ... n), the text, and a line feed if the text lacks one. One sequence
// alone comes as it is, at once.
class TextBlocks {
 public:
  explicit TextBlocks(uint32_t sequences) : blocks_(sequences) {}

  // What to write now. A message of an index beyond the sequences is left out.
  std::string Take(const v1::GenerateResponse& message);
  // What is held back of a stream that has ended early.
  std::string Rest();

 private:
  struct Block {
    std::string text;
    bool finished = false;
  };

  std::string Next();

  std::vector<Block> blocks_;
  size_t next_ = 0;  // the first block that was not written
};

}  // namespace pergola
