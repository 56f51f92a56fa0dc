// A set of byte strings with numbers, searched for all of its members that begin at a place in a
// text. Immutable; shared by threads.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pergola {

class Trie {
 public:
  // Keys need not be sorted; empty ones are left out, and of equal ones the first counts. Values
  // are 0 or more.
  explicit Trie(std::vector<std::pair<std::string_view, int32_t>> keys);

  // Calls `found(length, value)` for each key that is a prefix of `text`, the shortest first.
  template <typename Found>
  void ForEachPrefix(std::string_view text, const Found& found) const {
    if (text.empty()) return;
    uint32_t node = root_[static_cast<uint8_t>(text[0])];
    for (size_t length = 1; node != 0; ++length) {
      if (nodes_[node].value >= 0) found(length, nodes_[node].value);
      if (length == text.size()) return;
      node = Child(node, text[length]);
    }
  }

 private:
  // The children of a node follow one another, so a node says only where they begin; they end
  // where the next node's begin.
  struct Node {
    uint32_t first_child = 0;
    int32_t value = -1;
  };

  uint32_t Child(uint32_t node, char byte) const {
    const uint32_t begin = nodes_[node].first_child;
    const uint32_t count = nodes_[node + 1].first_child - begin;
    if (count == 0) return 0;
    const char* labels = labels_.data() + begin;
    if (count == 1) return *labels == byte ? begin : 0;
    const void* at = std::memchr(labels, static_cast<uint8_t>(byte), count);
    if (at == nullptr) return 0;
    return begin + static_cast<uint32_t>(static_cast<const char*>(at) - labels);
  }

  std::vector<Node> nodes_;              // breadth first; one more than there are nodes
  std::string labels_;                   // by node: the byte that leads to it
  std::array<uint32_t, 256> root_ = {};  // the root's children; 0: none
};

}  // namespace pergola
