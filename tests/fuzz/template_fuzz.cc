// A chat template of any content is refused or renders a conversation, or fails, within its
// budgets and without a crash. The text of a rendering is valid UTF-8.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "coordinator/text/jinja/json_value.h"
#include "coordinator/text/jinja/template.h"
#include "coordinator/text/tokenizer.h"

namespace {

constexpr char kContext[] = R"({
  "bos_token": "<s>", "n": 3, "f": 0.5, "add_generation_prompt": true, "tools": null,
  "messages": [{"role": "user", "content": "Grüße, 日本"},
               {"role": "assistant", "content": "a b\nc", "tool_calls": [{"name": "f", "x": [1]}]}]
})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pergola::JinjaLimits limits;
  // Small enough that every budget is met within a second.
  limits.steps = 50'000;
  limits.memory_bytes = 8u << 20;
  limits.output_bytes = 1u << 20;
  static const auto* const kValues =
      new auto(pergola::jinja::ParseJson(kContext, limits.value_depth));
  const auto parsed = pergola::JinjaTemplate::Parse(
      std::string_view(reinterpret_cast<const char*>(data), size), limits);
  if (!parsed.ok()) return 0;
  std::tm now = {};
  now.tm_year = 126;
  now.tm_mday = 1;
  const auto text = parsed->Render(**kValues, now);
  if (text.ok() && pergola::FindInvalidUtf8(*text) >= 0) __builtin_trap();
  return 0;
}
