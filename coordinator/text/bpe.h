// Byte-pair encoding of one word over a byte-level vocabulary: start from single bytes, always
// merge the neighbours whose merge has the lowest rank. O(n log n) in the word. Not for splitting
// text into words (pre_tokenizer.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pergola {

struct BpeParts {
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // spelling, id; both unique
  std::vector<std::pair<std::string, std::string>> merges;  // spellings, by rank
  bool ignore_merges = false;                // a word that is a token needs no merges
  std::optional<std::string> unknown_token;  // for bytes without a token; unset: such bytes vanish
  bool fuse_unknown = false;                 // neighbouring unknown bytes make one unknown token
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
    struct Candidate {
      uint32_t rank;
      int32_t left;  // symbol
      int32_t merged_id;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // INVALID_ARGUMENT naming the merge or token that does not fit.
  static absl::StatusOr<Bpe> Create(const BpeParts& parts);

  // Appends the ids of `word`, raw bytes of at most kMaxTextBytes * 3 (a normal form may have grown
  // it).
  void Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  absl::Status AddMerges(const BpeParts& parts,
                         const absl::flat_hash_map<absl::string_view, int32_t>& ids);
  void FindWholeWords(const BpeParts& parts);
  void EncodeByMerging(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;
  void StartSymbols(std::string_view word, Scratch* scratch) const;
  void PushCandidate(Scratch* scratch, int32_t left) const;
  void MergeAll(Scratch* scratch) const;

  std::array<int32_t, 256> byte_ids_{};  // -1: no token
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id << 32 | right id)
  // Words, as raw bytes, whose encoding is one token: most words of most texts.
  absl::flat_hash_map<std::string, int32_t> whole_words_;
};

}  // namespace pergola
