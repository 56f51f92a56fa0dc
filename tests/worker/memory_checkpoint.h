// A checkpoint in memory with random weights, for tests of what is done with weights once they are
// read. Knows the logical values too, for the reference decoder.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "model/checkpoint.h"

namespace pergola {

// A small Llama: 9 heads over 3 KV heads, odd vocabulary, FFN that no 3 ranks share evenly.
inline ModelSpec TinySpec() {
  ModelSpec spec;
  spec.architecture = "llama";
  spec.name = "tiny";
  spec.layers = 3;
  spec.hidden = 32;
  spec.heads = 9;
  spec.kv_heads = 3;
  spec.head_dim = 8;
  spec.ffn = 100;
  spec.vocabulary = 97;
  spec.context_length = 128;
  spec.norm_epsilon = 1e-5F;
  spec.rope.dims = 8;
  for (int i = 0; i < 4; ++i) {
    spec.rope.inverse_frequency.push_back(static_cast<float>(std::pow(10000.0, -i / 4.0)));
  }
  spec.attention_scale = static_cast<float>(1 / std::sqrt(8.0));
  return spec;
}

class MemoryCheckpoint : public Checkpoint {
 public:
  struct Options {
    uint64_t seed = 1;
    // Dtype of a matrix; vectors are f32.
    std::function<DType(Role)> dtype = [](Role) { return DType::kF32; };
    // Whether q and k lie as llama.cpp writes them.
    bool gguf_rope_rows = false;
  };

