// The GGUF side: byte-level BPE ("gpt2") whose pre-tokenizer is only named, SentencePiece's BPE
// ("llama", "gemma4") and unigram ("t5"). Where llama.cpp and the published tokenizer.json differ,
// the published file is right.
#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/text/gguf_pre_tokenizers.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

constexpr size_t kMaxPieceBytes = 1024;  // published tokens stay under 100
// What the merges of a vocabulary of scores take, as a multiple of its own bytes: published ones
// take 5 times as much. A file of "a", "aa", "aaa" ... has a merge for each way to part each of
// them.
constexpr size_t kMaxMergeGrowth = 32;
constexpr size_t kFreeMergeBytes = 1 << 20;
constexpr char kMetaspace[] = "\xE2\x96\x81";  // U+2581 stands for a space

// llama.cpp's token types.
enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };

int32_t TypeOf(const GgufVocabulary& vocabulary, size_t id) {
  return vocabulary.token_types.empty() ? kNormal : vocabulary.token_types[id];
}

absl::Status CheckTokens(const GgufVocabulary& vocabulary) {
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > kMaxVocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.ggml.tokens has ", count, " tokens; the limits are 1 and ", kMaxVocabulary));
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type has ",
                                                   vocabulary.token_types.size(), " entries for ",
                                                   count, " tokens"));
  }
  for (size_t i = 0; i < count; ++i) {
    if (FindInvalidUtf8(vocabulary.tokens[i]) >= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml.tokens[", i, "] is not valid UTF-8"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const GgufVocabulary& vocabulary, size_t id) {
  if (vocabulary.tokens[id].size() <= kMaxPieceBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.tokens[", id, "] has ",
                                                 vocabulary.tokens[id].size(),
                                                 " bytes; the limit is ", kMaxPieceBytes));
}

// SentencePiece vocabularies: a finite score for each token, and none so long that the ways to part
// it are many.
absl::Status CheckScores(const GgufVocabulary& vocabulary) {
  if (vocabulary.scores.size() != vocabulary.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.scores has ",
                                                   vocabulary.scores.size(), " entries for ",
                                                   vocabulary.tokens.size(), " tokens"));
  }
  for (size_t i = 0; i < vocabulary.scores.size(); ++i) {
    RETURN_IF_ERROR(CheckLength(vocabulary, i));
    if (std::isfinite(vocabulary.scores[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.scores[", i, "] is ",
                                                   vocabulary.scores[i], "; it must be finite"));
  }
  return absl::OkStatus();
}

// The spellings of a BPE, and which tokens are found in text before everything else: at every place
// of it, so that they must not be long.
absl::Status ReadBpeTokens(const GgufVocabulary& vocabulary, BpeParts* bpe, TokenizerParts* parts) {
  absl::flat_hash_set<absl::string_view> seen;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& spelling = vocabulary.tokens[i];
    const auto id = static_cast<int32_t>(i);
    // Padded vocabularies repeat filler tokens; the first one is the token.
    if (!seen.insert(spelling).second) continue;
    bpe->vocabulary.emplace_back(spelling, id);
    const int32_t type = TypeOf(vocabulary, i);
    if ((type == kUnknown || type == kControl || type == kUserDefined) && !spelling.empty()) {
      RETURN_IF_ERROR(CheckLength(vocabulary, i));
      AddedToken token;
      token.id = id;
      token.content = spelling;
      token.special = type != kUserDefined;
      parts->added_tokens.push_back(std::move(token));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const GgufVocabulary& vocabulary, BpeParts* bpe) {
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string& text = vocabulary.merges[i];
    // A part may begin with a space itself, so the first byte does not part them.
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos || text.find(' ', space + 2) != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges[", i, "] is \"",
                                                     absl::Utf8SafeCHexEscape(text.substr(0, 80)),
                                                     "\"; it must be \"LEFT RIGHT\""));
    }
    bpe->merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return absl::OkStatus();
}

// Adds `id` to `ids` if the file asks for it. `add` and `name` are those of its tokenizer.ggml
// field.
absl::Status AddBoundaryToken(bool add, std::optional<int32_t> id, size_t token_count,
                              const char* name, std::vector<int32_t>* ids) {
  if (!add) return absl::OkStatus();
  if (!id.has_value() || *id < 0 || static_cast<size_t>(*id) >= token_count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.ggml.", name, " is ", id.has_value() ? absl::StrCat(*id) : "missing",
        "; it must be an id from 0 to ", token_count - 1));
  }
  ids->push_back(*id);
  return absl::OkStatus();
}

// The tokens before and behind the text, unless the file says otherwise as given.
absl::Status ReadBoundaryTokens(const GgufVocabulary& vocabulary, bool add_bos, bool add_eos,
                                TokenizerParts* parts) {
  const size_t count = vocabulary.tokens.size();
  RETURN_IF_ERROR(AddBoundaryToken(vocabulary.add_bos.value_or(add_bos), vocabulary.bos_id, count,
                                   "bos_token_id", &parts->prefix_ids));
  return AddBoundaryToken(vocabulary.add_eos.value_or(add_eos), vocabulary.eos_id, count,
                          "eos_token_id", &parts->suffix_ids);
}

