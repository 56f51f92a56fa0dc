// Any bytes as a model.safetensors.index.json: an error or files that lie in the directory itself.
#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto shards = pergola::ParseSafetensorsIndex(text, "fuzz");
  if (!shards.ok()) return 0;
  for (const auto& [name, tensors] : *shards) {
    PERGOLA_CHECK(!tensors.empty());
    PERGOLA_CHECK(!name.empty() && name[0] != '.');
    PERGOLA_CHECK(name.find('/') == std::string::npos && name.find('\0') == std::string::npos);
  }
  return 0;
}
