// A sequence's text, token by token. Ids become valid UTF-8 first; stop strings are then looked
// for in that text, by an automaton of all of them (Aho and Corasick, CACM 18(6), 1975). Its depth
// is the length of the longest suffix that could be the beginning of a stop string: exactly what is
// held back. O(1) per byte, amortized.
#include <algorithm>

#include "coordinator/text/tokenizer.h"

namespace pergola {
namespace {

// Finds the first place where a stop string ends; of several that end there, the longest.
class StopAutomaton {
 public:
  // Empty strings and such that are not valid UTF-8 never match.
  explicit StopAutomaton(std::vector<std::string> strings) : strings_(std::move(strings)) {
    nodes_.emplace_back();
    for (size_t i = 0; i < strings_.size(); ++i) {
      if (!strings_[i].empty() && FindInvalidUtf8(strings_[i]) < 0) Insert(i);
    }
    Link();
  }

  // True if a stop string ends with `byte`.
  bool Step(char byte) {
    node_ = Follow(node_, byte);
    return nodes_[node_].match >= 0;
  }
  size_t depth() const { return nodes_[node_].depth; }
  // After Step returned true.
  const std::string& matched() const { return strings_[nodes_[node_].match]; }

 private:
  struct Node {
    char byte = 0;
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t failure = 0;  // the node of the longest proper suffix
    int32_t match = -1;   // the longest string that ends here
    uint32_t depth = 0;
  };

  int32_t Child(int32_t node, char byte) const {
    int32_t child = nodes_[node].first_child;
    while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
    return child;
  }

  int32_t Follow(int32_t node, char byte) const {
    for (;; node = nodes_[node].failure) {
      const int32_t child = Child(node, byte);
      if (child >= 0) return child;
      if (node == 0) return 0;
    }
  }

  void Insert(size_t index) {
    int32_t node = 0;
    for (const char byte : strings_[index]) {
      int32_t child = Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        Node added;
        added.byte = byte;
        added.next_sibling = nodes_[node].first_child;
        added.depth = nodes_[node].depth + 1;
        nodes_.push_back(added);
        nodes_[node].first_child = child;
      }
      node = child;
    }
    nodes_[node].match = static_cast<int32_t>(index);
  }

  // Breadth first, so that every shorter suffix is ready before it is needed.
  void Link() {
    std::vector<int32_t> queue = {0};
    for (size_t i = 0; i < queue.size(); ++i) {
      const int32_t node = queue[i];
      for (int32_t child = nodes_[node].first_child; child >= 0;
           child = nodes_[child].next_sibling) {
        queue.push_back(child);
        if (node == 0) continue;
        const int32_t failure = Follow(nodes_[node].failure, nodes_[child].byte);
        nodes_[child].failure = failure;
        if (nodes_[child].match < 0) nodes_[child].match = nodes_[failure].match;
      }
    }
  }

  std::vector<std::string> strings_;
  std::vector<Node> nodes_;
  int32_t node_ = 0;
};

class TokenTextStream final : public TextStream {
 public:
  TokenTextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings)
      : decoder_(tokenizer.NewDecoder(/*skip_special_tokens=*/true)),
        stops_(std::move(stop_strings)) {}

  Delta Push(int32_t id) override {
    if (ended_) return {};
    std::string text;
    decoder_->Push(id, &text);
    return Match(text);
  }

  std::string Flush() override {
    if (ended_) return {};
    std::string text;
    decoder_->Finish(&text);
    // A stop string that ends in U+FFFD may be complete only now.
    Delta delta = Match(text);
    if (ended_) return delta.text;
    ended_ = true;
    return delta.text + held_;
  }

 private:
  // `text`: whole characters that follow all earlier ones.
  Delta Match(const std::string& text) {
    Delta delta;
    for (size_t i = 0; i < text.size(); ++i) {
      if (!stops_.Step(text[i])) continue;
      held_.append(text, 0, i + 1);
      held_.resize(held_.size() - stops_.matched().size());
      delta = {std::move(held_), /*stopped=*/true, stops_.matched()};
      held_.clear();
      ended_ = true;
      return delta;
    }
    held_ += text;
    const size_t safe = held_.size() - stops_.depth();
    delta.text = held_.substr(0, safe);
    held_.erase(0, safe);
    return delta;
  }

  std::unique_ptr<IncrementalDecoder> decoder_;
  StopAutomaton stops_;
  std::string held_;  // never longer than the longest stop string between calls
  bool ended_ = false;
};

}  // namespace

std::unique_ptr<TextStream> MakeTextStream(const Tokenizer& tokenizer,
                                           std::vector<std::string> stop_strings) {
  return std::make_unique<TokenTextStream>(tokenizer, std::move(stop_strings));
}

}  // namespace pergola
