// Any bytes as config.json: an error or a specification within its limits.
#include "base/check.h"
#include "model/family.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = pergola::ParseJsonObject(text, "config.json");
  if (!json.ok()) return 0;
  const pergola::JsonObject config(*json, "config.json");
  const auto family = pergola::FindHfFamily(config);
  if (!family.ok()) return 0;
  const auto spec = (*family)->spec_from_hf(config);
  if (!spec.ok()) return 0;
  PERGOLA_CHECK(pergola::CheckSpec(*spec, "fuzz").ok());
  PERGOLA_CHECK(static_cast<int64_t>(spec->rope.inverse_frequency.size()) * 2 == spec->rope.dims);
  return 0;
}
