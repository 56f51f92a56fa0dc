// Few rows by dense 16-bit weights of x's dtype, and by int8 and fp8 weights (W8A16): 2 bytes or 1
// byte per weight, read once. Algorithm, memory traffic and roof: kernels/cuda/matmul_tensor.cuh.
#include "kernels/cuda/matmul_tensor.cuh"

namespace pergola {

void MatmulTensorCuda(const CudaContext& context, const CudaMatmulArgs& args) {
  if (args.w.dtype == DType::kInt8) return TensorProductOf<DType::kInt8>(context, args);
  if (args.w.dtype == DType::kFp8) return TensorProductOf<DType::kFp8>(context, args);
  PERGOLA_CHECK(args.w.dtype == args.x.dtype());
  if (args.w.dtype == DType::kBF16) {
    return TensorProduct<DType::kBF16, __nv_bfloat16>(context, args);
  }
  PERGOLA_CHECK(args.w.dtype == DType::kF16);
  TensorProduct<DType::kF16, __half>(context, args);
}

}  // namespace pergola
