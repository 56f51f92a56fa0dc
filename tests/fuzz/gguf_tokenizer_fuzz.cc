// Any bytes as a GGUF file with a vocabulary: refused, or a tokenizer that encodes and decodes
// without a crash and streams what it decodes.
#include "base/check.h"
#include "coordinator/text/tokenizer.h"
#include "model/generation_defaults.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pergola::TensorTable table;
  const auto header = pergola::AddGguf(pergola::MakeMemorySource("fuzz", {data, size}), &table);
  if (!header.ok()) return 0;
  pergola::GenerationDefaults defaults;
  (void)pergola::ReadGgufSampling(header->metadata, &defaults);
  auto vocabulary = pergola::ReadGgufVocabulary(header->metadata);
  if (!vocabulary.ok()) return 0;
  pergola::TextParts parts;
  parts.gguf = *std::move(vocabulary);
  const auto tokenizer = pergola::Tokenizer::Create(parts);
  if (!tokenizer.ok()) return 0;
  for (const char* text : {"", "hello  world 123's", "\n\t caf\u00E9 \u4E2D\u6587 <s></s>"}) {
    const auto ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
    if (!ids.ok()) continue;
    const auto stream = pergola::MakeTextStream(**tokenizer, {});
    std::string streamed;
    for (const int32_t id : *ids) {
      PERGOLA_CHECK(id >= 0 && id < (*tokenizer)->vocabulary_size());
      streamed += stream->Push(id).text;
    }
    streamed += stream->Flush();
    PERGOLA_CHECK(streamed == (*tokenizer)->Decode(*ids, /*skip_special_tokens=*/true));
  }
  return 0;
}
