// Reads the header of a safetensors file (https://github.com/huggingface/safetensors, "Format"):
// eight bytes of length, a JSON object of names, then the tensors' bytes without holes. Headers
// only; nothing is believed before it is checked.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tensor_table.h"

namespace pergola {

// The format's own limit.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Adds the file and its tensors to `table`. INVALID_ARGUMENT with one line that names file, tensor,
// value and limit.
absl::Status AddSafetensors(std::unique_ptr<ByteSource> source, TensorTable* table);

// File to the tensors that lie in it.
using SafetensorsShards = std::map<std::string, std::vector<std::string>>;

// Reads a model.safetensors.index.json. Every file is a plain name: no path leads out of the
// directory. INVALID_ARGUMENT beginning with `path`.
absl::StatusOr<SafetensorsShards> ParseSafetensorsIndex(std::string_view text,
                                                        const std::string& path);

// Adds all safetensors files of a Hugging Face directory: model.safetensors, or the shards that
// model.safetensors.index.json names. A tensor of the index that another shard holds than the one
// it names is refused; one that none holds is nobody's loss until a weight needs it (files of tied
// embeddings name both and hold one).
absl::Status AddSafetensorsDirectory(const std::string& directory, TensorTable* table);

}  // namespace pergola
