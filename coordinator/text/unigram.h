// Unigram language model encoding of one word: of all ways to write the word as tokens the one of
// the highest total score (Kudo, "Subword Regularization", ACL 2018, section 3.1), found by
// Viterbi's algorithm. Linear in the word. Ties and unknown characters are Hugging Face's.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/trie.h"

namespace pergola {

struct UnigramPiece {
  std::string spelling;
  double score = 0;
  bool in_words = true;  // false: only an id, never found in a word
};

struct UnigramParts {
  std::vector<UnigramPiece> pieces;  // by id; of equal spellings the last counts
  std::optional<int32_t> unknown_id;
  bool byte_fallback = false;  // unknown text becomes the tokens <0x00> to <0xFF>, if all are there
};

// Immutable; shared by threads.
class Unigram {
 public:
  // Working memory of one thread, kept between words.
  class Scratch {
   private:
    friend class Unigram;
    struct Best {
      double score;
      int32_t begin;  // -1: not reached
      int32_t id;
    };
    std::vector<Best> best;  // by byte where a token may end
    std::vector<int32_t> path;
  };

  // INVALID_ARGUMENT naming the piece or value that does not fit.
  static absl::StatusOr<Unigram> Create(const UnigramParts& parts);

  // Appends the ids of `word` (valid UTF-8). INVALID_ARGUMENT if it has an unknown character and
  // the model no token for those.
  absl::Status Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 private:
  explicit Unigram(Trie trie) : trie_(std::move(trie)) {}
  absl::Status FindBest(std::string_view word, Scratch* scratch) const;
  void AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const;

  Trie trie_;
  std::vector<double> scores_;  // by id
  double unknown_score_ = 0;
  std::optional<int32_t> unknown_id_;
  bool byte_fallback_ = false;
  std::array<int32_t, 256> fallback_ids_{};  // -1: no token
};

}  // namespace pergola
