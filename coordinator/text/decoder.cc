#include "coordinator/text/decoder.h"

#include <algorithm>

#include "base/status.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/tokenizer.h"

namespace pergola {
namespace {

using Kind = DecoderStep::Kind;

constexpr char kReplacement[] = "\xEF\xBF\xBD";
// What a step behind a join looks for is held back at every place, byte by byte.
constexpr size_t kMaxFusedPatternBytes = 256;

// Published decoders replace by what is no longer. Some steps after another multiply.
constexpr size_t kMaxGrowth = 8;

// How many times as long a step can make a token.
size_t GrowthOf(const DecoderStep& step) {
  if (step.kind != Kind::kReplace) return 1;
  if (step.pattern.regex != nullptr) return step.content.size() + 1;
  const size_t from = std::max<size_t>(1, step.pattern.literal.size());
  return std::max<size_t>(1, (step.content.size() + from - 1) / from);
}

bool Joins(Kind kind) {
  return kind == Kind::kByteLevel || kind == Kind::kFuse || kind == Kind::kJoinSpaces;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that <0xNN> stands for, or -1.
int FallbackByte(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const int high = HexDigit(token[3]);
  const int low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string Replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t covered = 0;
  for (size_t at; (at = text.find(from, covered)) != text.npos; covered = at + from.size()) {
    out.append(text.substr(covered, at - covered)).append(to);
  }
  return out.append(text.substr(covered));
}

std::string ReplacedInToken(const DecoderStep& step, std::string_view token) {
  if (step.pattern.regex == nullptr) return Replaced(token, step.pattern.literal, step.content);
  Regex::Workspace workspace;
  Ranges ranges;
  // A pattern that runs wild leaves the token as it is.
  if (!step.pattern.FindAll(token, &workspace, &ranges).ok()) return std::string(token);
  std::string out;
  for (const auto& [range, is_match] : ranges) {
    out.append(is_match ? std::string_view(step.content)
                        : token.substr(range.begin, range.end - range.begin));
  }
  return out;
}

std::string_view StrippedToken(const DecoderStep& step, std::string_view token) {
  const std::string_view content = step.content;
  for (uint64_t i = 0; i < step.start && token.substr(0, content.size()) == content; ++i) {
    token.remove_prefix(content.size());
  }
  for (uint64_t i = 0; i < step.stop && token.size() >= content.size(); ++i) {
    if (token.substr(token.size() - content.size()) != content) break;
    token.remove_suffix(content.size());
  }
  return token;
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Create(std::vector<DecoderStep> steps) {
  bool fused = false;
  size_t first_fused = steps.size();
  size_t prepared = 0;
  size_t growth = 1;
  for (size_t i = 0; i < steps.size(); ++i) {
    growth *= std::min(GrowthOf(steps[i]), kMaxGrowth + 1);
    if (growth > kMaxGrowth) {
      return absl::InvalidArgumentError(
          absl::StrCat("step ", i, " can make a text more than ", kMaxGrowth, " times as long"));
    }
    const Kind kind = steps[i].kind;
    const bool regex = steps[i].pattern.regex != nullptr;
    if (fused && (kind == Kind::kByteFallback || kind == Kind::kEndSuffix ||
                  (kind == Kind::kByteLevel) || (kind == Kind::kReplace && regex) ||
                  steps[i].pattern.literal.size() > kMaxFusedPatternBytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("step ", i,
                       " needs single tokens, but an earlier step has joined them; a string of at "
                       "most ",
                       kMaxFusedPatternBytes, " bytes can be replaced then"));
    }
    if (prepared == i && (kind == Kind::kReplace || kind == Kind::kStrip)) ++prepared;
    if (!fused && Joins(kind)) first_fused = i + 1;
    fused = fused || Joins(kind);
  }
  Decoder decoder(std::move(steps));
  decoder.first_fused_ = first_fused;
  decoder.prepared_steps_ = std::min(prepared, first_fused);
  return decoder;
}

std::string Decoder::Prepared(std::string_view token) const {
  std::string text(token);
  for (size_t i = 0; i < prepared_steps_; ++i) {
    const DecoderStep& step = steps_[i];
    text = step.kind == Kind::kReplace ? ReplacedInToken(step, text)
                                       : std::string(StrippedToken(step, text));
  }
  return text;
}

std::string Decoder::BytesOf(std::string_view prepared) const {
  if (prepared_steps_ == steps_.size()) return std::string(prepared);
  const DecoderStep& step = steps_[prepared_steps_];
  switch (step.kind) {
    case Kind::kByteLevel:
      return DecodedToken(prepared);
    case Kind::kByteFallback: {
      const int byte = FallbackByte(prepared);
      return byte < 0 ? std::string(prepared) : std::string(1, static_cast<char>(byte));
    }
    case Kind::kMetaspace:
    case Kind::kEndSuffix:
      return Replaced(prepared, step.content, " ");
    default:
      return std::string(prepared);
  }
}

void Decoder::Run::Push(std::string_view prepared, std::string* text) {
  Feed(decoder_.prepared_steps_, prepared, text);
}

void Decoder::Run::Finish(std::string* text) {
  for (size_t step = decoder_.prepared_steps_; step < decoder_.steps_.size(); ++step) {
    FinishStep(step, text);
  }
}

void Decoder::Run::Feed(size_t index, std::string_view token, std::string* text) {
  if (index == decoder_.steps_.size()) {
    text->append(token);
    return;
  }
  const DecoderStep& step = decoder_.steps_[index];
  State& state = states_[index];
  const bool fused = index >= decoder_.first_fused_;
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string chunk;
      state.utf8.Push(DecodedToken(token), &chunk);
      return Feed(index + 1, chunk, text);
    }
    case Kind::kByteFallback:
      return FeedByteFallback(index, token, text);
    case Kind::kFuse:
      return Feed(index + 1, token, text);
    case Kind::kStrip:
      if (fused) return FeedFusedStrip(index, token, text);
      return Feed(index + 1, StrippedToken(step, token), text);
    case Kind::kReplace:
      if (fused) return FeedFusedReplace(index, token, text);
      return Feed(index + 1, ReplacedInToken(step, token), text);
    case Kind::kMetaspace: {
      const bool vanishes = step.start > 0 && !state.after_first;
      state.after_first = !fused;
      return Feed(index + 1, Replaced(token, step.content, vanishes ? "" : " "), text);
    }
    case Kind::kEndSuffix:
      if (state.after_first) Feed(index + 1, Replaced(state.held, step.content, " "), text);
      state.after_first = true;
      state.held = std::string(token);
      return;
    case Kind::kJoinSpaces:
      if (state.after_first && !fused) Feed(index + 1, " ", text);
      state.after_first = true;
      return Feed(index + 1, token, text);
  }
}

void Decoder::Run::FeedByteFallback(size_t index, std::string_view token, std::string* text) {
  const int byte = FallbackByte(token);
  if (byte >= 0) {
    states_[index].held.push_back(static_cast<char>(byte));
    return;
  }
  FlushBytes(index, text);
  Feed(index + 1, token, text);
}

// A run of bytes counts as a whole: one byte that fits nowhere makes each of them U+FFFD. So
// nothing of it can be shown before it ends.
void Decoder::Run::FlushBytes(size_t index, std::string* text) {
  const std::string bytes = std::move(states_[index].held);
  states_[index].held.clear();
  if (bytes.empty()) return;
  if (FindInvalidUtf8(bytes) < 0) return Feed(index + 1, bytes, text);
  for (size_t i = 0; i < bytes.size(); ++i) Feed(index + 1, kReplacement, text);
}

void Decoder::Run::FeedFusedStrip(size_t index, std::string_view chunk, std::string* text) {
  const DecoderStep& step = decoder_.steps_[index];
  State& state = states_[index];
  std::string out;
  for (size_t position = 0; position < chunk.size();) {
    const size_t begin = position;
    NextCodePoint(chunk, &position);
    const std::string_view character = chunk.substr(begin, position - begin);
    if (character == step.content) {
      if (!state.after_first && state.count < step.start) {
        ++state.count;
        continue;
      }
      state.after_first = true;
      if (state.held_count < step.stop) {
        ++state.held_count;
        continue;
      }
    } else {
      state.after_first = true;
      for (; state.held_count > 0; --state.held_count) out += step.content;
    }
    out.append(character);
  }
  Feed(index + 1, out, text);
}

void Decoder::Run::FeedFusedReplace(size_t index, std::string_view chunk, std::string* text) {
  const DecoderStep& step = decoder_.steps_[index];
  const std::string& from = step.pattern.literal;
  std::string held = std::move(states_[index].held);
  held.append(chunk);
  std::string out;
  size_t covered = 0;
  for (size_t at; (at = held.find(from, covered)) != held.npos; covered = at + from.size()) {
    out.append(held, covered, at - covered).append(step.content);
  }
  held.erase(0, covered);
  // The longest end that may begin a match stays.
  size_t keep = std::min(held.size(), from.size() - 1);
  while (keep > 0 && held.compare(held.size() - keep, keep, from, 0, keep) != 0) --keep;
  out.append(held, 0, held.size() - keep);
  states_[index].held = held.substr(held.size() - keep);
  Feed(index + 1, out, text);
}

void Decoder::Run::FinishStep(size_t index, std::string* text) {
  const DecoderStep& step = decoder_.steps_[index];
  State& state = states_[index];
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string chunk;
      state.utf8.Finish(&chunk);
      return Feed(index + 1, chunk, text);
    }
    case Kind::kByteFallback:
      return FlushBytes(index, text);
    case Kind::kEndSuffix:
      if (state.after_first) Feed(index + 1, Replaced(state.held, step.content, ""), text);
      state.after_first = false;
      return;
    case Kind::kReplace:
      Feed(index + 1, state.held, text);
      state.held.clear();
      return;
    default:
      return;
  }
}

}  // namespace pergola