DecoderStep DecoderOf(DecoderStep::Kind kind) {
  DecoderStep step;
  step.kind = kind;
  return step;
}

absl::StatusOr<TokenizerParts> ReadByteLevel(const GgufVocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const auto* definition, FindGgufPreTokenizer(vocabulary.pre));
  TokenizerParts parts;
  auto& bpe = parts.model.emplace<BpeParts>();
  if (definition->nfc) parts.normalizer.emplace_back().form = NormalForm::kNfc;
  auto& steps = parts.pre_tokenizer;
  if (definition->individual_digits) steps.push_back(DigitsStep(true));
  if (definition->falcon) {
    steps.push_back(CharactersStep(IsPunctuation, SplitBehavior::kContiguous));
  }
  for (const char* pattern : definition->patterns) {
    ASSIGN_OR_RETURN(SplitStep split,
                     RegexStep(pattern, SplitBehavior::kIsolated, /*invert=*/false));
    steps.push_back(std::move(split));
  }
  if (definition->falcon) {
    bpe.words_are_bytes = false;
    steps.push_back(StepOfKind(SplitStep::Kind::kSpellBytes));
    steps.push_back(DigitsStep(false));
    ASSIGN_OR_RETURN(SplitStep threes,
                     RegexStep("[0-9][0-9][0-9]", SplitBehavior::kIsolated, /*invert=*/false));
    steps.push_back(std::move(threes));
  }
  RETURN_IF_ERROR(ReadBpeTokens(vocabulary, &bpe, &parts));
  RETURN_IF_ERROR(ReadMerges(vocabulary, &bpe));
  bpe.ignore_merges = definition->ignore_merges;
  parts.decoder.push_back(DecoderOf(DecoderStep::Kind::kByteLevel));
  RETURN_IF_ERROR(ReadBoundaryTokens(vocabulary, definition->add_bos, false, &parts));
  return parts;
}

// SentencePiece merges any two neighbours whose text together is a token, that of the highest score
// first: a merge for each way to part each token, ranked by the score of what it makes.
absl::Status MergesFromScores(const GgufVocabulary& vocabulary, BpeParts* bpe) {
  absl::flat_hash_set<absl::string_view> mergeable;
  std::vector<int32_t> ids;
  for (const auto& [spelling, id] : bpe->vocabulary) {
    const int32_t type = TypeOf(vocabulary, id);
    if (type == kUnknown || type == kControl || type == kByte) continue;
    mergeable.insert(spelling);
    ids.push_back(id);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return vocabulary.scores[a] > vocabulary.scores[b];
  });
  size_t room = kFreeMergeBytes;
  for (const int32_t id : ids) room += kMaxMergeGrowth * vocabulary.tokens[id].size();
  uint32_t rank = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const absl::string_view spelling = vocabulary.tokens[ids[i]];
    if (i > 0 && vocabulary.scores[ids[i]] != vocabulary.scores[ids[i - 1]]) {
      rank = static_cast<uint32_t>(bpe->merges.size());
    }
    for (size_t cut = 1; cut < spelling.size(); ++cut) {
      const absl::string_view left = spelling.substr(0, cut);
      const absl::string_view right = spelling.substr(cut);
      if (!mergeable.contains(left) || !mergeable.contains(right)) continue;
      if (room < spelling.size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tokenizer.ggml.tokens can be merged in more than ", bpe->merges.size(),
            " ways, which take more than ", kMaxMergeGrowth, " times the bytes of the tokens"));
      }
      room -= spelling.size();
      bpe->merges.emplace_back(left, right);
      bpe->ranks.push_back(rank);
    }
  }
  return absl::OkStatus();
}

void AddSpaceReplacement(TokenizerParts* parts) {
  auto& step = parts->normalizer.emplace_back();
  step.kind = NormalizerStep::Kind::kReplace;
  step.pattern = Pattern::OfString(" ");
  step.content = kMetaspace;
}

// Spaces are back, bytes make characters, and the space that was put before the text goes.
void AddSentencePieceDecoder(bool strip_first_space, TokenizerParts* parts) {
  auto& replace = parts->decoder.emplace_back();
  replace.kind = DecoderStep::Kind::kReplace;
  replace.pattern = Pattern::OfString(kMetaspace);
  replace.content = " ";
  parts->decoder.push_back(DecoderOf(DecoderStep::Kind::kByteFallback));
  parts->decoder.push_back(DecoderOf(DecoderStep::Kind::kFuse));
  if (!strip_first_space) return;
  auto& strip = parts->decoder.emplace_back();
  strip.kind = DecoderStep::Kind::kStrip;
  strip.content = " ";
  strip.start = 1;
}

