// Typed access to GGUF metadata.
#include <cmath>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/gguf.h"

namespace pergola {
namespace {

template <typename T>
T Load(const std::string& bytes, size_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Element `index` of integers stored as `type`; false if it is no integer or beyond int64.
bool LoadInt(GgufType type, const std::string& bytes, size_t index, int64_t* out) {
  switch (type) {
    case GgufType::kUint8:
      *out = Load<uint8_t>(bytes, index);
      return true;
    case GgufType::kInt8: {
      const int64_t raw = Load<uint8_t>(bytes, index);
      *out = raw < 128 ? raw : raw - 256;
      return true;
    }
    case GgufType::kUint16:
      *out = Load<uint16_t>(bytes, index);
      return true;
    case GgufType::kInt16:
      *out = Load<int16_t>(bytes, index);
      return true;
    case GgufType::kUint32:
      *out = Load<uint32_t>(bytes, index);
      return true;
    case GgufType::kInt32:
      *out = Load<int32_t>(bytes, index);
      return true;
    case GgufType::kInt64:
      *out = Load<int64_t>(bytes, index);
      return true;
    case GgufType::kUint64: {
      const auto value = Load<uint64_t>(bytes, index);
      *out = static_cast<int64_t>(value);
      return value <= static_cast<uint64_t>(INT64_MAX);
    }
    default:
      return false;
  }
}

}  // namespace

absl::Status GgufMetadata::Add(const std::string& key, GgufValue value) {
  const auto [at, is_new] = values_.try_emplace(key);
  if (!is_new) {
    return absl::InvalidArgumentError(absl::StrCat("key ", Printable(key), " is there twice"));
  }
  at->second = std::move(value);
  return absl::OkStatus();
}

const GgufValue* GgufMetadata::Find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

absl::Status GgufMetadata::Missing(const std::string& key) const {
  return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is missing"));
}

absl::StatusOr<int64_t> GgufMetadata::Int(const std::string& key, std::optional<int64_t> fallback,
                                          int64_t min, int64_t max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (!fallback.has_value()) return Missing(key);
    return *fallback;
  }
  int64_t number = 0;
  if (!LoadInt(value->type, value->bytes, 0, &number)) {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is not an integer"));
  }
  if (number < min || number > max) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", key, " is ", number, ", but must be from ", min, " to ", max));
  }
  return number;
}

absl::StatusOr<double> GgufMetadata::Number(const std::string& key, std::optional<double> fallback,
                                            double min, double max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (!fallback.has_value()) return Missing(key);
    return *fallback;
  }
  double number = 0;
  int64_t integer = 0;
  if (value->type == GgufType::kFloat32) {
    number = static_cast<double>(Load<float>(value->bytes));
  } else if (value->type == GgufType::kFloat64) {
    number = Load<double>(value->bytes);
  } else if (LoadInt(value->type, value->bytes, 0, &integer)) {
    number = static_cast<double>(integer);
  } else {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is not a number"));
  }
  if (!std::isfinite(number) || number < min || number > max) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", key, " is ", number, ", but must be from ", min, " to ", max));
  }
  return number;
}

absl::StatusOr<bool> GgufMetadata::Bool(const std::string& key, bool fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->type != GgufType::kBool) {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is not true or false"));
  }
  return value->bytes[0] != 0;
}

absl::StatusOr<std::string> GgufMetadata::String(const std::string& key,
                                                 std::optional<std::string> fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (!fallback.has_value()) return Missing(key);
    return *fallback;
  }
  if (value->type != GgufType::kString) {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is not a string"));
  }
  return value->bytes;
}

absl::StatusOr<std::vector<int32_t>> GgufMetadata::Int32s(const std::string& key) const {
  std::vector<int32_t> numbers;
  const GgufValue* value = Find(key);
  if (value == nullptr) return numbers;
  const bool is_array = value->type == GgufType::kArray;
  for (uint64_t i = 0; is_array && i < value->count; ++i) {
    int64_t number = 0;
    if (!LoadInt(value->element_type, value->bytes, i, &number) || number < INT32_MIN ||
        number > INT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_, ": ", key, " holds an element that is no 32-bit integer"));
    }
    numbers.push_back(static_cast<int32_t>(number));
  }
  if (!is_array) return absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " is no array"));
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufMetadata::Floats(const std::string& key) const {
  std::vector<float> numbers;
  const GgufValue* value = Find(key);
  if (value == nullptr) return numbers;
  if (value->type != GgufType::kArray || value->element_type != GgufType::kFloat32) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", key, " is not an array of 32-bit floats"));
  }
  numbers.resize(value->bytes.size() / sizeof(float));
  if (!numbers.empty()) std::memcpy(numbers.data(), value->bytes.data(), value->bytes.size());
  return numbers;
}

absl::StatusOr<std::vector<std::string>> GgufMetadata::Strings(const std::string& key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::vector<std::string>();
  if (value->type != GgufType::kArray || value->element_type != GgufType::kString) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", key, " is not an array of strings"));
  }
  return value->strings;
}

int64_t GgufMetadata::Count(const std::string& key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || value->type != GgufType::kArray) return 0;
  return static_cast<int64_t>(value->count);
}

}  // namespace pergola
