// Which way a product goes, by the dtypes and the rows of x; the end of products that split K; and
// the dense products of packed weights, decoded a tile of outputs at a time.
//
//   x f32            up to 8 rows: MatmulF32Cuda; more: dense
//   x bf16 or f16    dense weights of the same dtype: up to 16 rows: tensor cores on streamed
//                    weights, more: dense; packed weights: up to 128 rows tensor cores on streamed
//                    weights, more: dense; dense weights of another dtype: dense
//   tokens in eight bits by int8 or fp8: MatmulTokensCuda, where asked for and to be had
//
// Dense means cuBLASLt (kernels/cuda/dense_product.h), of packed weights after decoding. A decoded
// value costs one write and one read of L2 beside its packed bytes, so the tile stays well below
// L2's size; streaming the packed weights again for each 32 rows is cheaper up to 128.
#include <algorithm>

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul_parts.cuh"

namespace pergola {
namespace {

constexpr int64_t kMostF32Rows = 8;
constexpr int64_t kMostDenseRows = kMostPlainTensorRows;
constexpr int64_t kTileBytes = int64_t{24} << 20;  // of an L2 of 40 MiB (A100) or 50 (H100, H200)
constexpr int64_t kTileOutputs = 64;               // a tile is a multiple of these, or all
constexpr int64_t kAlignment = 256;
constexpr int kThreads = 256;

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

__global__ void __launch_bounds__(kThreads) FinishKernel(ProductParams params) {
  BeginKernel();
  const int64_t outputs = params.y.outputs;
  const int64_t count = params.x.rows * outputs;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int split = 0; split < params.splits; ++split) sum += params.partial[split * count + i];
  StoreProduct(params.y, i / outputs, i % outputs, sum);
}

bool IsDense(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

bool GoesDense(DType x, DType w, int64_t rows) {
  if (x == DType::kF32) return rows > kMostF32Rows;
  if (IsDense(w)) return w != x || rows > kMostDenseRows;
  return rows > kMostStreamedRows;
}

// Workspace of a dense product: the library's, the bias in y's dtype, the decoded tile.
struct DensePlan {
  int64_t library_bytes = 0;
  int64_t bias_bytes = 0;
  int64_t row_bytes = 0;     // of a decoded output
  int64_t tile_outputs = 0;  // 0: weights as they are
  int64_t bytes() const { return library_bytes + bias_bytes + tile_outputs * row_bytes; }
};

DensePlan PlanDense(const CudaMatrix& w, DType x, int64_t workspace_bytes) {
  DensePlan plan;
  plan.bias_bytes = RoundUp(4 * w.rows, kAlignment);
  if (w.dtype != x) {
    plan.row_bytes = RoundUp(w.columns * BlockBytes(x), kCudaRowAlignment);
    const int64_t room = std::min(kTileBytes, (workspace_bytes - plan.bias_bytes) / 2);
    const int64_t outputs = room / plan.row_bytes / kTileOutputs * kTileOutputs;
    plan.tile_outputs = std::min(std::max(outputs, kTileOutputs), RoundUp(w.rows, kTileOutputs));
  }
  plan.library_bytes =
      std::min(kDenseWorkspaceBytes, workspace_bytes - plan.bytes()) / kAlignment * kAlignment;
  return plan;
}

// Outputs first.. first + count - 1, whose weights are `w`.
DenseProductArgs DenseArgsOf(const CudaMatmulArgs& args, int64_t first, int64_t count) {
  DenseProductArgs dense;
  dense.dtype = args.x.dtype();
  dense.y_dtype = args.y.dtype();
  dense.rows = args.x.dim(0);
  dense.columns = args.w.columns;
  dense.outputs = count;
  dense.x = args.x.data();
  dense.x_stride = args.w.columns;
  dense.y = args.y.as<uint8_t>() + first * BlockBytes(args.y.dtype());
  dense.y_stride = args.y_stride;
  dense.accumulate = args.accumulate;
  dense.gelu = args.gelu;
  return dense;
}

void MatmulDense(const CudaContext& context, const CudaMatmulArgs& args) {
  PERGOLA_CHECK(context.dense != nullptr);
  const DensePlan plan = PlanDense(args.w, args.x.dtype(), context.workspace_bytes);
  PERGOLA_CHECK_MSG(plan.library_bytes >= 0 && plan.bytes() <= context.workspace_bytes,
                    "a workspace of " + std::to_string(context.workspace_bytes) +
                        " bytes for a product that needs " + std::to_string(plan.bytes()));
  CudaContext library = context;
  library.workspace_bytes = plan.library_bytes;
  uint8_t* bias = context.workspace + plan.library_bytes;
  uint8_t* tile = bias + plan.bias_bytes;
  if (args.bias != nullptr) {
    ConvertCuda(context, args.bias, args.w.rows, args.y.dtype(), bias);
  }
  const int64_t step = plan.tile_outputs == 0 ? args.w.rows : plan.tile_outputs;
  for (int64_t first = 0; first < args.w.rows; first += step) {
    DenseProductArgs dense = DenseArgsOf(args, first, std::min(step, args.w.rows - first));
    if (args.bias != nullptr) dense.bias = bias + first * BlockBytes(args.y.dtype());
    if (plan.tile_outputs == 0) {
      dense.w = args.w.data;
      dense.w_stride =
          CudaRowShapeOf(args.w.dtype, args.w.columns, 0).stride / BlockBytes(args.w.dtype);
    } else {
      DecodeRowsArgs decode;
      decode.w = args.w;
      decode.first_row = first;
      decode.rows = dense.outputs;
      decode.y = tile;
      decode.y_dtype = args.x.dtype();
      decode.y_stride = plan.row_bytes / BlockBytes(args.x.dtype());
      DecodeRowsCuda(context, decode);
      dense.w = tile;
      dense.w_stride = decode.y_stride;
    }
    context.dense->Multiply(library, dense);
  }
}

void CheckArgs(const CudaMatmulArgs& args) {
  const DType x = args.x.dtype();
  PERGOLA_CHECK(IsDense(x) && (args.y.dtype() == x || args.y.dtype() == DType::kF32));
  PERGOLA_CHECK(args.x.rank() == 2 && args.y.rank() == 2 && args.x.dim(0) == args.y.dim(0));
  PERGOLA_CHECK_MSG(args.x.dim(1) == args.w.columns, "x has " + std::to_string(args.x.dim(1)) +
                                                         " columns, the weights " +
                                                         std::to_string(args.w.columns));
  PERGOLA_CHECK_MSG(args.y.dim(1) == args.w.rows, "y has " + std::to_string(args.y.dim(1)) +
                                                      " columns, the weights " +
                                                      std::to_string(args.w.rows) + " rows");
  PERGOLA_CHECK(args.w.columns > 0 && args.y_stride >= args.w.rows);
  PERGOLA_CHECK(!args.gelu || !args.accumulate);
  PERGOLA_CHECK(reinterpret_cast<uintptr_t>(args.w.data) % kCudaRowAlignment == 0);
}

}  // namespace

ProductParams ProductParamsOf(const CudaMatmulArgs& args) {
  ProductParams params;
  params.x = InputViewOf(args);
  params.w = args.w;
  params.shape = CudaRowShapeOf(args.w.dtype, args.w.columns, args.w.lead);
  params.y.y = args.y.data();
  params.y.dtype = args.y.dtype();
  params.y.stride = args.y_stride;
  params.y.outputs = args.w.rows;
  params.y.bias = args.bias;
  params.y.accumulate = args.accumulate;
  params.y.gelu = args.gelu;
  if (HasRowScale(args.w.dtype)) params.y.scales = RowScales(args.w, params.shape);
  return params;
}

void FinishSplitsCuda(const CudaContext& context, const ProductParams& params) {
  const int64_t count = params.x.rows * params.y.outputs;
  Launch(FinishKernel, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0,
         context, params);
}

void MatmulCuda(const CudaContext& context, const CudaMatmulArgs& given) {
  CudaMatmulArgs args = given;
  if (args.y_stride == 0) args.y_stride = args.w.rows;
  CheckArgs(args);
  const int64_t rows = args.x.dim(0);
  const DType x = args.x.dtype(), w = args.w.dtype;
  if (rows == 0 || args.w.rows == 0) return;
  // Whoever has made the tokens has asked.
  if (args.tokens_made || MultipliesEightBitTokens(context, args)) {
    return MatmulTokensCuda(context, args);
  }
  if (GoesDense(x, w, rows)) return MatmulDense(context, args);
  if (x == DType::kF32) return MatmulF32Cuda(context, args);
  if (IsDense(w) || HasRowScale(w)) return MatmulTensorCuda(context, args);
  if (BlockValues(w) == 32) return MatmulBlocksTensorCuda(context, args);
  MatmulSuperblocksTensorCuda(context, args);
}

int64_t MatmulCudaWorkspaceBytes(const CudaMatrix& w, DType activations, int64_t rows,
                                 CudaTokens tokens) {
  if (HasRowScale(w.dtype) && activations != DType::kF32 && tokens == CudaTokens::kEightBits) {
    // The library may not have it.
    return std::max(MatmulTokensWorkspaceBytes(w, rows),
                    MatmulCudaWorkspaceBytes(w, activations, rows, CudaTokens::kAsTheyAre));
  }
  if (GoesDense(activations, w.dtype, rows)) {
    constexpr int64_t kAmple = int64_t{1} << 40;
    return PlanDense(w, activations, kAmple).bytes();
  }
  // Splits of K: at most eight shares of y, and only where y is small.
  return std::min<int64_t>(8 * 4 * rows * w.rows, kDenseWorkspaceBytes);
}

}  // namespace pergola
