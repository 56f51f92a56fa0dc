#include "coordinator/text/tokenizer.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "base/status.h"
#include "coordinator/text/tokenizer_parts.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

// Published vocabularies have hardly a hole. A table is made of all ids up to the largest, so that
// must not come from a file of a few bytes.
constexpr size_t kFreeIds = 1 << 16;
constexpr size_t kMaxIdsPerToken = 4;
// What added tokens may take once they are normalized: a prefix is usual, more is not.
constexpr size_t kFreeAddedBytes = 1 << 20;
constexpr size_t kMaxAddedGrowth = 4;

struct TokenEntry {
  std::string bytes;
  std::string prepared;  // what Decoder::Run takes; empty where bytes are enough
  bool known = false;
  bool special = false;
};

// Bytes become characters and that is all: the most common decoder, and it needs no steps.
bool OnlyDecodesBytes(const std::vector<DecoderStep>& steps) {
  using Kind = DecoderStep::Kind;
  return !steps.empty() && steps[0].kind == Kind::kByteLevel &&
         std::all_of(steps.begin() + 1, steps.end(),
                     [](const DecoderStep& step) { return step.kind == Kind::kFuse; });
}

// The added tokens as Hugging Face has them after loading: what is looked for in normalized text is
// normalized itself, and shown so.
absl::StatusOr<std::vector<AddedToken>> NormalizedTokens(std::vector<AddedToken> tokens,
                                                         const Normalizer& normalizer) {
  Regex::Workspace workspace;
  size_t bytes = 0;
  size_t normalized_bytes = 0;
  for (AddedToken& token : tokens) {
    if (!token.normalized || normalizer.empty()) continue;
    bytes += token.content.size();
    workspace.Begin(token.content.size());
    bool unused = false;
    ASSIGN_OR_RETURN(token.content, normalizer.Apply(token.content, &workspace, &unused));
    normalized_bytes += token.content.size();
    if (normalized_bytes > kFreeAddedBytes + kMaxAddedGrowth * bytes) {
      return absl::InvalidArgumentError(absl::StrCat("the normalizer makes more than ",
                                                     normalized_bytes, " bytes of the first ",
                                                     bytes, " bytes of added tokens"));
    }
  }
  return tokens;
}

// Those that one of the two passes looks for: before normalizing, or after.
AddedTokenFinder MakeFinder(const std::vector<AddedToken>& all, bool normalized) {
  std::vector<AddedToken> tokens;
  for (const AddedToken& token : all) {
    if (token.normalized == normalized && !token.content.empty()) tokens.push_back(token);
  }
  return AddedTokenFinder(std::move(tokens));
}

std::string Describe(std::string_view content) {
  constexpr size_t kMaxShownBytes = 80;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(ToAbsl(content.substr(0, kMaxShownBytes))),
                      "\"");
}

template <typename Visit>
void ForEachVocabularyToken(const std::variant<BpeParts, UnigramParts>& model, const Visit& visit) {
  if (const auto* bpe = std::get_if<BpeParts>(&model)) {
    for (const auto& [spelling, id] : bpe->vocabulary) visit(spelling, id);
    return;
  }
  const auto& pieces = std::get<UnigramParts>(model).pieces;
  for (size_t i = 0; i < pieces.size(); ++i) visit(pieces[i].spelling, static_cast<int32_t>(i));
}

// Every id's token; `normalized`: the added ones. Errors: an id or a content that two tokens claim.
absl::StatusOr<std::vector<TokenEntry>> MakeTable(const TokenizerParts& parts,
                                                  const std::vector<AddedToken>& normalized,
                                                  const Decoder& decoder, bool only_bytes) {
  const auto entry_of = [&](const std::string& spelling, bool special) {
    std::string prepared = decoder.Prepared(spelling);
    std::string bytes = decoder.BytesOf(prepared);
    return TokenEntry{std::move(bytes), only_bytes ? std::string() : std::move(prepared),
                      /*known=*/true, special};
  };
  int32_t size = 0;
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  ForEachVocabularyToken(parts.model, [&](const std::string& spelling, int32_t id) {
    size = std::max(size, id + 1);
    ids[spelling] = id;
  });
  for (const AddedToken& token : parts.added_tokens) size = std::max(size, token.id + 1);
  const size_t most = kFreeIds + kMaxIdsPerToken * (ids.size() + parts.added_tokens.size());
  if (static_cast<size_t>(size) > most) {
    return absl::InvalidArgumentError(absl::StrCat("ids reach ", size - 1, ", but there are only ",
                                                   ids.size(), " tokens in the vocabulary"));
  }
  std::vector<TokenEntry> table(size);
  ForEachVocabularyToken(parts.model, [&](const std::string& spelling, int32_t id) {
    table[id] = entry_of(spelling, /*special=*/false);
  });
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
    table[token.id].known = true;
  }
  for (const AddedToken& token : normalized) {
    table[token.id] = entry_of(token.content, token.special || table[token.id].special);
  }
  return table;
}

