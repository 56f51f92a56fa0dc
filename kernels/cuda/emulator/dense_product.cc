// DenseProduct of the emulator: the sums in order of k with fused multiply-adds, as a kernel, so
// that it is captured like one.
#include "kernels/cuda/dense_product.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/device.cuh"

namespace pergola {
namespace {

constexpr int64_t kBlockOutputs = 64;

float Load(DType dtype, const void* from, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[index];
  if (dtype == DType::kBF16) return ToFloat(static_cast<const __nv_bfloat16*>(from)[index]);
  return ToFloat(static_cast<const __half*>(from)[index]);
}

void Store(DType dtype, void* to, int64_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(to)[index] = value;
  } else if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(to)[index] = FromFloat<__nv_bfloat16>(value);
  } else {
    static_cast<__half*>(to)[index] = FromFloat<__half>(value);
  }
}

void DenseKernel(DenseProductArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kBlockOutputs;
  const int64_t end = std::min(begin + kBlockOutputs, args.outputs);
  for (int64_t o = begin + threadIdx.x; o < end; o += kWarpThreads) {
    float sum = 0;
    for (int64_t k = 0; k < args.columns; ++k) {
      sum = std::fma(Load(args.dtype, args.x, row * args.x_stride + k),
                     Load(args.dtype, args.w, o * args.w_stride + k), sum);
    }
    const int64_t index = row * args.y_stride + o;
    if (args.bias != nullptr) sum += Load(args.y_dtype, args.bias, o);
    if (args.accumulate) sum += Load(args.y_dtype, args.y, index);
    Store(args.y_dtype, args.y, index, sum);
  }
}

class PlainProduct : public DenseProduct {
 public:
  void Multiply(const CudaContext& context, const DenseProductArgs& args) override {
    if (args.rows == 0 || args.outputs == 0) return;
    const dim3 grid(static_cast<unsigned>(args.rows),
                    static_cast<unsigned>((args.outputs + kBlockOutputs - 1) / kBlockOutputs));
    Launch(DenseKernel, grid, kWarpThreads, 0, context, args);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<DenseProduct>> DenseProduct::Create() {
  return std::make_unique<PlainProduct>();
}

}  // namespace pergola
