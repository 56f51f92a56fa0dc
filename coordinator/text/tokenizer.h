// Text to token ids and back, as the model's tokenizer.json or GGUF metadata defines it. Immutable,
// shared by threads. Linear in the text. Not for chat templates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/engine/text_stream.h"
#include "model/text_parts.h"

namespace pergola {

// Ids to text, one by one: what Push and Finish append adds up to Tokenizer::Decode of all ids.
// Only whole characters, and only what nothing that follows can change.
class IncrementalDecoder {
 public:
  virtual ~IncrementalDecoder() = default;
  virtual void Push(int32_t id, std::string* text) = 0;
  virtual void Finish(std::string* text) = 0;
};

class Tokenizer {
 public:
  // INVALID_ARGUMENT naming the part and value that is broken or not supported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(const TextParts& parts);
  virtual ~Tokenizer() = default;

  // `text` must be valid UTF-8 (INVALID_ARGUMENT with the byte offset). Special tokens in the text
  // are recognised. add_special_tokens: what the post-processor adds (BOS).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      bool add_special_tokens) const = 0;
  // Ids outside the vocabulary decode to nothing. Bytes that are no UTF-8 become U+FFFD, as the
  // tokenizer's decoder defines it.
  virtual std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const = 0;
  // The bytes that one token stands for wherever it does not begin or end the text (may be part of
  // a character); empty for special tokens if skip_special_tokens.
  virtual std::string_view TokenBytes(int32_t id, bool skip_special_tokens) const = 0;
  virtual int32_t vocabulary_size() const = 0;  // largest id + 1
  // For one list of ids; the tokenizer must outlive it. Where not overridden: the tokens' bytes,
  // with one U+FFFD per invalid subsequence.
  virtual std::unique_ptr<IncrementalDecoder> NewDecoder(bool skip_special_tokens) const;
};

// A sequence's incremental text: holds back incomplete characters and possible beginnings of stop
// strings; special tokens are not shown. `tokenizer` must outlive the stream.
std::unique_ptr<TextStream> MakeTextStream(const Tokenizer& tokenizer,
                                           std::vector<std::string> stop_strings);

// The offset of the first byte that is not valid UTF-8 (RFC 3629), or -1.
int64_t FindInvalidUtf8(std::string_view text);

}  // namespace pergola
