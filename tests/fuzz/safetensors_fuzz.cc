// Any bytes as a safetensors file: an error or a table whose every tensor can be read.
#include <algorithm>

#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pergola::TensorTable table;
  const auto status =
      pergola::AddSafetensors(pergola::MakeMemorySource("fuzz", {data, size}), &table);
  if (!status.ok()) return 0;
  table.Seal();
  for (const pergola::TensorInfo& tensor : table.tensors()) {
    PERGOLA_CHECK(tensor.bytes > 0);
    uint8_t byte = 0;
    PERGOLA_CHECK(table.Read(tensor, tensor.bytes - 1, absl::MakeSpan(&byte, 1)).ok());
  }
  return 0;
}
