// A model on disk: a Hugging Face directory (config.json, *.safetensors with or without an index)
// or a GGUF file. Opening reads headers only; every size is checked before it is believed. Not for
// tokenizers (text_parts.h) and not for tensors in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/dtype.h"
#include "model/model_spec.h"

namespace pergola {

// Where a tensor's bytes lie. Rows are contiguous, outermost dimension first.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first, all >= 1
  int file = 0;                // index into Checkpoint::files()
  int64_t offset = 0;          // of the first byte, from the start of the file
  int64_t bytes = 0;
};

// Immutable after Open; Read may be called from several threads at once.
class Checkpoint {
 public:
  // `path`: a directory or a .gguf file. INVALID_ARGUMENT or NOT_FOUND with one line that names
  // file, tensor, value and limit. All weights that the model needs are bound and of the right
  // shape when this succeeds.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual const ModelSpec& spec() const = 0;
  // Every weight of the model, exactly once.
  virtual const std::vector<WeightBinding>& weights() const = 0;
  virtual const std::vector<std::string>& files() const = 0;
  // Sorted by name; holds every tensor of the files, also those no weight needs.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // nullptr if there is none of that name.
  virtual const TensorInfo* Find(const std::string& name) const = 0;
  // Reads out.size() bytes at `offset` within the tensor. DATA_LOSS if the file is shorter than it
  // was.
  virtual absl::Status Read(const TensorInfo& tensor, int64_t offset,
                            absl::Span<uint8_t> out) const = 0;
  // These bytes of the tensor will be read soon: a hint.
  virtual void Prefetch(const TensorInfo& /*tensor*/, int64_t /*offset*/, int64_t /*bytes*/) const {
  }
  // SHA-256 (hex) over config, text hash, tensor table, and 4 KiB from start, middle and end of
  // every tensor.
  virtual absl::StatusOr<std::string> Fingerprint() const = 0;
};

// Names of tensors that no weight needs, for a warning: perhaps the model is more than its
// configuration says. Buffers that transformers recomputes and a tied head's copy are left out.
std::vector<std::string> UnusedTensors(const Checkpoint& checkpoint);

}  // namespace pergola
