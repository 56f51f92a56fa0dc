#include "coordinator/text/tokenizer.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "base/status.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

struct TokenEntry {
  std::string bytes;
  bool known = false;
  bool special = false;
};

// The added tokens as the finder for one of the two passes wants them: before normalizing, or
// after.
AddedTokenFinder MakeFinder(const TokenizerParts& parts, bool normalized) {
  std::vector<AddedToken> tokens;
  for (const AddedToken& token : parts.added_tokens) {
    if (token.normalized != normalized || token.content.empty()) continue;
    tokens.push_back(token);
    if (!normalized) continue;
    for (const NormalForm form : parts.normalizers) {
      tokens.back().content = Normalize(tokens.back().content, form);
    }
  }
  return AddedTokenFinder(std::move(tokens));
}

std::string Describe(std::string_view content) {
  constexpr size_t kMaxShownBytes = 80;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(ToAbsl(content.substr(0, kMaxShownBytes))),
                      "\"");
}

// Every id's token. Errors: an id or a content that two tokens claim.
absl::StatusOr<std::vector<TokenEntry>> MakeTable(const TokenizerParts& parts) {
  int32_t size = 0;
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  for (const auto& [spelling, id] : parts.model.vocabulary) {
    size = std::max(size, id + 1);
    ids.emplace(spelling, id);
  }
  for (const AddedToken& token : parts.added_tokens) size = std::max(size, token.id + 1);
  std::vector<TokenEntry> table(size);
  for (const auto& [spelling, id] : parts.model.vocabulary) {
    table[id] = {DecodedToken(spelling), /*known=*/true, /*special=*/false};
  }
  for (const AddedToken& token : parts.added_tokens) {
    const auto [known, inserted] = ids.emplace(token.content, token.id);
    if (known->second != token.id) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", Describe(token.content),
                                                     " has id ", token.id, ", but also id ",
                                                     known->second));
    }
    if (inserted && table[token.id].known) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", Describe(token.content),
                                                     " has id ", token.id,
                                                     ", which another token has too"));
    }
    TokenEntry& entry = table[token.id];
    entry = {DecodedToken(token.content), /*known=*/true, token.special || entry.special};
  }
  return table;
}

class BpeTokenizer final : public Tokenizer {
 public:
  // `row_count`: ids the model has embeddings for; 0: not stated.
  BpeTokenizer(TokenizerParts parts, Bpe bpe, std::vector<TokenEntry> table, int64_t row_count)
      : normalizers_(parts.normalizers),
        raw_finder_(MakeFinder(parts, /*normalized=*/false)),
        normalized_finder_(MakeFinder(parts, /*normalized=*/true)),
        pre_tokenizer_(std::move(parts.pre_tokenizer)),
        bpe_(std::move(bpe)),
        prefix_ids_(std::move(parts.prefix_ids)),
        suffix_ids_(std::move(parts.suffix_ids)),
        table_(std::move(table)),
        row_count_(row_count) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override;
  std::string_view TokenBytes(int32_t id, bool skip_special_tokens) const override;
  int32_t vocabulary_size() const override { return static_cast<int32_t>(table_.size()); }

 private:
  struct Scratch {
    std::vector<AddedTokenFinder::Segment> segments;
    PreTokenizer::Scratch pre_tokenizer;
    Bpe::Scratch bpe;
  };
  absl::Status EncodeSegment(std::string_view text, Scratch* scratch,
                             std::vector<int32_t>* ids) const;
  absl::Status CheckRows(const std::vector<int32_t>& ids) const;

  std::vector<NormalForm> normalizers_;
  AddedTokenFinder raw_finder_;
  AddedTokenFinder normalized_finder_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  std::vector<int32_t> prefix_ids_;
  std::vector<int32_t> suffix_ids_;
  std::vector<TokenEntry> table_;
  int64_t row_count_;
};

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                          bool add_special_tokens) const {
  const int64_t invalid = FindInvalidUtf8(text);
  if (invalid >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", invalid));
  }
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = prefix_ids_;
  Scratch scratch;
  std::vector<AddedTokenFinder::Segment> segments;
  raw_finder_.Split(text, &segments);
  for (const auto& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else if (normalizers_.empty()) {
      RETURN_IF_ERROR(EncodeSegment(segment.text, &scratch, &ids));
    } else {
      std::string normalized(segment.text);
      for (const NormalForm form : normalizers_) normalized = Normalize(normalized, form);
      RETURN_IF_ERROR(EncodeSegment(normalized, &scratch, &ids));
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), suffix_ids_.begin(), suffix_ids_.end());
  RETURN_IF_ERROR(CheckRows(ids));
  return ids;
}

absl::Status BpeTokenizer::EncodeSegment(std::string_view text, Scratch* scratch,
                                         std::vector<int32_t>* ids) const {
  scratch->segments.clear();
  normalized_finder_.Split(text, &scratch->segments);
  for (const auto& segment : scratch->segments) {
    if (segment.id >= 0) {
      ids->push_back(segment.id);
      continue;
    }
    RETURN_IF_ERROR(pre_tokenizer_.Split(segment.text, &scratch->pre_tokenizer));
    for (const std::string_view word : scratch->pre_tokenizer.pieces) {
      bpe_.Encode(word, &scratch->bpe, ids);
    }
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::CheckRows(const std::vector<int32_t>& ids) const {
  if (row_count_ == 0 || vocabulary_size() <= row_count_) return absl::OkStatus();
  for (const int32_t id : ids) {
    if (id < row_count_) continue;
    return absl::InvalidArgumentError(absl::StrCat("the text contains the token ",
                                                   Describe(table_[id].bytes), " with id ", id,
                                                   "; the model has ", row_count_, " ids"));
  }
  return absl::OkStatus();
}

std::string BpeTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  LossyUtf8Decoder decoder;
  std::string text;
  for (const int32_t id : ids) decoder.Push(TokenBytes(id, skip_special_tokens), &text);
  decoder.Finish(&text);
  return text;
}

std::string_view BpeTokenizer::TokenBytes(int32_t id, bool skip_special_tokens) const {
  if (id < 0 || id >= vocabulary_size()) return {};
  const TokenEntry& entry = table_[id];
  return skip_special_tokens && entry.special ? std::string_view() : entry.bytes;
}

absl::StatusOr<TokenizerParts> ReadParts(const TextParts& parts) {
  if (!parts.tokenizer_json.empty()) {
    absl::StatusOr<TokenizerParts> read = ReadTokenizerJson(parts.tokenizer_json);
    if (!read.ok()) return Prefixed(read.status(), "tokenizer.json");
    return read;
  }
  if (parts.gguf.has_value()) return ReadGgufTokenizer(*parts.gguf);
  return absl::InvalidArgumentError(
      "the model has no tokenizer: neither tokenizer.json nor GGUF metadata");
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(const TextParts& text_parts) {
  ASSIGN_OR_RETURN(TokenizerParts parts, ReadParts(text_parts));
  ASSIGN_OR_RETURN(std::vector<TokenEntry> table, MakeTable(parts));
  for (const auto* ids : {&parts.prefix_ids, &parts.suffix_ids}) {
    for (const int32_t id : *ids) {
      if (static_cast<size_t>(id) < table.size() && table[id].known) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("the post-processor adds id ", id, ", which no token has"));
    }
  }
  ASSIGN_OR_RETURN(Bpe bpe, Bpe::Create(parts.model));
  return std::unique_ptr<const Tokenizer>(std::make_unique<BpeTokenizer>(
      std::move(parts), std::move(bpe), std::move(table), text_parts.vocabulary_size));
}

}  // namespace pergola