absl::StatusOr<TokenizerParts> ReadSentencePieceBpe(const GgufVocabulary& vocabulary,
                                                    bool has_merges) {
  TokenizerParts parts;
  auto& bpe = parts.model.emplace<BpeParts>();
  const bool prefix = vocabulary.add_space_prefix.value_or(!has_merges);
  if (prefix) {
    auto& prepend = parts.normalizer.emplace_back();
    prepend.kind = NormalizerStep::Kind::kPrepend;
    prepend.content = kMetaspace;
  }
  AddSpaceReplacement(&parts);
  bpe.words_are_bytes = false;
  bpe.byte_fallback = true;
  bpe.fuse_unknown = true;
  RETURN_IF_ERROR(ReadBpeTokens(vocabulary, &bpe, &parts));
  const auto unknown = vocabulary.unknown_id;
  if (unknown.has_value() && *unknown >= 0 &&
      static_cast<size_t>(*unknown) < vocabulary.tokens.size()) {
    bpe.unknown_token = vocabulary.tokens[*unknown];
  }
  if (has_merges) {
    RETURN_IF_ERROR(ReadMerges(vocabulary, &bpe));
  } else {
    RETURN_IF_ERROR(CheckScores(vocabulary));
    RETURN_IF_ERROR(MergesFromScores(vocabulary, &bpe));
  }
  AddSentencePieceDecoder(prefix, &parts);
  RETURN_IF_ERROR(ReadBoundaryTokens(vocabulary, /*add_bos=*/true, /*add_eos=*/false, &parts));
  return parts;
}

absl::Status AddUnigramNormalizer(const GgufVocabulary& vocabulary, TokenizerParts* parts) {
  if (!vocabulary.charsmap.empty()) {
    absl::StatusOr<Charsmap> map = Charsmap::Create(vocabulary.charsmap);
    if (!map.ok()) return Prefixed(map.status(), "tokenizer.ggml.precompiled_charsmap");
    auto& step = parts->normalizer.emplace_back();
    step.kind = NormalizerStep::Kind::kCharsmap;
    step.charsmap = std::make_unique<const Charsmap>(*std::move(map));
  }
  if (!vocabulary.remove_extra_spaces.value_or(false)) return absl::OkStatus();
  auto& strip = parts->normalizer.emplace_back();
  strip.kind = NormalizerStep::Kind::kStrip;
  strip.left = strip.right = true;
  auto& replace = parts->normalizer.emplace_back();
  replace.kind = NormalizerStep::Kind::kReplace;
  ASSIGN_OR_RETURN(replace.pattern, Pattern::OfRegex(" {2,}"));
  replace.content = " ";
  return absl::OkStatus();
}

absl::StatusOr<TokenizerParts> ReadUnigram(const GgufVocabulary& vocabulary) {
  TokenizerParts parts;
  RETURN_IF_ERROR(CheckScores(vocabulary));
  RETURN_IF_ERROR(AddUnigramNormalizer(vocabulary, &parts));
  auto& unigram = parts.model.emplace<UnigramParts>();
  unigram.unknown_id = vocabulary.unknown_id;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const int32_t type = TypeOf(vocabulary, i);
    UnigramPiece piece{vocabulary.tokens[i], static_cast<double>(vocabulary.scores[i])};
    piece.in_words = type != kUnknown && type != kControl && type != kByte;
    if (type == kUserDefined) piece.score = 0;
    unigram.pieces.push_back(std::move(piece));
    if (type != kControl || vocabulary.tokens[i].empty()) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.content = vocabulary.tokens[i];
    token.special = true;
    parts.added_tokens.push_back(std::move(token));
  }
  SplitStep words = StepOfKind(SplitStep::Kind::kMetaspace);
  words.content = kMetaspace;
  const bool prefix = vocabulary.add_space_prefix.value_or(true);
  if (!prefix) words.prepend = SplitStep::Prepend::kNever;
  parts.pre_tokenizer.push_back(std::move(words));
  auto& decoder = parts.decoder.emplace_back();
  decoder.kind = DecoderStep::Kind::kMetaspace;
  decoder.content = kMetaspace;
  decoder.start = prefix ? 1 : 0;
  RETURN_IF_ERROR(ReadBoundaryTokens(vocabulary, /*add_bos=*/false, /*add_eos=*/true, &parts));
  return parts;
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadGgufTokenizer(const GgufVocabulary& vocabulary) {
  RETURN_IF_ERROR(CheckTokens(vocabulary));
  if (vocabulary.model == "gpt2") return ReadByteLevel(vocabulary);
  if (vocabulary.model == "llama") return ReadSentencePieceBpe(vocabulary, /*has_merges=*/false);
  if (vocabulary.model == "gemma4") return ReadSentencePieceBpe(vocabulary, /*has_merges=*/true);
  if (vocabulary.model == "t5") return ReadUnigram(vocabulary);
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.ggml.model \"", absl::Utf8SafeCHexEscape(vocabulary.model),
                   "\" is not supported; known: gpt2, llama, gemma4, t5"));
}

}  // namespace pergola
