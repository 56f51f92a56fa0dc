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

// How a family's files name a weight.
struct WeightNames {
  std::function<std::string(Role role, int64_t layer)> name;
  std::function<RowOrder(Role role)> row_order;
};
// Binds every weight that `spec` has; each must be there, in a supported type and the right shape.
absl::Status BindWeights(const TensorTable& table, const ModelSpec& spec, const WeightNames& names,
                         std::vector<WeightBinding>* weights);

// Checks what holds for every family: heads, sizes and their limits. `where` begins the message.
absl::Status CheckSpec(const ModelSpec& spec, std::string_view where);

}  // namespace pergola
