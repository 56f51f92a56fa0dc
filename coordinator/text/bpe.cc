#include "coordinator/text/bpe.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "base/status.h"
#include "coordinator/text/byte_level.h"

namespace pergola {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(ToAbsl(text)), "\"");
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Create(const BpeParts& parts) {
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  ids.reserve(parts.vocabulary.size());
  for (const auto& [spelling, id] : parts.vocabulary) ids.emplace(spelling, id);
  Bpe bpe;
  for (int byte = 0; byte < 256; ++byte) {
    const char bytes[] = {static_cast<char>(byte)};
    const auto found = ids.find(SpellBytes({bytes, 1}));
    bpe.byte_ids_[byte] = found == ids.end() ? -1 : found->second;
  }
  if (parts.unknown_token.has_value()) {
    const auto found = ids.find(*parts.unknown_token);
    if (found == ids.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("unk_token ", Quoted(*parts.unknown_token), " is not in the vocabulary"));
    }
    bpe.unknown_id_ = found->second;
  }
  bpe.fuse_unknown_ = parts.fuse_unknown;
  RETURN_IF_ERROR(bpe.AddMerges(parts, ids));
  bpe.FindWholeWords(parts);
  return bpe;
}

absl::Status Bpe::AddMerges(const BpeParts& parts,
                            const absl::flat_hash_map<absl::string_view, int32_t>& ids) {
  merges_.reserve(parts.merges.size());
  for (size_t rank = 0; rank < parts.merges.size(); ++rank) {
    const auto& [left, right] = parts.merges[rank];
    const std::string merged = absl::StrCat(left, right);
    std::array<int32_t, 3> found{};
    const std::array<const std::string*, 3> spellings = {&left, &right, &merged};
    for (size_t i = 0; i < spellings.size(); ++i) {
      const auto it = ids.find(*spellings[i]);
      if (it == ids.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "merge ", rank, " (", Quoted(left), " ", Quoted(right), ") needs the token ",
            Quoted(*spellings[i]), ", which is not in the vocabulary"));
      }
      found[i] = it->second;
    }
    merges_[PairKey(found[0], found[1])] = {static_cast<uint32_t>(rank), found[2]};
  }
  return absl::OkStatus();
}

void Bpe::FindWholeWords(const BpeParts& parts) {
  Scratch scratch;
  std::vector<int32_t> ids;
  for (const auto& [spelling, id] : parts.vocabulary) {
    std::optional<std::string> bytes = BytesOfSpelling(spelling);
    if (!bytes.has_value() || bytes->empty()) continue;
    ids.clear();
    if (!parts.ignore_merges) EncodeByMerging(*bytes, &scratch, &ids);
    if (parts.ignore_merges || (ids.size() == 1 && ids[0] == id)) {
      whole_words_.emplace(*std::move(bytes), id);
    }
  }
}

void Bpe::Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  const auto found = whole_words_.find(ToAbsl(word));
  if (found != whole_words_.end()) {
    ids->push_back(found->second);
  } else {
    EncodeByMerging(word, scratch, ids);
  }
}

void Bpe::EncodeByMerging(std::string_view word, Scratch* scratch,
                          std::vector<int32_t>* ids) const {
  StartSymbols(word, scratch);
  if (scratch->symbols.empty()) return;
  MergeAll(scratch);
  for (int32_t i = 0; i >= 0; i = scratch->symbols[i].next) ids->push_back(scratch->symbols[i].id);
}

void Bpe::StartSymbols(std::string_view word, Scratch* scratch) const {
  auto& symbols = scratch->symbols;
  symbols.clear();
  bool after_unknown = false;
  for (const char byte : word) {
    int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    const bool unknown = id < 0;
    if (unknown) {
      if (!unknown_id_.has_value() || (after_unknown && fuse_unknown_)) continue;
      id = *unknown_id_;
    }
    after_unknown = unknown;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

void Bpe::PushCandidate(Scratch* scratch, int32_t left) const {
  const Scratch::Symbol& symbol = scratch->symbols[left];
  if (symbol.next < 0) return;
  const auto merge = merges_.find(PairKey(symbol.id, scratch->symbols[symbol.next].id));
  if (merge == merges_.end()) return;
  scratch->heap.push_back({merge->second.rank, left, merge->second.id});
}

void Bpe::MergeAll(Scratch* scratch) const {
  // The heap's top is the lowest rank, the leftmost among equals.
  const auto after = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  auto& heap = scratch->heap;
  auto& symbols = scratch->symbols;
  heap.clear();
  for (size_t i = 0; i < symbols.size(); ++i) PushCandidate(scratch, static_cast<int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), after);
  const auto push = [&](int32_t left) {
    const size_t before = heap.size();
    PushCandidate(scratch, left);
    if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), after);
  };
  while (!heap.empty()) {
    const Scratch::Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end(), after);
    heap.pop_back();
    Scratch::Symbol& left = symbols[best.left];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    // Either neighbour may have changed since; what counts is that the pair still makes the same
    // token.
    const auto merge = merges_.find(PairKey(left.id, right.id));
    if (merge == merges_.end() || merge->second.id != best.merged_id) continue;
    left.id = best.merged_id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    if (left.previous >= 0) push(left.previous);
    push(best.left);
  }
}

}  // namespace pergola
