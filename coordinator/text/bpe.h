// Byte-pair encoding of one word: start from single symbols, always merge the neighbours whose
// merge has the lowest rank. O(n log n) in the word. Not for splitting text into words
// (pre_tokenizer.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pergola {

struct BpeParts {
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // spelling, id; both unique
  std::vector<std::pair<std::string, std::string>> merges;  // spellings, by rank
  // By merge, where some are equal: of equal ranks the leftmost pair merges first. Below the number
  // of merges. Empty: the merge's own number.
  std::vector<uint32_t> ranks;
  // What words are: raw bytes, which the vocabulary spells in GPT-2's alphabet, or text.
  bool words_are_bytes = true;
  bool ignore_merges = false;  // a word that is a token needs no merges
  // A character without a token becomes the tokens <0x00> to <0xFF> of its bytes, if all are there.
  bool byte_fallback = false;  // only for words of text
  std::optional<std::string>
      unknown_token;              // for other symbols without a token; unset: they vanish
  bool fuse_unknown = false;      // neighbouring unknown symbols make one unknown token
  std::string continuing_prefix;  // spelled before every symbol but a word's first; words of text
  std::string end_suffix;         // spelled behind a word's last symbol; words of text
};

// Immutable; shared by threads.
class Bpe {
 public:
  // Working memory of one thread, kept between words.
  class Scratch {
   private:
    friend class Bpe;
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // -1: none; a merged symbol has id -1
    };
    std::vector<Symbol> symbols;
    // Candidates, as rank << 32 | left symbol, so that the smallest is the lowest rank, the
    // leftmost of equals: those at the start in order, in long words of few kinds as they come, and
    // the later ones as a heap.
    std::vector<uint64_t> first;
    size_t next_first = 0;
    std::vector<uint64_t> heap;
    bool pending_unknown = false;  // an unknown token is owed before the next known symbol
  };

  // INVALID_ARGUMENT naming the merge or token that does not fit.
  static absl::StatusOr<Bpe> Create(const BpeParts& parts);

  // Appends the ids of `word`: raw bytes or valid UTF-8, as words_are_bytes says.
  void Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 private:
  using Ids = absl::flat_hash_map<absl::string_view, int32_t>;
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  absl::Status FindSymbols(const BpeParts& parts, const Ids& ids);
  absl::Status AddMerges(const BpeParts& parts, const Ids& ids);
  void FindJoints(const BpeParts& parts, const Ids& ids);
  void FindWholeWords(const BpeParts& parts);
  // The symbol that starts at `*position`, which moves behind it.
  uint32_t NextSymbol(std::string_view word, size_t* position) const;
  // The token of a symbol by itself, or -1.
  int32_t IdOf(uint32_t symbol) const;
  // The end of the part of `word` from `begin` that no merge leaves.
  size_t EndOfPart(std::string_view word, size_t begin) const;
  // The one token of such a part, or -1 if it takes work to find out.
  int32_t KnownPart(std::string_view word, size_t begin, size_t end) const;
  void EncodePart(std::string_view word, size_t begin, size_t end, Scratch* scratch,
                  std::vector<int32_t>* ids) const;
  void StartSymbols(std::string_view word, size_t begin, size_t end, Scratch* scratch) const;
  bool PushFallback(uint32_t symbol, bool first, bool last, Scratch* scratch) const;
  // The merge of a symbol with its right neighbour, if there is one.
  uint64_t CandidateAt(const Scratch& scratch, int32_t left) const;
  uint64_t PopCandidate(Scratch* scratch) const;
  void MergeAll(Scratch* scratch) const;

  bool words_are_bytes_ = true;
  bool ignore_merges_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  std::string continuing_prefix_, end_suffix_;
  std::optional<int32_t> unknown_id_;
  // A symbol is a byte or a code point; flags in it say which affixes it was spelled with.
  std::array<int32_t, 256> small_symbols_{};  // -1: no token
  absl::flat_hash_map<uint32_t, int32_t> symbols_;
  std::array<int32_t, 256> fallback_ids_{};  // <0x00> to <0xFF>; -1: no token

  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id << 32 | right id)
  std::vector<int32_t> merged_ids_;              // by rank
  // Pairs of neighbouring symbols that some merge joins: between all others a word may be cut,
  // which makes most parts whole tokens and heaps small. Not used if a merge's tokens do not show
  // their symbols.
  bool has_joints_ = false;
  bool vanishing_ = false;          // symbols without a token may leave nothing
  std::vector<bool> small_joints_;  // by (left << 8 | right)
  absl::flat_hash_set<uint64_t> joints_;
  // Words whose encoding is one token: most words of most texts.
  absl::flat_hash_map<std::string, int32_t> whole_words_;
};

}  // namespace pergola
