// Any bytes as a generation_config.json: an error or defaults within their limits.
#include "base/check.h"
#include "base/limits.h"
#include "model/generation_defaults.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = pergola::ParseJsonObject(text, "fuzz");
  if (!json.ok()) return 0;
  const pergola::JsonObject config(*json, "fuzz");
  pergola::GenerationDefaults defaults;
  (void)pergola::ReadGenerationKeys(config, &defaults);
  defaults = {};
  if (!pergola::ReadGenerationConfig(config, &defaults).ok()) return 0;
  PERGOLA_CHECK(defaults.eos_ids.size() <= 64 && defaults.ignored.size() <= 64);
  for (const int32_t id : defaults.eos_ids) {
    PERGOLA_CHECK(id >= 0 && static_cast<uint32_t>(id) < pergola::kMaxVocabulary);
  }
  const float temperature = defaults.temperature.value_or(0);
  PERGOLA_CHECK(temperature >= 0 && temperature <= pergola::kMaxTemperature);
  for (const auto& share : {defaults.top_p, defaults.min_p, defaults.typical_p}) {
    PERGOLA_CHECK(share.value_or(0) >= 0 && share.value_or(0) <= 1);
  }
  for (const std::string& line : defaults.ignored) PERGOLA_CHECK(line.size() < 1000);
  return 0;
}
