// Tokens back to text, as tokenizer.json's decoder says: a sequence of steps over the list of
// tokens, of which some join them to one text. Works token by token: what a run gives and its end
// add up to what Hugging Face makes of the whole list.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/pattern.h"
#include "coordinator/text/utf8.h"

namespace pergola {

struct DecoderStep {
  enum class Kind {
    kByteLevel,     // the bytes that tokens spell in GPT-2's alphabet; joins
    kByteFallback,  // runs of <0x00> to <0xFF> become the characters they make, or U+FFFD each
    kFuse,          // joins
    kStrip,         // up to `start` times `content` at a token's beginning, `stop` at its end
    kReplace,       // `pattern` by `content`
    kMetaspace,     // `content` becomes a space; with `start` it vanishes from the first token
    kEndSuffix,     // `content` becomes a space, but vanishes from the last token
    kJoinSpaces,    // joins with a space between tokens
  };
  Kind kind = Kind::kFuse;
  std::string content;
  uint64_t start = 0;
  uint64_t stop = 0;
  Pattern pattern;
};

// Immutable; shared by threads.
class Decoder {
 public:
  // INVALID_ARGUMENT naming a step that cannot follow one that joins, or that lets a text grow out
  // of proportion.
  static absl::StatusOr<Decoder> Create(std::vector<DecoderStep> steps);

  // The token after the leading steps that look at nothing but the token: what Run takes.
  std::string Prepared(std::string_view token) const;
  // The bytes that a prepared token stands for, as far as one token alone tells.
  std::string BytesOf(std::string_view prepared) const;

  // One list of tokens. Borrows the decoder.
  class Run {
   public:
    explicit Run(const Decoder& decoder) : decoder_(decoder), states_(decoder.steps_.size()) {}
    // Appends valid UTF-8 to `text`, as soon as nothing that follows can change it.
    void Push(std::string_view prepared, std::string* text);
    void Finish(std::string* text);

   private:
    struct State {
      bool after_first = false;
      std::string held;
      uint64_t count = 0;       // characters stripped, at the beginning
      uint64_t held_count = 0;  // characters that would be stripped if this were the end
      LossyUtf8Decoder utf8;
    };
    void Feed(size_t step, std::string_view token, std::string* text);
    void FeedByteFallback(size_t step, std::string_view token, std::string* text);
    void FlushBytes(size_t step, std::string* text);
    void FeedFusedStrip(size_t step, std::string_view chunk, std::string* text);
    void FeedFusedReplace(size_t step, std::string_view chunk, std::string* text);
    void FinishStep(size_t step, std::string* text);

    const Decoder& decoder_;
    std::vector<State> states_;
  };

 private:
  explicit Decoder(std::vector<DecoderStep> steps) : steps_(std::move(steps)) {}

  std::vector<DecoderStep> steps_;
  size_t prepared_steps_ = 0;  // steps that Prepared did
  size_t first_fused_ = 0;     // from this step on there is one text
};

}  // namespace pergola
