// Where a test of an op's contract runs: on a target of the CPU, or on a CUDA device (the
// emulator's in kernels_tests, a GPU's in cuda_kernels_tests) with activations of a type. The op is
// called as the decoder calls it, through a Stream and the checked functions of decoder_ops.h and
// matmul.h; the reference computes on the host what it should say.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/matmul.h"
#include "kernels/stream.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {

struct OpPlace {
  Device device = Device::kCpu;
  CpuTarget target = CpuTarget::kReference;
  DType dtype = DType::kF32;  // of activations
};

inline std::vector<OpPlace> CudaPlaces() {
  std::vector<OpPlace> places;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    places.push_back({Device::kCuda, CpuTarget::kPortable, dtype});
  }
  return places;
}
inline std::vector<OpPlace> AllPlaces() {
  std::vector<OpPlace> places;
  for (const CpuTarget target : kAllTargets) places.push_back({Device::kCpu, target, DType::kF32});
  for (const OpPlace& place : CudaPlaces()) places.push_back(place);
  return places;
}

// Of ops whose tensors are f32 everywhere.
inline std::vector<OpPlace> F32Places() {
  std::vector<OpPlace> places;
  for (const OpPlace& place : AllPlaces()) {
    if (place.dtype == DType::kF32) places.push_back(place);
  }
  return places;
}

// "portable", "cuda_bf16".
inline std::string PlaceName(const OpPlace& place) {
  if (place.device == Device::kCpu) return CpuTargetName(place.target);
  return "cuda_" + std::string(DTypeName(place.dtype));
}
inline void PrintTo(const OpPlace& place, std::ostream* out) {
  *out << PlaceName(place);
}

// A visible skip where this machine lacks the place.
#define SKIP_WITHOUT_PLACE(place)                                              \
  if ((place).device == Device::kCuda && CudaDeviceCount() == 0) {             \
    GTEST_SKIP() << "there is no CUDA device";                                 \
  }                                                                            \
  if ((place).device == Device::kCpu && !CpuTargetSupported((place).target)) { \
    GTEST_SKIP() << "this machine lacks " << CpuTargetName((place).target);    \
  }

class OpDevice {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{16} << 20;

  explicit OpDevice(const OpPlace& place, int threads = 2)
      : place_(place), host_(MakeStream(place.target, threads)) {
    if (place.device == Device::kCpu) return;
    auto opened = OpenCudaStream(0, *host_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    gpu_ = std::move(opened).value();
    workspace_ = DeviceBuffer(*gpu_, kWorkspaceBytes);
    gpu_->UseWorkspace(workspace_.data(), workspace_.size());
  }
  Stream& stream() { return gpu_ != nullptr ? *gpu_ : *host_; }
  DType dtype() const { return place_.dtype; }
  bool on_cpu() const { return place_.device == Device::kCpu; }

  // Roundings of a sum of `count` terms. On the CPU sixteen lanes and a tree; on a GPU a block's
  // 256 threads and two butterflies.
  double SumError(int64_t count) const {
    return static_cast<double>(count) / (on_cpu() ? 16 : 256) + (on_cpu() ? 5 : 11);
  }
  // Of a result written as an activation, beyond what f32 costs.
  double StoreError(double value) const {
    return place_.dtype == DType::kF32 ? 0 : RoundingError(place_.dtype, value);
  }

 private:
  const OpPlace place_;
  std::unique_ptr<CpuStream> host_;
  std::unique_ptr<Stream> gpu_;
  DeviceBuffer workspace_;
};

// Values in the memory of a device.
template <typename T>
class OnDevice {
 public:
  OnDevice(OpDevice& device, const std::vector<T>& values)
      : stream_(device.stream()),
        count_(values.size()),
        buffer_(stream_, static_cast<int64_t>(values.size() * sizeof(T))) {
    stream_.CopyToDevice(buffer_.data(), values.data(), buffer_.size());
    EXPECT_TRUE(stream_.Synchronize().ok());
  }
  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    stream_.CopyToHost(values.data(), buffer_.data(), buffer_.size());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return values;
  }

 private:
  Stream& stream_;
  size_t count_;
  DeviceBuffer buffer_;
};

// A matrix of f32, bf16 or f16 in the memory of a device, given and read as f32.
class OpTensor {
 public:
  OpTensor(OpDevice& device, DType dtype, int64_t rows, int64_t columns,
           const std::vector<float>& values)
      : dtype_(dtype), rows_(rows), columns_(columns), bytes_(device, ToBytes(dtype, values)) {}
  Tensor tensor() const { return Tensor(bytes_.data(), dtype_, {rows_, columns_}); }
  std::vector<float> Read() const { return ToFloats(dtype_, bytes_.Read()); }

 private:
  DType dtype_;
  int64_t rows_, columns_;
  OnDevice<uint8_t> bytes_;
};

inline Tensor HostTensor(std::vector<float>* values, int64_t rows, int64_t columns) {
  return Tensor(values->data(), DType::kF32, {rows, columns});
}

// Packs all rows of a matrix on `stream`, as the loader does.
inline void PackWhole(Stream& stream, const void* source, int64_t source_row_bytes,
                      PackedMatrix* matrix) {
  const PackedShape& shape = matrix->shape();
  if (shape.panels) return matrix->PackRows(0, shape.rows, source, source_row_bytes);
  std::vector<uint8_t> image(static_cast<size_t>(shape.bytes()));
  PackRows(shape, 0, shape.rows, source, source_row_bytes, image.data());
  stream.CopyToDevice(matrix->memory(), image.data(), shape.bytes());
  EXPECT_TRUE(stream.Synchronize().ok());
}

}  // namespace pergola
