#include "coordinator/text/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

// What an unknown character costs beside the worst token (SentencePiece, kUnkPenalty).
constexpr double kUnknownPenalty = 10.0;
// Each byte of a word may begin a token of this length, so it bounds the work. Published
// vocabularies stay under 100.
constexpr size_t kMaxPieceBytes = 1024;

}  // namespace

absl::StatusOr<Unigram> Unigram::Create(const UnigramParts& parts) {
  if (parts.unknown_id.has_value() &&
      static_cast<size_t>(*parts.unknown_id) >= parts.pieces.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "unk_id is ", *parts.unknown_id, "; the vocabulary has ", parts.pieces.size(), " tokens"));
  }
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < parts.pieces.size(); ++i) {
    const UnigramPiece& piece = parts.pieces[i];
    if (!std::isfinite(piece.score)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the score of token ", i, " is ", piece.score, "; it must be finite"));
    }
    if (piece.spelling.size() > kMaxPieceBytes) {
      return absl::InvalidArgumentError(absl::StrCat("token ", i, " has ", piece.spelling.size(),
                                                     " bytes; the limit is ", kMaxPieceBytes));
    }
    if (piece.in_words) lowest = std::min(lowest, piece.score);
    ids[piece.spelling] = static_cast<int32_t>(i);
  }
  std::vector<std::pair<std::string_view, int32_t>> keys;
  for (const auto& [spelling, id] : ids) {
    if (parts.pieces[id].in_words) keys.emplace_back(ToStd(spelling), id);
  }
  Unigram unigram{Trie(std::move(keys))};
  for (const UnigramPiece& piece : parts.pieces) unigram.scores_.push_back(piece.score);
  unigram.unknown_score_ = lowest - kUnknownPenalty;
  unigram.unknown_id_ = parts.unknown_id;
  unigram.byte_fallback_ = parts.byte_fallback;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(absl::StrFormat("<0x%02X>", byte));
    unigram.fallback_ids_[byte] = found == ids.end() ? -1 : found->second;
  }
  return unigram;
}

absl::Status Unigram::FindBest(std::string_view word, Scratch* scratch) const {
  auto& best = scratch->best;
  best.assign(word.size() + 1, {0, -1, -1});
  for (size_t begin = 0; begin < word.size();) {
    const double so_far = best[begin].score;
    const auto offer = [&](size_t end, double score, int32_t id) {
      if (best[end].begin >= 0 && score <= best[end].score) return;
      best[end] = {score, static_cast<int32_t>(begin), id};
    };
    size_t next = begin;
    NextCodePoint(word, &next);
    bool has_character = false;
    trie_.ForEachPrefix(word.substr(begin), [&](size_t length, int32_t id) {
      offer(begin + length, scores_[id] + so_far, id);
      has_character = has_character || begin + length == next;
    });
    if (!has_character) {
      if (!unknown_id_.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("the text has the character \"",
                         absl::Utf8SafeCHexEscape(ToAbsl(word.substr(begin, next - begin))),
                         "\", for which the tokenizer has no token and no unk_id"));
      }
      offer(next, unknown_score_ + so_far, *unknown_id_);
    }
    begin = next;
  }
  return absl::OkStatus();
}

void Unigram::AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const {
  const auto known = [this](char byte) { return fallback_ids_[static_cast<uint8_t>(byte)] >= 0; };
  if (!byte_fallback_ || !std::all_of(text.begin(), text.end(), known)) {
    ids->push_back(*unknown_id_);
    return;
  }
  for (const char byte : text) ids->push_back(fallback_ids_[static_cast<uint8_t>(byte)]);
}

absl::Status Unigram::Encode(std::string_view word, Scratch* scratch,
                             std::vector<int32_t>* ids) const {
  if (word.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(FindBest(word, scratch));
  const auto& best = scratch->best;
  auto& ends = scratch->path;
  ends.clear();
  for (auto end = static_cast<int32_t>(word.size()); end > 0; end = best[end].begin) {
    ends.push_back(end);
  }
  // Neighbouring unknown characters are one.
  for (size_t i = ends.size(); i > 0; --i) {
    const int32_t id = best[ends[i - 1]].id;
    if (id != unknown_id_) {
      ids->push_back(id);
      continue;
    }
    const int32_t begin = best[ends[i - 1]].begin;
    while (i > 1 && best[ends[i - 2]].id == *unknown_id_) --i;
    AppendUnknown(word.substr(begin, ends[i - 1] - begin), ids);
  }
  return absl::OkStatus();
}

}  // namespace pergola
