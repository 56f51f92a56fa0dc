#include "coordinator/text/bpe.h"

#include <algorithm>
#include <functional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

// Behind the largest code point.
constexpr uint32_t kContinuing = 1U << 21;
constexpr uint32_t kEnd = 1U << 22;
constexpr uint64_t kNoCandidate = UINT64_MAX;  // ranks are below the number of merges

uint64_t PairKey(uint32_t left, uint32_t right) {
  return static_cast<uint64_t>(left) << 32 | right;
}

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(ToAbsl(text)), "\"");
}

bool TakePrefix(std::string_view prefix, std::string_view* text) {
  if (text->substr(0, prefix.size()) != prefix) return false;
  text->remove_prefix(prefix.size());
  return true;
}

bool TakeSuffix(std::string_view suffix, std::string_view* text) {
  if (text->size() < suffix.size() || text->substr(text->size() - suffix.size()) != suffix) {
    return false;
  }
  text->remove_suffix(suffix.size());
  return true;
}

// The code point that is all of `text`, or nothing.
std::optional<char32_t> OnlyCharacter(std::string_view text) {
  if (text.empty()) return std::nullopt;
  size_t end = 0;
  const char32_t character = NextCodePoint(text, &end);
  if (end != text.size()) return std::nullopt;
  return character;
}

// What a token that a word can be made of adds to the word; nothing if it is no such token.
std::optional<std::string> WordOf(const BpeParts& parts, const std::string& spelling) {
  if (parts.words_are_bytes) return BytesOfSpelling(spelling);
  std::string_view word = spelling;
  if (!TakeSuffix(parts.end_suffix, &word)) return std::nullopt;
  return std::string(word);
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Create(const BpeParts& parts) {
  Ids ids;
  ids.reserve(parts.vocabulary.size());
  for (const auto& [spelling, id] : parts.vocabulary) ids.emplace(spelling, id);
  Bpe bpe;
  bpe.words_are_bytes_ = parts.words_are_bytes;
  bpe.ignore_merges_ = parts.ignore_merges;
  bpe.byte_fallback_ = parts.byte_fallback;
  bpe.fuse_unknown_ = parts.fuse_unknown;
  bpe.continuing_prefix_ = parts.continuing_prefix;
  bpe.end_suffix_ = parts.end_suffix;
  RETURN_IF_ERROR(bpe.FindSymbols(parts, ids));
  RETURN_IF_ERROR(bpe.AddMerges(parts, ids));
  bpe.FindJoints(parts, ids);
  bpe.FindWholeWords(parts);
  return bpe;
}

absl::Status Bpe::FindSymbols(const BpeParts& parts, const Ids& ids) {
  small_symbols_.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const char bytes[] = {static_cast<char>(byte)};
    const auto spelled = ids.find(SpellBytes({bytes, 1}));
    if (words_are_bytes_ && spelled != ids.end()) small_symbols_[byte] = spelled->second;
    const auto fallback = ids.find(absl::StrFormat("<0x%02X>", byte));
    fallback_ids_[byte] = fallback == ids.end() ? -1 : fallback->second;
  }
  if (!words_are_bytes_) {
    for (const auto& [spelling, id] : parts.vocabulary) {
      for (const uint32_t flags : {0U, kContinuing, kEnd, kContinuing | kEnd}) {
        std::string_view rest = spelling;
        if ((flags & kContinuing) != 0 &&
            (continuing_prefix_.empty() || !TakePrefix(continuing_prefix_, &rest))) {
          continue;
        }
        if ((flags & kEnd) != 0 && (end_suffix_.empty() || !TakeSuffix(end_suffix_, &rest))) {
          continue;
        }
        const auto character = OnlyCharacter(rest);
        if (!character.has_value()) continue;
        const uint32_t symbol = static_cast<uint32_t>(*character) | flags;
        symbols_.emplace(symbol, id);
        if (symbol < small_symbols_.size()) small_symbols_[symbol] = id;
      }
    }
  }
  if (!parts.unknown_token.has_value()) return absl::OkStatus();
  const auto found = ids.find(*parts.unknown_token);
  if (found == ids.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unk_token ", Quoted(*parts.unknown_token), " is not in the vocabulary"));
  }
  unknown_id_ = found->second;
  return absl::OkStatus();
}

