#include "tests/gpu/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/check.h"
#include "base/status.h"
#include "model/shape_spec.h"

namespace pergola {
namespace {

// A multiple of every element's bytes (2, 4 and q4_1's 20), and odd beside powers of two: rows of a
// matrix do not repeat in step.
constexpr int64_t kPatternBytes = 20 * 1048573;
// Of the weights: 1 / sqrt(4096), so that what goes through the layers stays of order one.
constexpr float kDeviation = 1.0F / 64;

std::vector<uint8_t> RandomBf16() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, kDeviation);
  std::vector<float> values(1 << 16);
  for (float& v : values) v = normal(random);
  std::vector<uint8_t> bytes(static_cast<size_t>(kPatternBytes));
  for (size_t i = 0; i < bytes.size(); i += 2) {
    const uint16_t bits = F32ToBF16(values[random() % values.size()]);
    std::memcpy(&bytes[i], &bits, 2);
  }
  return bytes;
}

// Blocks of 20 bytes: scale, minimum, 32 quants.
std::vector<uint8_t> RandomQ4() {
  std::mt19937 random(2);
  std::vector<uint8_t> bytes(static_cast<size_t>(kPatternBytes));
  for (size_t i = 0; i < bytes.size(); i += 4) {
    const auto word = static_cast<uint32_t>(random());
    std::memcpy(&bytes[i], &word, 4);
  }
  // Sixteen levels that are uniform have a deviation of 4.6 steps.
  for (size_t block = 0; block < bytes.size(); block += 20) {
    const float scale = kDeviation / 4.6F * (0.75F + 0.5F * static_cast<float>(bytes[block]) / 255);
    const uint16_t bits[2] = {F32ToF16(scale), F32ToF16(-7.5F * scale)};
    std::memcpy(&bytes[block], bits, 4);
  }
  return bytes;
}

std::vector<uint8_t> Repeated(float value) {
  std::vector<uint8_t> bytes(size_t{4} << 16);
  for (size_t i = 0; i < bytes.size(); i += 4) std::memcpy(&bytes[i], &value, 4);
  return bytes;
}

bool IsBias(Role role) {
  return role == Role::kAttentionNormBias || role == Role::kMlpNormBias ||
         role == Role::kFinalNormBias || role == Role::kEmbeddingNormBias;
}

// What KnownShape leaves out.
void Complete(ModelSpec* spec) {
  spec->norm_epsilon = 1e-5F;
  spec->attention_scale = 1 / std::sqrt(static_cast<float>(spec->head_dim));
  if (!spec->gated_mlp) spec->activation = Activation::kGeluTanh;
  for (int64_t i = 0; i < spec->rope.dims / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(spec->rope.dims);
    spec->rope.inverse_frequency.push_back(static_cast<float>(std::pow(500000.0, exponent)));
  }
}

}  // namespace

absl::StatusOr<ModelSpec> BenchSpec(const std::string& name, bool tiny) {
  ModelSpec spec;
  if (name == "llama-1b") {
    // huggingface.co/meta-llama/Llama-3.2-1B, config.json.
    spec.architecture = "llama";
    spec.name = name;
    spec.layers = 16;
    spec.hidden = 2048;
    spec.heads = 32;
    spec.kv_heads = 8;
    spec.head_dim = 64;
    spec.ffn = 8192;
    spec.vocabulary = 128256;
    spec.context_length = 8192;
    spec.rope.dims = spec.head_dim;
    spec.tied_embeddings = true;
  } else {
    ASSIGN_OR_RETURN(const ShapeSpec shape, KnownShape(name, DType::kBF16));
    spec = shape.spec;
  }
  if (tiny) {
    spec.layers = 2;
    spec.hidden = 128;
    spec.heads = 4;
    spec.kv_heads = spec.kv_heads == 1 ? 1 : 2;
    spec.head_dim = 32;
    spec.ffn = 192;
    spec.vocabulary = 160;
    spec.context_length = 256;
    if (spec.rope.dims > 0) spec.rope.dims = spec.head_dim;
  }
  Complete(&spec);
  return spec;
}

RandomCheckpoint::RandomCheckpoint(const ModelSpec& spec, DType projections)
    : spec_(spec), bf16_(RandomBf16()), ones_(Repeated(1)), small_(Repeated(0.01F)) {
  PERGOLA_CHECK(projections == DType::kBF16 || projections == DType::kQ4_1);
  if (projections == DType::kQ4_1) q4_1_ = RandomQ4();
  for (const auto& [role, layer] : ModelRoles(spec)) {
    WeightBinding binding;
    binding.role = role;
    binding.layer = layer;
    binding.tensor = RoleName(role, layer);
    binding.shape = ShapeOf(spec, role);
    TensorInfo tensor;
    tensor.name = binding.tensor;
    tensor.shape = binding.shape;
    const bool matrix = binding.shape.size() == 2;
    tensor.dtype = !matrix ? DType::kF32 : IsProjection(KindOf(role)) ? projections : DType::kBF16;
    int64_t values = 1;
    for (const int64_t size : tensor.shape) values *= size;
    tensor.bytes = DTypeBytes(tensor.dtype, values);
    // Where in the pattern it begins; of vectors: which pattern.
    tensor.offset = matrix ? static_cast<int64_t>(index_.size()) * 20 * 7919
                           : (IsNorm(role) && !IsBias(role) ? 1 : 0);
    index_[tensor.name] = tensors_.size();
    tensors_.push_back(tensor);
    weights_.push_back(binding);
  }
}

const TensorInfo* RandomCheckpoint::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::Status RandomCheckpoint::Read(const TensorInfo& tensor, int64_t offset,
                                    absl::Span<uint8_t> out) const {
  const std::vector<uint8_t>& pattern = tensor.dtype == DType::kBF16   ? bf16_
                                        : tensor.dtype == DType::kQ4_1 ? q4_1_
                                        : tensor.offset == 1           ? ones_
                                                                       : small_;
  const auto period = static_cast<int64_t>(pattern.size());
  int64_t at = ((tensor.dtype == DType::kF32 ? 0 : tensor.offset) + offset) % period;
  for (size_t done = 0; done < out.size(); at = 0) {
    const size_t count = std::min(out.size() - done, static_cast<size_t>(period - at));
    std::memcpy(out.data() + done, pattern.data() + at, count);
    done += count;
  }
  return absl::OkStatus();
}

}  // namespace pergola
