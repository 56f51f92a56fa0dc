// Writes small model files for tests: safetensors and GGUF byte by byte (also broken ones), and
// whole random tiny Llama checkpoints from a seed in both formats. Ends the test program on a full
// disk; not for untrusted input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/dtype.h"
#include "model/model_spec.h"

namespace pergola::testing {

// A directory of its own under the temporary directory, removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

void WriteFile(const std::string& path, std::string_view bytes);
std::string ReadFile(const std::string& path);

// The bytes of `value`, little-endian as in memory here.
template <typename T>
std::string Bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}
std::string FloatBytes(const std::vector<float>& values);

struct RawTensor {
  std::string name;
  std::string dtype;           // "F32"
  std::vector<int64_t> shape;  // outermost first
  std::string bytes;
};
// A safetensors file as the format says.
std::string SafetensorsBytes(const std::vector<RawTensor>& tensors);
// A safetensors file with any header text over any data.
std::string SafetensorsBytes(std::string_view header, std::string_view data);

// Writes GGUF as its documentation says, or with the damage asked for.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; written as general.alignment only by the caller
  // Instead of the true counts.
  int64_t claimed_tensors = -1;
  int64_t claimed_keys = -1;

  void Value(std::string_view key, uint32_t type, std::string_view bytes);
  void Uint32(std::string_view key, uint32_t value) { Value(key, 4, Bytes(value)); }
  void Float32(std::string_view key, float value) { Value(key, 6, Bytes(value)); }
  void Bool(std::string_view key, bool value) { Value(key, 7, Bytes<uint8_t>(value ? 1 : 0)); }
  void String(std::string_view key, std::string_view value);
  void Strings(std::string_view key, const std::vector<std::string>& values);
  void Int32s(std::string_view key, const std::vector<int32_t>& values);
  // `shape` outermost first; `type` is ggml's number. `offset` -1: behind the one before.
  void Tensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape,
              std::string_view bytes, int64_t offset = -1);
  std::string Build() const;

 private:
  uint64_t keys_ = 0;
  uint64_t tensors_ = 0;
  std::string metadata_;
  std::string table_;
  std::string data_;
};
// ggml's number of a type.
uint32_t GgmlType(DType dtype);

// A random Llama checkpoint. Every parameter is drawn from `seed`.
struct TinyLlama {
  uint64_t seed = 1;
  int64_t layers = 2;
  int64_t hidden = 64;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  int64_t ffn = 96;
  int64_t vocabulary = 128;
  int64_t context = 256;
  float theta = 10000;
  float epsilon = 1e-5F;
  bool tied = false;
  bool attention_bias = false;
  bool mlp_bias = false;
};
ModelSpec SpecOf(const TinyLlama& model);
// The weight as Hugging Face orders it, rounded to what `stored` keeps (vectors are always kept in
// f32 by GGUF and in `stored` by Hugging Face files; both round the same way here: norms and biases
// are multiples of 1/64). Element (r, c) = scale * (2 u - 1) (+ 1 for norms) with u =
// UniformDraw(seed, role + 64 * (layer + 1), r, c).
std::vector<float> TinyWeight(const TinyLlama& model, Role role, int64_t layer, DType stored);
// Encodes rows of values: f32, bf16, f16 or a block type (rows must then be multiples of 32).
std::string Encode(DType dtype, const std::vector<float>& values);

// Writes config.json and model.safetensors (`shards` > 1: that many files and an index) into
// `directory`, which must exist. A quantised `stored` writes f32 of the dequantised values: the
// judge's file for the same GGUF.
void WriteTinyHf(const TinyLlama& model, DType stored, const std::string& directory,
                 int shards = 1);
// Writes a GGUF: matrices in `stored`, vectors in f32, q and k rows permuted as llama.cpp's
// converter does. Without a vocabulary.
void WriteTinyGguf(const TinyLlama& model, DType stored, const std::string& path);
// One more f32 tensor.
struct GgufExtra {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
// The bytes of such a GGUF.
std::string TinyGgufBytes(const TinyLlama& model, DType stored,
                          const std::vector<GgufExtra>& extras = {});

}  // namespace pergola::testing