absl::Status Bpe::AddMerges(const BpeParts& parts, const Ids& ids) {
  merges_.reserve(parts.merges.size());
  merged_ids_.resize(parts.merges.size(), -1);
  for (size_t i = 0; i < parts.merges.size(); ++i) {
    const auto& [left, right] = parts.merges[i];
    std::string_view tail = right;
    TakePrefix(continuing_prefix_, &tail);
    const std::string merged = absl::StrCat(left, ToAbsl(tail));
    std::array<int32_t, 3> found{};
    const std::array<const std::string*, 3> spellings = {&left, &right, &merged};
    for (size_t part = 0; part < spellings.size(); ++part) {
      const auto it = ids.find(*spellings[part]);
      if (it == ids.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("merge ", i, " (", Quoted(left), " ", Quoted(right), ") needs the token ",
                         Quoted(*spellings[part]), ", which is not in the vocabulary"));
      }
      found[part] = it->second;
    }
    const uint32_t rank = parts.ranks.empty() ? static_cast<uint32_t>(i) : parts.ranks[i];
    merged_ids_[rank] = found[2];
    merges_[PairKey(static_cast<uint32_t>(found[0]), static_cast<uint32_t>(found[1]))] = {rank,
                                                                                          found[2]};
  }
  return absl::OkStatus();
}

void Bpe::FindJoints(const BpeParts& parts, const Ids& ids) {
  if (!continuing_prefix_.empty() || !end_suffix_.empty()) return;
  absl::flat_hash_set<int32_t> opaque;  // tokens that stand for other symbols than they spell
  if (unknown_id_.has_value()) opaque.insert(*unknown_id_);
  for (const int32_t id : fallback_ids_) {
    if (byte_fallback_ && id >= 0) opaque.insert(id);
  }
  small_joints_.assign(size_t{256} * 256, false);
  for (const auto& [left, right] : parts.merges) {
    for (const std::string* side : {&left, &right}) {
      if (side->empty() || opaque.contains(ids.at(*side))) return;
    }
    size_t left_end = left.size();
    size_t right_end = 0;
    auto before = static_cast<uint32_t>(PreviousCodePoint(left, &left_end));
    auto behind = static_cast<uint32_t>(NextCodePoint(right, &right_end));
    if (words_are_bytes_) {
      // The characters are spellings of bytes; others occur in no word.
      const auto first = BytesOfSpelling(std::string_view(left).substr(left_end));
      const auto second = BytesOfSpelling(std::string_view(right).substr(0, right_end));
      if (!first.has_value() || !second.has_value()) continue;
      before = static_cast<uint8_t>((*first)[0]);
      behind = static_cast<uint8_t>((*second)[0]);
    }
    if (before < 256 && behind < 256) {
      small_joints_[before << 8 | behind] = true;
    } else {
      joints_.insert(PairKey(before, behind));
    }
  }
  has_joints_ = true;
  const bool all_bytes = words_are_bytes_ && std::find(small_symbols_.begin(), small_symbols_.end(),
                                                       -1) == small_symbols_.end();
  vanishing_ = !unknown_id_.has_value() && !all_bytes;
}

void Bpe::FindWholeWords(const BpeParts& parts) {
  Scratch scratch;
  std::vector<int32_t> ids;
  for (const auto& [spelling, id] : parts.vocabulary) {
    std::optional<std::string> word =
        ignore_merges_ && !words_are_bytes_ ? spelling : WordOf(parts, spelling);
    if (!word.has_value() || word->empty()) continue;
    ids.clear();
    if (!ignore_merges_) EncodePart(*word, 0, word->size(), &scratch, &ids);
    // The unknown token is what unknown symbols make, which join those around them.
    if (!ignore_merges_ && unknown_id_ == id) continue;
    if (ignore_merges_ || (ids.size() == 1 && ids[0] == id)) {
      whole_words_.emplace(*std::move(word), id);
    }
  }
}

