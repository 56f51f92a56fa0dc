// What has arrived of a stream, on standard output as it comes, and its times for people. Not for
// errors (error_text.h).
#pragma once

#include <cstdint>
#include <string>

#include "client/text_blocks.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

class StreamOutput {
 public:
  // `json`: one object a message instead of the text of `sequences`.
  StreamOutput(bool json, uint32_t sequences) : json_(json), blocks_(sequences) {}

  void Write(const v1::GenerateResponse& message);
  // The stream has ended, perhaps early: what was held back follows.
  void End();
  // One line on standard error: tokens per second after the first one are what a reader sees.
  void PrintStats() const;

 private:
  static void WriteText(const std::string& text);
  static void WriteJson(const v1::GenerateResponse& message);
  void Count(const v1::Usage& usage);

  const bool json_;
  TextBlocks blocks_;
  uint32_t ended_ = 0;  // sequences
  uint32_t prompt_tokens_ = 0;
  uint64_t new_tokens_ = 0;
  double first_token_ms_ = 0;
  double total_ms_ = 0;
};

}  // namespace pergola
