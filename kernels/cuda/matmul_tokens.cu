// Many tokens by weights of eight bits, the tokens in eight bits too (W8A8): products of integers
// or e4m3 by cuBLASLt, twice as many a second as of 16 bits, from half the bytes.
//
// fp8: y = x_scale w_scale (sum of products) + bias, all the library's. Roof: the tensor cores.
//
// int8: the library gives the sums in int32, a tile of outputs at a time so that they stay in L2,
// and a kernel here scales them and adds the rest: the outliers, which are multiplied as they are
// (Dettmers et al., LLM.int8(), arXiv:2208.07339, section 3), and the bias. Outliers of a model lie
// in few columns, the same for all tokens (section 4 there), so a block of 64 tokens by 64 outputs
// takes the list of its tokens' columns and multiplies those on the tensor cores, weights and x as
// 16-bit floats, both exact; a token's other values are zeros. Without outliers the kernel moves
// six bytes an output (four of them from L2); each 16 columns cost 64 gathered bytes of weights an
// output for 64 tokens.
#include <algorithm>

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul_parts.cuh"
#include "kernels/cuda/tokens.h"

namespace pergola {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = static_cast<int>(kOutlierRows);
constexpr int kTileOutputs = 64;
constexpr int kWarpRows = 32;                     // of the tile: two halves by four
constexpr int64_t kSumBytes = int64_t{24} << 20;  // of an L2 of 40 MiB (A100) or 50 (H100, H200)
constexpr int64_t kAlignment = 256;

struct FinishParams {
  const int32_t* sums = nullptr;  // [rows, sums_stride], of outputs first_output on
  int64_t sums_stride = 0;
  int64_t first_output = 0;
  int64_t outputs = 0;  // of this tile
  InputView x;
  CudaMatrix w;
  CudaRowShape shape;
  OutputView y;
  TokensView tokens;
};

// Weight of column `column` of row `row`, and x where it is an outlier; zeros elsewhere.
template <typename A>
__device__ __forceinline__ uint32_t WeightBits(const FinishParams& params, int64_t row,
                                               int32_t column) {
  if (column < 0 || row >= params.w.rows) return 0;
  const auto q = static_cast<int8_t>(params.w.data[row * params.shape.stride + column]);
  return Reinterpret<uint16_t>(FromFloat<A>(static_cast<float>(q)));
}
template <typename A>
__device__ __forceinline__ uint32_t OutlierBits(const FinishParams& params, int64_t row,
                                                int32_t column) {
  if (column < 0 || row >= params.tokens.rows) return 0;
  const uint8_t mask = params.tokens.mask[row * params.tokens.mask_stride + column / 8];
  if ((mask >> (column % 8) & 1) == 0) return 0;
  return Reinterpret<uint16_t>(
      static_cast<const A*>(params.x.x)[row * params.tokens.columns + column]);
}

// A warp's 16 outputs by 32 tokens, over the group's `count` columns.
template <typename A>
__device__ __forceinline__ void MultiplyOutliers(const FinishParams& params, int64_t first_row,
                                                 int64_t first_output, int count,
                                                 float (&sums)[4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads, g = lane / 4, t = lane % 4;
  const int32_t* columns =
      params.tokens.outlier_columns + first_row / kTileRows * params.tokens.columns;
  for (int begin = 0; begin < count; begin += 16) {
    int32_t column[4];  // of k = 2 t, 2 t + 1, 2 t + 8, 2 t + 9
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = begin + 2 * t + i % 2 + i / 2 * 8;
      column[i] = at < count ? columns[at] : -1;
    }
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first_output + g + i % 2 * 8;
      a[i] = WeightBits<A>(params, row, column[i / 2 * 2]) |
             WeightBits<A>(params, row, column[i / 2 * 2 + 1]) << 16;
    }
#pragma unroll
    for (int nt = 0; nt < 4; ++nt) {
      const int64_t row = first_row + nt * 8 + g;
      uint32_t b[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b[i] = OutlierBits<A>(params, row, column[2 * i]) |
               OutlierBits<A>(params, row, column[2 * i + 1]) << 16;
      }
      Mma16816<A>(sums[nt], a, b);
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads) FinishInt8Kernel(FinishParams params) {
  BeginKernel();
  __shared__ float outliers[kTileRows][kTileOutputs + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpThreads, lane = thread % kWarpThreads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTileOutputs;  // in the tile
  const int count = params.tokens.outlier_counts[blockIdx.x];
  if (count > 0) {
    const int row = warp / 4 * kWarpRows, output = warp % 4 * 16;
    float sums[4][4] = {};
    MultiplyOutliers<A>(params, first_row + row, params.first_output + first + output, count, sums);
#pragma unroll
    for (int nt = 0; nt < 4; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        outliers[row + nt * 8 + lane % 4 * 2 + i % 2][output + lane / 4 + i / 2 * 8] = sums[nt][i];
      }
    }
    __syncthreads();
  }
  for (int i = thread; i < kTileRows * kTileOutputs; i += kThreads) {
    const int64_t row = first_row + i / kTileOutputs, output = first + i % kTileOutputs;
    if (row >= params.tokens.rows || output >= params.outputs) continue;
    const auto sum = static_cast<float>(params.sums[row * params.sums_stride + output]);
    const float rest = count > 0 ? outliers[i / kTileOutputs][i % kTileOutputs] : 0.0F;
    StoreProduct(params.y, row, params.first_output + output,
                 fmaf(params.tokens.scale[row], sum, rest));
  }
}

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

// Where things lie in the workspace: the library's share first.
struct TokensPlan {
  int64_t library_bytes = 0;
  int64_t bytes = 0;
  uint8_t* bias = nullptr;  // of fp8, in y's dtype
  TokensView tokens;
  int32_t* sums = nullptr;  // of int8, [rows, tile_outputs]
  int64_t tile_outputs = 0;
};

// Parts of the workspace one after the other.
class Parts {
 public:
  explicit Parts(uint8_t* workspace) : workspace_(workspace) {}
  template <typename T>
  T* Take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return workspace_ == nullptr ? nullptr : reinterpret_cast<T*>(workspace_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* workspace_;
  int64_t bytes_ = 0;
};

void TakeTokens(const CudaMatrix& w, int64_t rows, Parts* parts, TokensPlan* plan) {
  TokensView& tokens = plan->tokens;
  tokens.dtype = w.dtype;
  tokens.rows = rows;
  tokens.columns = w.columns;
  tokens.stride = RoundUp(w.columns, kCudaRowAlignment);
  tokens.q = parts->Take<uint8_t>(rows * tokens.stride);
  tokens.scale = parts->Take<float>(rows);
  if (w.dtype == DType::kFp8) {
    plan->bias = parts->Take<uint8_t>(2 * w.rows);
    return;
  }
  tokens.mask_stride = tokens.stride / 8;
  tokens.mask = parts->Take<uint8_t>(rows * tokens.mask_stride);
  tokens.outlier_columns = parts->Take<int32_t>(tokens.groups() * w.columns);
  tokens.outlier_counts = parts->Take<int32_t>(tokens.groups());
}

// In `workspace`, or (nullptr) what it would be in an ample one. The tokens lie behind the
// library's share, whose size depends on what is left.
TokensPlan PlanTokens(const CudaMatrix& w, int64_t rows, uint8_t* workspace,
                      int64_t workspace_bytes) {
  TokensPlan plan;
  Parts fixed(nullptr);
  TakeTokens(w, rows, &fixed, &plan);
  int64_t sum_bytes = 0;
  if (w.dtype == DType::kInt8) {
    const int64_t room = std::min(kSumBytes, (workspace_bytes - fixed.bytes()) / 2);
    const int64_t outputs = room / (4 * rows) / kTileOutputs * kTileOutputs;
    plan.tile_outputs = std::min(std::max<int64_t>(outputs, kTileOutputs), w.rows);
    sum_bytes = RoundUp(4 * rows * plan.tile_outputs, kAlignment);
  }
  const int64_t left = workspace_bytes - fixed.bytes() - sum_bytes;
  plan.library_bytes = std::min(kDenseWorkspaceBytes, left) / kAlignment * kAlignment;
  plan.bytes = plan.library_bytes + fixed.bytes() + sum_bytes;
  if (workspace == nullptr || left < 0) return plan;
  Parts parts(workspace + plan.library_bytes);
  TakeTokens(w, rows, &parts, &plan);
  if (sum_bytes > 0) plan.sums = parts.Take<int32_t>(rows * plan.tile_outputs);
  return plan;
}

DenseProductArgs Fp8ArgsOf(const CudaMatmulArgs& args, const TokensPlan& plan) {
  DenseProductArgs dense;
  dense.dtype = DType::kFp8;
  dense.y_dtype = args.y.dtype();
  dense.rows = args.x.dim(0);
  dense.columns = plan.tokens.stride;  // zeros beyond
  dense.outputs = args.w.rows;
  dense.x = plan.tokens.q;
  dense.x_stride = plan.tokens.stride;
  dense.x_scales = plan.tokens.scale;
  const CudaRowShape shape = CudaRowShapeOf(args.w.dtype, args.w.columns, 0);
  dense.w = args.w.data;
  dense.w_stride = shape.stride;
  dense.w_scales = RowScales(args.w, shape);
  dense.y = args.y.data();
  dense.y_stride = args.y_stride;
  dense.bias = args.bias != nullptr ? plan.bias : nullptr;
  dense.accumulate = args.accumulate;
  dense.gelu = args.gelu;
  return dense;
}

DenseProductArgs Int8ArgsOf(const CudaMatmulArgs& args, const TokensPlan& plan, int64_t first) {
  DenseProductArgs dense;
  dense.dtype = DType::kInt8;
  dense.y_dtype = DType::kI32;
  dense.rows = args.x.dim(0);
  dense.columns = plan.tokens.stride;
  dense.outputs = std::min(plan.tile_outputs, args.w.rows - first);
  dense.x = plan.tokens.q;
  dense.x_stride = plan.tokens.stride;
  dense.w_stride = CudaRowShapeOf(args.w.dtype, args.w.columns, 0).stride;
  dense.w = args.w.data + first * dense.w_stride;
  dense.y = plan.sums;
  dense.y_stride = plan.tile_outputs;
  return dense;
}

void MultiplyInt8(const CudaContext& context, const CudaContext& library,
                  const CudaMatmulArgs& args, const TokensPlan& plan) {
  ListOutliersCuda(context, plan.tokens);
  const ProductParams product = ProductParamsOf(args);
  FinishParams params;
  params.sums = plan.sums;
  params.sums_stride = plan.tile_outputs;
  params.x = product.x;
  params.w = args.w;
  params.shape = product.shape;
  params.y = product.y;
  params.tokens = plan.tokens;
  const auto kernel =
      args.x.dtype() == DType::kBF16 ? FinishInt8Kernel<__nv_bfloat16> : FinishInt8Kernel<__half>;
  for (int64_t first = 0; first < args.w.rows; first += plan.tile_outputs) {
    const DenseProductArgs dense = Int8ArgsOf(args, plan, first);
    context.dense->Multiply(library, dense);
    params.first_output = first;
    params.outputs = dense.outputs;
    const dim3 grid(static_cast<unsigned>(plan.tokens.groups()),
                    static_cast<unsigned>((dense.outputs + kTileOutputs - 1) / kTileOutputs));
    Launch(kernel, grid, kThreads, 0, context, params);
  }
}

TokensPlan PlanOf(const CudaContext& context, const CudaMatmulArgs& args) {
  return PlanTokens(args.w, args.x.dim(0), context.workspace, context.workspace_bytes);
}

CudaContext LibraryContext(const CudaContext& context, const TokensPlan& plan) {
  CudaContext library = context;
  library.workspace_bytes = plan.library_bytes;
  return library;
}

}  // namespace

bool MultipliesEightBitTokens(const CudaContext& context, const CudaMatmulArgs& given) {
  CudaMatmulArgs args = given;
  if (args.y_stride == 0) args.y_stride = args.w.rows;
  const DType x = args.x.dtype();
  if (args.tokens != CudaTokens::kEightBits || !HasRowScale(args.w.dtype)) return false;
  if (args.x.dim(0) == 0 || (x != DType::kBF16 && x != DType::kF16)) return false;
  const bool fp8 = args.w.dtype == DType::kFp8;
  if (fp8 && args.y.dtype() != x) return false;
  const TokensPlan plan = PlanOf(context, args);
  PERGOLA_CHECK_MSG(plan.library_bytes >= 0 && plan.bytes <= context.workspace_bytes,
                    "a workspace of " + std::to_string(context.workspace_bytes) +
                        " bytes for tokens in eight bits that need " + std::to_string(plan.bytes));
  PERGOLA_CHECK(context.dense != nullptr);
  const DenseProductArgs dense = fp8 ? Fp8ArgsOf(args, plan) : Int8ArgsOf(args, plan, 0);
  return context.dense->Has(LibraryContext(context, plan), dense);
}

TokensView TokensOfProduct(const CudaContext& context, const CudaMatmulArgs& args) {
  return PlanOf(context, args).tokens;
}

int64_t MatmulTokensWorkspaceBytes(const CudaMatrix& w, int64_t rows) {
  constexpr int64_t kAmple = int64_t{1} << 40;
  return PlanTokens(w, std::max<int64_t>(rows, 1), nullptr, kAmple).bytes;
}

void MatmulTokensCuda(const CudaContext& context, const CudaMatmulArgs& args) {
  const TokensPlan plan = PlanOf(context, args);
  const CudaContext library = LibraryContext(context, plan);
  if (!args.tokens_made) QuantizeTokensCuda(context, args.x, plan.tokens);
  if (args.w.dtype == DType::kInt8) return MultiplyInt8(context, library, args, plan);
  if (args.bias != nullptr) {
    ConvertCuda(context, args.bias, args.w.rows, args.y.dtype(), plan.bias);
  }
  context.dense->Multiply(library, Fp8ArgsOf(args, plan));
}

}  // namespace pergola
