#include "client/text_blocks.h"

#include <utility>

namespace pergola {

std::string TextBlocks::Take(const v1::GenerateResponse& message) {
  if (message.index() >= blocks_.size()) return "";
  if (blocks_.size() == 1) return message.text();
  Block& block = blocks_[message.index()];
  block.text += message.text();
  block.finished = block.finished || message.has_finish();
  std::string text;
  while (next_ < blocks_.size() && blocks_[next_].finished) text += Next();
  return text;
}

std::string TextBlocks::Rest() {
  if (blocks_.size() == 1) return "";
  std::string text;
  while (next_ < blocks_.size()) {
    const bool empty = blocks_[next_].text.empty() && !blocks_[next_].finished;
    std::string block = Next();
    if (!empty) text += block;
  }
  return text;
}

std::string TextBlocks::Next() {
  const std::string body = std::exchange(blocks_[next_].text, std::string());
  ++next_;
  std::string text = "--- " + std::to_string(next_) + "\n" + body;
  if (text.back() != '\n') text += '\n';
  return text;
}

}  // namespace pergola
