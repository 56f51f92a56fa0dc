#include "tests/model/test_files.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/counter_rng.h"

namespace pergola::testing {

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "pergola_XXXXXX").string();
  PERGOLA_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  PERGOLA_CHECK_MSG(out.good(), path);
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  PERGOLA_CHECK_MSG(in.good(), path);
  return text.str();
}

std::string FloatBytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::string SafetensorsBytes(const std::vector<RawTensor>& tensors) {
  std::string header = "{";
  std::string data;
  for (const RawTensor& tensor : tensors) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", tensor.name, "\":{\"dtype\":\"",
                    tensor.dtype, "\",\"shape\":[");
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      absl::StrAppend(&header, i > 0 ? "," : "", tensor.shape[i]);
    }
    absl::StrAppend(&header, "],\"data_offsets\":[", data.size(), ",",
                    data.size() + tensor.bytes.size(), "]}");
    data += tensor.bytes;
  }
  return SafetensorsBytes(header + "}", data);
}

std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  return absl::StrCat(Bytes<uint64_t>(header.size()), std::string(header), std::string(data));
}

namespace {

std::string GgufString(std::string_view text) {
  return Bytes<uint64_t>(text.size()) + std::string(text);
}

}  // namespace

void GgufBuilder::Value(std::string_view key, uint32_t type, std::string_view bytes) {
  ++keys_;
  metadata_ += GgufString(key) + Bytes(type) + std::string(bytes);
}

void GgufBuilder::String(std::string_view key, std::string_view value) {
  Value(key, 8, GgufString(value));
}

void GgufBuilder::Strings(std::string_view key, const std::vector<std::string>& values) {
  std::string bytes = Bytes<uint32_t>(8) + Bytes<uint64_t>(values.size());
  for (const std::string& value : values) bytes += GgufString(value);
  Value(key, 9, bytes);
}

void GgufBuilder::Int32s(std::string_view key, const std::vector<int32_t>& values) {
  std::string bytes = Bytes<uint32_t>(5) + Bytes<uint64_t>(values.size());
  for (const int32_t value : values) bytes += Bytes(value);
  Value(key, 9, bytes);
}

void GgufBuilder::Tensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape,
                         std::string_view bytes, int64_t offset) {
  ++tensors_;
  data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
  const auto at = offset >= 0 ? static_cast<uint64_t>(offset) : uint64_t{data_.size()};
  table_ += GgufString(name) + Bytes<uint32_t>(static_cast<uint32_t>(shape.size()));
  for (auto dim = shape.rbegin(); dim != shape.rend(); ++dim) table_ += Bytes<int64_t>(*dim);
  table_ += Bytes(type) + Bytes<uint64_t>(at);
  data_ += bytes;
}

std::string GgufBuilder::Build() const {
  const auto tensors = claimed_tensors >= 0 ? static_cast<uint64_t>(claimed_tensors) : tensors_;
  const auto keys = claimed_keys >= 0 ? static_cast<uint64_t>(claimed_keys) : keys_;
  std::string out = "GGUF" + Bytes(version) + Bytes(tensors) + Bytes(keys) + metadata_ + table_;
  out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
  return out + data_;
}

uint32_t GgmlType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ5_0:
      return 6;
    case DType::kQ5_1:
      return 7;
    case DType::kQ8_0:
      return 8;
    case DType::kQ2_K:
      return 10;
    case DType::kQ3_K:
      return 11;
    case DType::kQ4_K:
      return 12;
    case DType::kQ5_K:
      return 13;
    case DType::kQ6_K:
      return 14;
    case DType::kIQ4_NL:
      return 20;
    case DType::kI32:
      return 26;
    case DType::kBF16:
      return 30;
    case DType::kInt8:
    case DType::kFp8:
      break;
  }
  PERGOLA_CHECK(false);
}

}  // namespace pergola::testing
