// A tokenizer.json of any content is refused or encodes and decodes without a crash. The first line
// feed of the input parts the file from the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "coordinator/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Longer texts make the fuzzer slow and find nothing new.
  constexpr size_t kMaxTextBytes = 256;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t line_end = input.find('\n');
  pergola::TextParts parts;
  parts.tokenizer_json = std::string(input.substr(0, line_end));
  const auto tokenizer = pergola::Tokenizer::Create(parts);
  if (!tokenizer.ok()) return 0;
  std::string_view text = line_end == input.npos ? "hello 12 abc" : input.substr(line_end + 1);
  text = text.substr(0, kMaxTextBytes);
  const auto ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
  if (!ids.ok()) return 0;
  (void)(*tokenizer)->Decode(*ids, /*skip_special_tokens=*/false);
  const auto whole = pergola::MakeTextStream(**tokenizer, {});
  std::string streamed;
  for (const int32_t id : *ids) streamed += whole->Push(id).text;
  streamed += whole->Flush();
  if (streamed != (*tokenizer)->Decode(*ids, /*skip_special_tokens=*/true)) __builtin_trap();
  const auto stream = pergola::MakeTextStream(**tokenizer, {"lo 1", "abc"});
  std::string shown;
  for (const int32_t id : *ids) shown += stream->Push(id).text;
  shown += stream->Flush();
  if (pergola::FindInvalidUtf8(shown) >= 0) __builtin_trap();
  return 0;
}