void Bpe::Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  const auto whole = whole_words_.find(ToAbsl(word));
  if (whole != whole_words_.end()) {
    ids->push_back(whole->second);
    return;
  }
  scratch->pending_unknown = false;
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = EndOfPart(word, begin);
    const int32_t known = KnownPart(word, begin, end);
    if (known >= 0) {
      if (scratch->pending_unknown) ids->push_back(*unknown_id_);
      scratch->pending_unknown = false;
      ids->push_back(known);
    } else {
      EncodePart(word, begin, end, scratch, ids);
    }
    begin = end;
  }
}

int32_t Bpe::KnownPart(std::string_view word, size_t begin, size_t end) const {
  if (!has_joints_) return -1;  // affixes may hang on it, and it is the whole word anyway
  size_t position = begin;
  const uint32_t symbol = NextSymbol(word, &position);
  if (position == end) return IdOf(symbol);
  if (ignore_merges_ || end - begin == word.size()) return -1;
  const auto whole = whole_words_.find(ToAbsl(word.substr(begin, end - begin)));
  return whole == whole_words_.end() ? -1 : whole->second;
}

uint32_t Bpe::NextSymbol(std::string_view word, size_t* position) const {
  if (words_are_bytes_) return static_cast<uint8_t>(word[(*position)++]);
  return static_cast<uint32_t>(NextCodePoint(word, position));
}

int32_t Bpe::IdOf(uint32_t symbol) const {
  if (symbol < small_symbols_.size()) return small_symbols_[symbol];
  const auto found = symbols_.find(symbol);
  return found == symbols_.end() ? -1 : found->second;
}

size_t Bpe::EndOfPart(std::string_view word, size_t begin) const {
  if (!has_joints_) return word.size();
  size_t position = begin;
  uint32_t before = NextSymbol(word, &position);
  while (position < word.size()) {
    const size_t end = position;
    const uint32_t behind = NextSymbol(word, &position);
    // The neighbours of what vanishes become neighbours.
    if (vanishing_ && IdOf(behind) < 0) continue;
    if (vanishing_ && IdOf(before) < 0) {
      before = behind;
      continue;
    }
    const bool joined = before < 256 && behind < 256 ? small_joints_[before << 8 | behind]
                                                     : joints_.contains(PairKey(before, behind));
    if (!joined) return end;
    before = behind;
  }
  return word.size();
}

void Bpe::EncodePart(std::string_view word, size_t begin, size_t end, Scratch* scratch,
                     std::vector<int32_t>* ids) const {
  StartSymbols(word, begin, end, scratch);
  if (scratch->symbols.empty()) return;
  if (scratch->symbols.size() > 1) MergeAll(scratch);
  for (int32_t i = 0; i >= 0; i = scratch->symbols[i].next) ids->push_back(scratch->symbols[i].id);
}

