// Few rows by K-quants, blocks of 256 with small scales inside: 2.6 to 6.6 bits per weight, read
// once. Algorithm, memory traffic and roof: kernels/cuda/matmul_tensor.cuh.
#include "kernels/cuda/matmul_tensor.cuh"

namespace pergola {

void MatmulSuperblocksTensorCuda(const CudaContext& context, const CudaMatmulArgs& args) {
  switch (args.w.dtype) {
    case DType::kQ2_K:
      return TensorProductOf<DType::kQ2_K>(context, args);
    case DType::kQ3_K:
      return TensorProductOf<DType::kQ3_K>(context, args);
    case DType::kQ4_K:
      return TensorProductOf<DType::kQ4_K>(context, args);
    case DType::kQ5_K:
      return TensorProductOf<DType::kQ5_K>(context, args);
    default:
      PERGOLA_CHECK(args.w.dtype == DType::kQ6_K);
      return TensorProductOf<DType::kQ6_K>(context, args);
  }
}

}  // namespace pergola
