// The table of model families. Adding a family is one file that fills a Family, and one line in
// family.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/gguf.h"
#include "model/json.h"
#include "model/model_spec.h"
#include "model/tensor_table.h"

namespace pergola {

enum class FileFormat : uint8_t { kHuggingFace, kGguf };

// One member of a family, as its files name it.
struct Family {
  std::string_view hf_model_type;      // config.json's model_type; empty: none
  std::string_view gguf_architecture;  // general.architecture; empty: none
  // Special ids that config.json leaves out because they equal the class default.
  std::optional<int32_t> default_bos_id, default_eos_id;
  // The model as the configuration describes it. Refuses by name and value what the decoder cannot
  // execute.
  absl::StatusOr<ModelSpec> (*spec_from_hf)(const JsonObject& config);
  absl::StatusOr<ModelSpec> (*spec_from_gguf)(const GgufMetadata& metadata);
  // Finds every weight in the files; may complete `spec` by what only tensors tell (biases, tied
  // embeddings).
  absl::Status (*bind)(FileFormat format, const TensorTable& table, ModelSpec* spec,
                       std::vector<WeightBinding>* weights);
};

// INVALID_ARGUMENT naming the value and what is supported.
absl::StatusOr<const Family*> FindHfFamily(const JsonObject& config);
absl::StatusOr<const Family*> FindGgufFamily(const GgufMetadata& metadata);

// Where a family's files hold a weight.
struct WeightPlacement {
  std::string tensor;
  RowOrder row_order = RowOrder::kPlain;
  TensorRows rows = {};
  int64_t tensor_rows = 0;  // of all weights that share the tensor; 0: this one alone
  bool transposed = false;
};
using PlaceWeight = std::function<WeightPlacement(Role role, int64_t layer)>;
// Binds every weight that `spec` has; each must be there, in a supported type and the right shape.
absl::Status BindWeights(const TensorTable& table, const ModelSpec& spec, const PlaceWeight& place,
                         std::vector<WeightBinding>* weights);

// How a family's safetensors name weights, apart from the LM head, which is lm_head.weight.
struct RoleTensor {
  Role role;
  const char* name;  // after the layer's prefix
};
struct HfNames {
  const char* prefix;  // "model."; checkpoints of the bare model class lack it
  const char* layers;  // "layers.": then the layer's number and a dot
  absl::Span<const RoleTensor> tensors;
};
// Binds by these names; `adjust`, which may be empty, says what is fused or transposed. A stored LM
// head unties the embeddings where it differs from them, as transformers 5 does.
absl::Status BindHfWeights(const TensorTable& table, const HfNames& names,
                           const std::function<void(Role, WeightPlacement*)>& adjust,
                           ModelSpec* spec, std::vector<WeightBinding>* weights);

// Where q, k and v are rows of one tensor, [q k v] of each head in turn; other roles stay.
void PlaceInterleavedQkv(const ModelSpec& spec, Role role, WeightPlacement* placement);
// The same as [q | k | v], all heads of each together.
void PlaceStackedQkv(const ModelSpec& spec, Role role, WeightPlacement* placement);

// A size that config.json may write under two names; INVALID_ARGUMENT if it has both and they
// differ. `fallback` where neither is given.
struct SizeKey {
  const char* key;
  const char* alias;
  int64_t fallback;
  int64_t max;
};
absl::StatusOr<int64_t> ReadSize(const JsonObject& config, const SizeKey& size);
// "silu", "gelu", "gelu_new", ...: the MLP's activation under `key`.
absl::StatusOr<Activation> ReadActivation(const JsonObject& config, std::string_view key,
                                          std::string_view fallback);
// What no family here executes: quantised safetensors, cross attention.
absl::Status RefuseUnsupportedHf(const JsonObject& config);

// Checks what holds for every family: heads, sizes and their limits. `where` begins the message.
absl::Status CheckSpec(const ModelSpec& spec, std::string_view where);

}  // namespace pergola
