// What the families' GGUF files have in common. llama.cpp writes one set of metadata keys, under
// the architecture's name, and one set of tensor names for all of them (gguf-py/gguf/constants.py);
// a family says what of it its models have. Not for the format (gguf.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/gguf.h"
#include "model/model_spec.h"
#include "model/tensor_table.h"

namespace pergola {

// The metadata under "llama.", "qwen2.", ...; errors name the whole key.
class GgufKeys {
 public:
  GgufKeys(const GgufMetadata& metadata, std::string_view architecture)
      : metadata_(metadata), prefix_(std::string(architecture) + ".") {}

  const GgufMetadata& metadata() const { return metadata_; }
  std::string Key(const char* key) const { return prefix_ + key; }
  bool Has(const char* key) const { return metadata_.Has(Key(key)); }
  absl::StatusOr<int64_t> Int(const char* key, std::optional<int64_t> fallback, int64_t min,
                              int64_t max) const {
    return metadata_.Int(Key(key), fallback, min, max);
  }
  absl::StatusOr<double> Number(const char* key, std::optional<double> fallback, double min,
                                double max) const {
    return metadata_.Number(Key(key), fallback, min, max);
  }

 private:
  const GgufMetadata& metadata_;
  const std::string prefix_;
};

// Sizes, the norm's epsilon and the scale. Refuses by name and value what the decoder cannot
// execute.
absl::StatusOr<ModelSpec> SpecFromGguf(const GgufKeys& keys, NormKind norm);
// The rope that "rope.freq_base" and "rope.scaling" describe: none, linear or yarn, which may
// lengthen the context.
absl::Status ReadGgufRope(const GgufKeys& keys, ModelSpec* spec);

struct GgufTensors {
  bool fused_qkv = false;         // blk.N.attn_qkv: [q | k | v]
  bool interleaved_rope = false;  // rows of q and k are permuted (RowOrder::kGgufInterleavedRope)
  bool optional_biases = false;   // tensors say which biases there are, not the spec
};
// Binds by llama.cpp's names. An output.weight unties the embeddings; rope_freqs.weight divides the
// frequencies.
absl::Status BindGguf(const TensorTable& table, const GgufTensors& tensors, ModelSpec* spec,
                      std::vector<WeightBinding>* weights);

}  // namespace pergola