void Bpe::StartSymbols(std::string_view word, size_t begin, size_t end, Scratch* scratch) const {
  auto& symbols = scratch->symbols;
  symbols.clear();
  const auto push = [&symbols](int32_t id) {
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  };
  for (size_t position = begin; position < end;) {
    const bool first = position == 0;
    uint32_t symbol = NextSymbol(word, &position);
    const bool last = position == word.size();
    if (!first && !continuing_prefix_.empty()) symbol |= kContinuing;
    if (last && !end_suffix_.empty()) symbol |= kEnd;
    const int32_t id = IdOf(symbol);
    if (id >= 0) {
      if (scratch->pending_unknown) push(*unknown_id_);
      scratch->pending_unknown = false;
      push(id);
      continue;
    }
    // Hugging Face's order: bytes come before an unknown token that is still owed.
    if (byte_fallback_ && PushFallback(symbol, first, last, scratch)) continue;
    if (!unknown_id_.has_value()) continue;
    if (scratch->pending_unknown && !fuse_unknown_) push(*unknown_id_);
    scratch->pending_unknown = true;
  }
  if (end == word.size() && scratch->pending_unknown) {
    push(*unknown_id_);
    scratch->pending_unknown = false;
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

bool Bpe::PushFallback(uint32_t symbol, bool first, bool last, Scratch* scratch) const {
  std::string spelling = first ? "" : continuing_prefix_;
  AppendCodePoint(symbol & (kContinuing - 1), &spelling);
  if (last) spelling += end_suffix_;
  for (const char byte : spelling) {
    if (fallback_ids_[static_cast<uint8_t>(byte)] < 0) return false;
  }
  for (const char byte : spelling) {
    const auto index = static_cast<int32_t>(scratch->symbols.size());
    scratch->symbols.push_back({fallback_ids_[static_cast<uint8_t>(byte)], index - 1, index + 1});
  }
  return true;
}

uint64_t Bpe::CandidateAt(const Scratch& scratch, int32_t left) const {
  const Scratch::Symbol& symbol = scratch.symbols[left];
  if (symbol.next < 0) return kNoCandidate;
  const auto merge = merges_.find(PairKey(static_cast<uint32_t>(symbol.id),
                                          static_cast<uint32_t>(scratch.symbols[symbol.next].id)));
  if (merge == merges_.end()) return kNoCandidate;
  return static_cast<uint64_t>(merge->second.rank) << 32 | static_cast<uint32_t>(left);
}

uint64_t Bpe::PopCandidate(Scratch* scratch) const {
  auto& heap = scratch->heap;
  const auto& first = scratch->first;
  const uint64_t early =
      scratch->next_first < first.size() ? first[scratch->next_first] : kNoCandidate;
  if (heap.empty() || early < heap.front()) {
    ++scratch->next_first;
    return early;
  }
  const uint64_t best = heap.front();
  std::pop_heap(heap.begin(), heap.end(), std::greater<>());
  heap.pop_back();
  return best;
}

void Bpe::MergeAll(Scratch* scratch) const {
  auto& symbols = scratch->symbols;
  scratch->heap.clear();
  scratch->first.clear();
  scratch->next_first = 0;
  for (size_t i = 0; i < symbols.size(); ++i) {
    const uint64_t candidate = CandidateAt(*scratch, static_cast<int32_t>(i));
    if (candidate != kNoCandidate) scratch->first.push_back(candidate);
  }
  if (!std::is_sorted(scratch->first.begin(), scratch->first.end())) {
    std::sort(scratch->first.begin(), scratch->first.end());
  }
  const auto push = [&](int32_t left) {
    const uint64_t candidate = CandidateAt(*scratch, left);
    if (candidate == kNoCandidate) return;
    scratch->heap.push_back(candidate);
    std::push_heap(scratch->heap.begin(), scratch->heap.end(), std::greater<>());
  };
  for (uint64_t best; (best = PopCandidate(scratch)) != kNoCandidate;) {
    const auto rank = static_cast<uint32_t>(best >> 32);
    const auto position = static_cast<int32_t>(best & UINT32_MAX);
    Scratch::Symbol& left = symbols[position];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    // Either neighbour may have changed since; what counts is that the pair still makes the same
    // token.
    const auto merge =
        merges_.find(PairKey(static_cast<uint32_t>(left.id), static_cast<uint32_t>(right.id)));
    if (merge == merges_.end()) continue;
    if (merge->second.rank != rank && merge->second.id != merged_ids_[rank]) continue;
    left.id = merge->second.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = position;
    if (left.previous >= 0) push(left.previous);
    push(position);
  }
}

}  // namespace pergola