// What takes words, and what it needs for that.
using Model = std::variant<Bpe, Unigram>;

absl::StatusOr<Model> MakeModel(const std::variant<BpeParts, UnigramParts>& parts) {
  if (const auto* unigram = std::get_if<UnigramParts>(&parts)) {
    ASSIGN_OR_RETURN(Unigram made, Unigram::Create(*unigram));
    return Model(std::move(made));
  }
  ASSIGN_OR_RETURN(Bpe made, Bpe::Create(std::get<BpeParts>(parts)));
  return Model(std::move(made));
}

class PipelineTokenizer final : public Tokenizer {
 public:
  struct Pieces {
    Normalizer normalizer;
    AddedTokenFinder raw_finder;         // before normalizing
    AddedTokenFinder normalized_finder;  // and behind it
    PreTokenizer pre_tokenizer;
    Model model;
    Decoder decoder;
    bool only_decodes_bytes = false;
    std::vector<int32_t> prefix_ids;
    std::vector<int32_t> suffix_ids;
    std::vector<TokenEntry> table;
    int64_t row_count = 0;  // ids the model has embeddings for; 0: not stated
  };
  explicit PipelineTokenizer(Pieces pieces) : p_(std::move(pieces)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override;
  std::string_view TokenBytes(int32_t id, bool skip_special_tokens) const override;
  int32_t vocabulary_size() const override { return static_cast<int32_t>(p_.table.size()); }
  std::unique_ptr<IncrementalDecoder> NewDecoder(bool skip_special_tokens) const override;

 private:
  struct Scratch {
    std::vector<AddedTokenFinder::Segment> segments;
    PreTokenizer::Scratch pre_tokenizer;
    Bpe::Scratch bpe;
    Unigram::Scratch unigram;
  };
  class StepDecoder;
  absl::Status EncodeSegment(std::string_view text, bool at_front, Scratch* scratch,
                             std::vector<int32_t>* ids) const;
  absl::Status CheckRows(const std::vector<int32_t>& ids) const;
  // Null for ids that decode to nothing at all.
  const TokenEntry* Shown(int32_t id, bool skip_special_tokens) const;

  const Pieces p_;
};

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(std::string_view text,
                                                               bool add_special_tokens) const {
  const int64_t invalid = FindInvalidUtf8(text);
  if (invalid >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", invalid));
  }
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = p_.prefix_ids;
  Scratch scratch;
  scratch.pre_tokenizer.regex.Begin(text.size());
  std::vector<AddedTokenFinder::Segment> segments;
  p_.raw_finder.Split(text, &segments);
  for (const auto& segment : segments) {
    const bool at_front = segment.text.data() == text.data();
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else if (p_.normalizer.empty()) {
      RETURN_IF_ERROR(EncodeSegment(segment.text, at_front, &scratch, &ids));
    } else {
      bool front_lost = false;
      ASSIGN_OR_RETURN(
          const std::string normalized,
          p_.normalizer.Apply(segment.text, &scratch.pre_tokenizer.regex, &front_lost));
      RETURN_IF_ERROR(EncodeSegment(normalized, at_front && !front_lost, &scratch, &ids));
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), p_.suffix_ids.begin(), p_.suffix_ids.end());
  RETURN_IF_ERROR(CheckRows(ids));
  return ids;
}

absl::Status PipelineTokenizer::EncodeSegment(std::string_view text, bool at_front,
                                              Scratch* scratch, std::vector<int32_t>* ids) const {
  scratch->segments.clear();
  p_.normalized_finder.Split(text, &scratch->segments);
  for (const auto& segment : scratch->segments) {
    if (segment.id >= 0) {
      ids->push_back(segment.id);
      continue;
    }
    const bool begins = at_front && segment.text.data() == text.data();
    RETURN_IF_ERROR(p_.pre_tokenizer.Split(segment.text, begins, &scratch->pre_tokenizer));
    if (const auto* bpe = std::get_if<Bpe>(&p_.model)) {
      for (const std::string_view word : scratch->pre_tokenizer.pieces) {
        bpe->Encode(word, &scratch->bpe, ids);
      }
      continue;
    }
    for (const std::string_view word : scratch->pre_tokenizer.pieces) {
      RETURN_IF_ERROR(std::get<Unigram>(p_.model).Encode(word, &scratch->unigram, ids));
    }
  }
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::CheckRows(const std::vector<int32_t>& ids) const {
  if (p_.row_count == 0 || vocabulary_size() <= p_.row_count) return absl::OkStatus();
  for (const int32_t id : ids) {
    if (id < p_.row_count) continue;
    return absl::InvalidArgumentError(absl::StrCat("the text contains the token ",
                                                   Describe(p_.table[id].bytes), " with id ", id,
                                                   "; the model has ", p_.row_count, " ids"));
  }
  return absl::OkStatus();
}

const TokenEntry* PipelineTokenizer::Shown(int32_t id, bool skip_special_tokens) const {
  if (id < 0 || id >= vocabulary_size()) return nullptr;
  const TokenEntry& entry = p_.table[id];
  return entry.known && !(skip_special_tokens && entry.special) ? &entry : nullptr;
}

std::string_view PipelineTokenizer::TokenBytes(int32_t id, bool skip_special_tokens) const {
  const TokenEntry* entry = Shown(id, skip_special_tokens);
  return entry == nullptr ? std::string_view() : entry->bytes;
}

std::string PipelineTokenizer::Decode(absl::Span<const int32_t> ids,
                                      bool skip_special_tokens) const {
  std::string text;
  const auto decoder = NewDecoder(skip_special_tokens);
  for (const int32_t id : ids) decoder->Push(id, &text);
  decoder->Finish(&text);
  return text;
}

// Runs the decoder's steps.
class PipelineTokenizer::StepDecoder final : public IncrementalDecoder {
 public:
  StepDecoder(const PipelineTokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_(skip_special_tokens), run_(tokenizer.p_.decoder) {}
  void Push(int32_t id, std::string* text) override {
    const TokenEntry* entry = tokenizer_.Shown(id, skip_);
    if (entry != nullptr) run_.Push(entry->prepared, text);
  }
  void Finish(std::string* text) override { run_.Finish(text); }

 private:
  const PipelineTokenizer& tokenizer_;
  const bool skip_;
  Decoder::Run run_;
};

std::unique_ptr<IncrementalDecoder> PipelineTokenizer::NewDecoder(bool skip_special_tokens) const {
  if (p_.only_decodes_bytes) return Tokenizer::NewDecoder(skip_special_tokens);
  return std::make_unique<StepDecoder>(*this, skip_special_tokens);
}

class ByteDecoder final : public IncrementalDecoder {
 public:
  ByteDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_(skip_special_tokens) {}
  void Push(int32_t id, std::string* text) override {
    utf8_.Push(tokenizer_.TokenBytes(id, skip_), text);
  }
  void Finish(std::string* text) override { utf8_.Finish(text); }

 private:
  const Tokenizer& tokenizer_;
  const bool skip_;
  LossyUtf8Decoder utf8_;
};

absl::StatusOr<TokenizerParts> ReadParts(const TextParts& parts) {
  if (!parts.tokenizer_json.empty()) return ReadTokenizerJson(parts.tokenizer_json);
  if (parts.gguf.has_value()) return ReadGgufTokenizer(*parts.gguf);
  return absl::InvalidArgumentError(
      "the model has no tokenizer: neither tokenizer.json nor GGUF metadata");
}

absl::Status CheckAddedIds(const TokenizerParts& parts, const std::vector<TokenEntry>& table) {
  for (const auto* ids : {&parts.prefix_ids, &parts.suffix_ids}) {
    for (const int32_t id : *ids) {
      if (static_cast<size_t>(id) < table.size() && table[id].known) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("the post-processor adds id ", id, ", which no token has"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<IncrementalDecoder> Tokenizer::NewDecoder(bool skip_special_tokens) const {
  return std::make_unique<ByteDecoder>(*this, skip_special_tokens);
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(const TextParts& text_parts) {
  ASSIGN_OR_RETURN(TokenizerParts parts, ReadParts(text_parts));
  const bool only_decodes_bytes = OnlyDecodesBytes(parts.decoder);
  absl::StatusOr<Decoder> decoder = Decoder::Create(std::move(parts.decoder));
  if (!decoder.ok()) return Prefixed(decoder.status(), "decoder");
  Normalizer normalizer(std::move(parts.normalizer));
  ASSIGN_OR_RETURN(const auto added, NormalizedTokens(parts.added_tokens, normalizer));
  ASSIGN_OR_RETURN(std::vector<TokenEntry> table,
                   MakeTable(parts, added, *decoder, only_decodes_bytes));
  RETURN_IF_ERROR(CheckAddedIds(parts, table));
  ASSIGN_OR_RETURN(Model model, MakeModel(parts.model));
  PipelineTokenizer::Pieces pieces{std::move(normalizer),
                                   MakeFinder(added, false),
                                   MakeFinder(added, true),
                                   PreTokenizer(std::move(parts.pre_tokenizer)),
                                   std::move(model),
                                   *std::move(decoder),
                                   only_decodes_bytes,
                                   std::move(parts.prefix_ids),
                                   std::move(parts.suffix_ids),
                                   std::move(table),
                                   text_parts.vocabulary_size};
  return std::unique_ptr<const Tokenizer>(std::make_unique<PipelineTokenizer>(std::move(pieces)));
}

}  // namespace pergola
