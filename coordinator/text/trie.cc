#include "coordinator/text/trie.h"

#include <algorithm>
#include <cstddef>

namespace pergola {
namespace {

// The sorted keys from `begin` to `end` share their first `depth` bytes.
struct Range {
  size_t begin = 0;
  size_t end = 0;
  size_t depth = 0;
};

}  // namespace

Trie::Trie(std::vector<std::pair<std::string_view, int32_t>> keys) {
  const auto less = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::stable_sort(keys.begin(), keys.end(), less);
  // Node i stands for ranges[i]; a breadth first walk appends the ranges of its children.
  std::vector<Range> ranges = {{0, keys.size(), 0}};
  labels_.push_back('\0');
  for (size_t node = 0; node < ranges.size(); ++node) {
    Range range = ranges[node];
    nodes_.push_back({static_cast<uint32_t>(ranges.size()), -1});
    while (range.begin < range.end && keys[range.begin].first.size() == range.depth) {
      if (nodes_[node].value < 0 && range.depth > 0) nodes_[node].value = keys[range.begin].second;
      ++range.begin;
    }
    while (range.begin < range.end) {
      const char label = keys[range.begin].first[range.depth];
      const auto leads_on = [&](const auto& key) { return key.first[range.depth] == label; };
      const auto end =
          std::partition_point(keys.begin() + static_cast<std::ptrdiff_t>(range.begin),
                               keys.begin() + static_cast<std::ptrdiff_t>(range.end), leads_on);
      const auto child_end = static_cast<size_t>(end - keys.begin());
      if (node == 0) root_[static_cast<uint8_t>(label)] = static_cast<uint32_t>(ranges.size());
      ranges.push_back({range.begin, child_end, range.depth + 1});
      labels_.push_back(label);
      range.begin = child_end;
    }
  }
  nodes_.push_back({static_cast<uint32_t>(ranges.size()), -1});
}

}  // namespace pergola
