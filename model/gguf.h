// Reads the header of a GGUF file, versions 2 and 3, little-endian (ggml's docs/gguf.md): metadata
// and the tensor table. A count is checked against the bytes that remain before it is believed. No
// tensor bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tensor_table.h"

namespace pergola {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// One metadata value. Arrays of arrays are checked but not kept.
struct GgufValue {
  GgufType type = GgufType::kUint8;
  GgufType element_type = GgufType::kUint8;  // of an array
  uint64_t count = 1;                        // of an array
  std::string bytes;                         // the text, or the scalars as stored
  std::vector<std::string> strings;          // of an array of strings
};

// Typed, bounded access; an absent key gives the fallback, or an error if there is none.
class GgufMetadata {
 public:
  explicit GgufMetadata(std::string file = "") : file_(std::move(file)) {}
  absl::Status Add(const std::string& key, GgufValue value);

  const std::string& file() const { return file_; }
  bool Has(const std::string& key) const { return values_.contains(key); }
  absl::StatusOr<int64_t> Int(const std::string& key, std::optional<int64_t> fallback, int64_t min,
                              int64_t max) const;
  absl::StatusOr<double> Number(const std::string& key, std::optional<double> fallback, double min,
                                double max) const;
  absl::StatusOr<bool> Bool(const std::string& key, bool fallback) const;
  absl::StatusOr<std::string> String(const std::string& key,
                                     std::optional<std::string> fallback) const;
  // Arrays; an absent key gives an empty one.
  absl::StatusOr<std::vector<int32_t>> Int32s(const std::string& key) const;
  absl::StatusOr<std::vector<float>> Floats(const std::string& key) const;
  absl::StatusOr<std::vector<std::string>> Strings(const std::string& key) const;
  // Elements of an array, 0 if the key is absent or not an array.
  int64_t Count(const std::string& key) const;

 private:
  const GgufValue* Find(const std::string& key) const;
  absl::Status Missing(const std::string& key) const;

  std::string file_;
  absl::flat_hash_map<std::string, GgufValue> values_;
};

struct GgufHeader {
  GgufMetadata metadata;
  std::string metadata_bytes_hash;  // SHA-256 (hex) of all keys and values as stored
};

// Adds the file and its tensors to `table` (sealed by the caller) and returns the metadata.
absl::StatusOr<GgufHeader> AddGguf(std::unique_ptr<ByteSource> source, TensorTable* table);

}  // namespace pergola