  MemoryCheckpoint(const ModelSpec& spec, Options options)
      : spec_(spec), options_(std::move(options)), random_(options_.seed) {
    Add(Role::kTokenEmbedding, -1);
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      for (Role role : LayerRoles(spec)) Add(role, layer);
    }
    Add(Role::kFinalNorm, -1);
    if (!spec.tied_embeddings) Add(Role::kLmHead, -1);
  }

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<WeightBinding>& weights() const override { return weights_; }
  const std::vector<std::string>& files() const override { return files_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(const std::string& name) const override {
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override {
    const std::vector<uint8_t>& bytes = bytes_.at(tensor.name);
    PERGOLA_CHECK(offset >= 0 && offset + out.size() <= bytes.size());
    std::memcpy(out.data(), bytes.data() + offset, out.size());
    bytes_read_.value += static_cast<int64_t>(out.size());
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Fingerprint() const override { return std::string("none"); }

  // The weight as the model means it, rows in Hugging Face's order.
  const std::vector<float>& Values(Role role, int64_t layer) const {
    return values_.at(RoleName(role, layer));
  }
  bool Has(Role role, int64_t layer) const { return values_.count(RoleName(role, layer)) > 0; }
  // The bytes of a tensor, to be damaged.
  std::vector<uint8_t>& Bytes(Role role, int64_t layer) { return bytes_.at(RoleName(role, layer)); }
  TensorInfo& Tensor(Role role, int64_t layer) {
    return const_cast<TensorInfo&>(*Find(RoleName(role, layer)));
  }
  int64_t bytes_read() const { return bytes_read_.value; }
  void ResetBytesRead() { bytes_read_.value = 0; }

 private:
  static void Append(std::vector<uint8_t>* bytes, const void* data, size_t count) {
    const auto* begin = static_cast<const uint8_t*>(data);
    bytes->insert(bytes->end(), begin, begin + count);
  }

  // One random row as a file holds it.
  std::vector<uint8_t> RandomRow(DType dtype, int64_t columns, double mean, double deviation) {
    std::normal_distribution<double> normal(mean, deviation);
    std::vector<uint8_t> bytes;
    if (BlockValues(dtype) == 1) {
      for (int64_t i = 0; i < columns; ++i) {
        const auto value = static_cast<float>(normal(random_));
        const uint16_t half = dtype == DType::kBF16 ? F32ToBF16(value) : F32ToF16(value);
        if (dtype == DType::kF32) Append(&bytes, &value, 4);
        if (dtype != DType::kF32) Append(&bytes, &half, 2);
      }
      return bytes;
    }
    PERGOLA_CHECK(columns % BlockValues(dtype) == 0);
    for (int64_t block = 0; block < columns / BlockValues(dtype); ++block) {
      // Quants are uniform, so their deviation is about a quarter of their range.
      const double range = dtype == DType::kQ8_0 ? 256 : 16;
      std::uniform_real_distribution<double> vary(0.5, 1.5);
      const double scale = vary(random_) * deviation * 3.5 / range;
      const uint16_t scale_bits = F32ToF16(static_cast<float>(scale));
      const uint16_t minimum_bits = F32ToF16(static_cast<float>(-scale * 7.3));
      Append(&bytes, &scale_bits, 2);
      if (dtype == DType::kQ4_1) Append(&bytes, &minimum_bits, 2);
      for (int i = 0; i < (dtype == DType::kQ8_0 ? 32 : 16); ++i) {
        bytes.push_back(static_cast<uint8_t>(random_()));
      }
    }
    return bytes;
  }

  void Add(Role role, int64_t layer) {
    WeightBinding binding;
    binding.role = role;
    binding.layer = layer;
    binding.tensor = RoleName(role, layer);
    binding.shape = ShapeOf(spec_, role);
    const bool matrix = binding.shape.size() == 2;
    const bool norm =
        role == Role::kAttentionNorm || role == Role::kMlpNorm || role == Role::kFinalNorm;
    const bool rope = role == Role::kQuery || role == Role::kKey || role == Role::kQueryBias ||
                      role == Role::kKeyBias;
    const bool interleaved = rope && options_.gguf_rope_rows;
    if (interleaved) binding.row_order = RowOrder::kGgufInterleavedRope;

    const int64_t rows = binding.shape[0];
    const int64_t columns = matrix ? binding.shape[1] : 1;
    const DType dtype = matrix ? options_.dtype(role) : DType::kF32;
    // Queries and keys are larger, so that attention is far from uniform.
    double deviation = matrix ? 1 / std::sqrt(static_cast<double>(columns)) : 0.2;
    if (matrix && rope) deviation *= 2;
    if (role == Role::kTokenEmbedding) deviation = 1;
    std::vector<float>& values = values_[binding.tensor];
    std::vector<uint8_t>& bytes = bytes_[binding.tensor];
    const int64_t row_bytes = DTypeBytes(dtype, columns);
    values.resize(rows * columns);
    bytes.resize(rows * row_bytes);
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<uint8_t> data = RandomRow(dtype, columns, norm ? 1 : 0, deviation);
      DecodeToF32(dtype, data.data(), columns, &values[row * columns]);
      const int64_t half = spec_.head_dim / 2;
      const int64_t head = row / spec_.head_dim * spec_.head_dim;
      const int64_t within = row % spec_.head_dim;
      const int64_t file_row = interleaved ? head + within % half * 2 + within / half : row;
      std::memcpy(&bytes[file_row * row_bytes], data.data(), row_bytes);
    }
    TensorInfo info;
    info.name = binding.tensor;
    info.dtype = dtype;
    info.shape = binding.shape;
    info.bytes = static_cast<int64_t>(bytes.size());
    tensors_.push_back(info);
    weights_.push_back(binding);
  }

  const ModelSpec spec_;
  const Options options_;
  std::mt19937_64 random_;
  std::vector<WeightBinding> weights_;
  std::vector<std::string> files_ = {"memory"};
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::vector<uint8_t>> bytes_;
  std::map<std::string, std::vector<float>> values_;
  // Of several threads; a copy of the checkpoint counts on from here.
  struct Counter {
    std::atomic<int64_t> value{0};
    Counter() = default;
    Counter(const Counter& other) : value(other.value.load()) {}
  };
  mutable Counter bytes_read_;
};

}  // namespace pergola
