// Few rows by weights in blocks of 32: 4.5 to 8.5 bits per weight, read once. Algorithm, memory
// traffic and roof: kernels/cuda/matmul_tensor.cuh.
#include "kernels/cuda/matmul_tensor.cuh"

namespace pergola {

void MatmulBlocksTensorCuda(const CudaContext& context, const CudaMatmulArgs& args) {
  switch (args.w.dtype) {
    case DType::kQ8_0:
      return TensorProductOf<DType::kQ8_0>(context, args);
    case DType::kQ4_0:
      return TensorProductOf<DType::kQ4_0>(context, args);
    case DType::kQ4_1:
      return TensorProductOf<DType::kQ4_1>(context, args);
    case DType::kQ5_0:
      return TensorProductOf<DType::kQ5_0>(context, args);
    case DType::kQ5_1:
      return TensorProductOf<DType::kQ5_1>(context, args);
    default:
      PERGOLA_CHECK(args.w.dtype == DType::kIQ4_NL);
      return TensorProductOf<DType::kIQ4_NL>(context, args);
  }
}

}  // namespace pergola
