// A checkpoint of any shape whose weights are random and in no file, for measurements: its matrices
// repeat one block of some 20 MiB of random values from another place each, so that 30 GB are
// "read" as fast as memory is copied. Norms are ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"

namespace pergola {

// "llama-1b" or a name of model/shape_spec.h; NOT_FOUND for others. `tiny`: the same kind of model,
// small enough for the emulator.
absl::StatusOr<ModelSpec> BenchSpec(const std::string& name, bool tiny);

class RandomCheckpoint final : public Checkpoint {
 public:
  // `projections`: what attention and MLP are in: bf16, or q4_1; all other matrices are bf16.
  RandomCheckpoint(const ModelSpec& spec, DType projections);

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<WeightBinding>& weights() const override { return weights_; }
  const std::vector<std::string>& files() const override { return files_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(const std::string& name) const override;
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override;
  absl::StatusOr<std::string> Fingerprint() const override { return std::string("random"); }

 private:
  const ModelSpec spec_;
  std::vector<WeightBinding> weights_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;  // in tensors_, by name
  const std::vector<std::string> files_ = {"random"};
  std::vector<uint8_t> bf16_, q4_1_, ones_, small_;  // what is repeated; f32 the last two
};

}  // namespace pergola
