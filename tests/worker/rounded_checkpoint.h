// A checkpoint whose matrices are another one's in f32, each row changed by a function: to see what
// rounded or disturbed weights do, without the formats under test.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/shape_spec.h"

namespace pergola {

class RoundedCheckpoint : public Checkpoint {
 public:
  // Changes one row, of all inputs of an output; `projection` as in HeldDType.
  using Change = std::function<void(std::vector<float>* row, DType file, bool projection)>;

  RoundedCheckpoint(const Checkpoint& inner, const Change& change) : inner_(inner) {
    tensors_ = inner.tensors();
    std::set<std::string> done;
    for (const WeightBinding& binding : inner.weights()) {
      if (binding.shape.size() != 2 || !done.insert(binding.tensor).second) continue;
      Replace(binding, change);
    }
  }
  const ModelSpec& spec() const override { return inner_.spec(); }
  const std::vector<WeightBinding>& weights() const override { return inner_.weights(); }
  const std::vector<std::string>& files() const override { return inner_.files(); }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(const std::string& name) const override {
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  absl::StatusOr<std::string> Fingerprint() const override { return inner_.Fingerprint(); }
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override {
    const auto found = values_.find(tensor.name);
    if (found == values_.end()) return inner_.Read(tensor, offset, out);
    std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(found->second.data()) + offset,
                out.size());
    return absl::OkStatus();
  }

 private:
  void Replace(const WeightBinding& binding, const Change& change) {
    auto& info = const_cast<TensorInfo&>(*Find(binding.tensor));
    const int64_t lines = info.shape[0], width = info.shape[1];
    std::vector<uint8_t> bytes(static_cast<size_t>(info.bytes));
    const absl::Status read = inner_.Read(info, 0, absl::MakeSpan(bytes));
    EXPECT_TRUE(read.ok()) << read;
    std::vector<float>& values = values_[binding.tensor];
    values.resize(static_cast<size_t>(lines * width));
    DecodeToF32(info.dtype, bytes.data(), lines * width, values.data());
    const int64_t rows = binding.transposed ? width : lines;
    const int64_t columns = binding.transposed ? lines : width;
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      const auto at = [&](int64_t k) -> float& {
        return values[static_cast<size_t>(binding.transposed ? k * width + r : r * width + k)];
      };
      for (int64_t k = 0; k < columns; ++k) row[static_cast<size_t>(k)] = at(k);
      change(&row, info.dtype, IsProjection(KindOf(binding.role)));
      for (int64_t k = 0; k < columns; ++k) at(k) = row[static_cast<size_t>(k)];
    }
    info.dtype = DType::kF32;
    info.bytes = static_cast<int64_t>(values.size() * sizeof(float));
  }

  const Checkpoint& inner_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

}  // namespace pergola
