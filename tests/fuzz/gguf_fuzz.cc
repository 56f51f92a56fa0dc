// Any bytes as a GGUF file: an error, or metadata that families can be asked about and tensors that
// can be read.
#include <algorithm>

#include "base/check.h"
#include "model/family.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pergola::TensorTable table;
  const auto header = pergola::AddGguf(pergola::MakeMemorySource("fuzz", {data, size}), &table);
  if (!header.ok()) return 0;
  table.Seal();
  for (const pergola::TensorInfo& tensor : table.tensors()) {
    PERGOLA_CHECK(tensor.bytes > 0);
    uint8_t byte = 0;
    PERGOLA_CHECK(table.Read(tensor, tensor.bytes - 1, absl::MakeSpan(&byte, 1)).ok());
  }
  const auto family = pergola::FindGgufFamily(header->metadata);
  if (!family.ok()) return 0;
  auto spec = (*family)->spec_from_gguf(header->metadata);
  if (!spec.ok()) return 0;
  std::vector<pergola::WeightBinding> weights;
  (void)(*family)->bind(pergola::FileFormat::kGguf, table, &*spec, &weights);
  return 0;
}
