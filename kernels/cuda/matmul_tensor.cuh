// The product of few rows: weights stream once from memory to the tensor cores.
//
// A block computes 16 or 32 outputs by up to 32 rows; its eight warps take turns along K, each with
// its own sums, which are added at the end in the order of the warps. Weights are the A operand
// (16 outputs by 16 of K), x's rows the B operand (8 rows each): so one row of x costs no more
// instructions than eight, about 1.5 per 4-bit weight, and the vector units, which at one row could
// not follow 4-bit weights at 4.8 TB/s (7.7e12 weights/s against 3e13 instructions/s), only unpack.
// Since the order of K inside an operand is free if both have the same, a lane takes its weights
// and the values of x in loads of 16 bytes straight into fragments: no shared memory, no barrier
// but the last. Integers go to the tensor cores exactly; scales and minima join the sums in f32:
//   sum over groups of s_g (sum q x) + m_g (sum x)     the second sum is a product with ones.
//
// Memory: every weight byte is read once per 32 rows of x (16-byte loads that pass the L1 cache,
// 256 values of each output in flight per lane group), x comes from L1 and L2: 8 rows of 4096 in
// bf16 are 64 KiB. The roof is the memory's read bandwidth over the matrix's bytes, up to 16 rows;
// at 32 rows of 4-bit weights with minima the tensor cores' (mma.sync) is as near.
#pragma once

#include <algorithm>

#include "kernels/cuda/matmul_parts.cuh"

namespace pergola {

inline constexpr int kProductWarps = 8;
inline constexpr int kProductThreads = kProductWarps * kWarpThreads;
inline constexpr int kMostSplits = 8;

// How a block shares out its work. kWhole: every octet lies in the matrix and in x, in whole
// 16-byte pieces (IsWhole), so that loads need no tests and chunks only different offsets.
template <DType kD, int kMtOf, int kNtOf, bool kWholeOf>
struct ProductShape {
  static constexpr int kMt = kMtOf;  // tiles of 16 outputs of a warp
  static constexpr int kNt = kNtOf;  // tiles of 8 rows
  static constexpr bool kWhole = kWholeOf;
  // Warps with different outputs read the same values of x at about the same time: of 32 rows they
  // are more bytes than packed weights, and all but the first warp find them in L1.
  static constexpr int kOutputWarps = kNt == 4 ? 4 : 1;
  static constexpr int kTurns = kProductWarps / kOutputWarps;  // warps that share K
  static constexpr int kOutputs = 16 * kMt * kOutputWarps;
  static constexpr int kRows = 8 * kNt;
  // With 32 rows a thread gets all registers it can have: eight warps with many independent
  // products each keep the tensor cores as busy as sixteen.
  static constexpr int kBlocksOfMultiprocessor = kNt == 4 ? 1 : kNt == 2 ? 2 : 3;
  // Units that a lane has in flight at once: 256 values, of 16 bits or in units of 256 only one.
  static constexpr bool kPair = Format<kD>::kUnit == 128 && Format<kD>::kValueBits <= 8;
  static constexpr int kSpan = kPair ? 2 : 1;
};

template <typename A>
__device__ __forceinline__ uint32_t OnesPair() {
  return PackPair<A>(1.0F, 1.0F);
}

// One chunk of 32 values by kNt tiles of 8 rows: sums[mt][nt] += weights x.
template <DType kD, typename A, int kMt, int kNt>
__device__ __forceinline__ void MultiplyChunk(const typename Format<kD>::Raw (&raw)[kMt][2], int p,
                                              const uint32_t (&x)[kNt][4],
                                              float (&sums)[kMt][kNt][4]) {
  using F = Format<kD>;
  constexpr int kGroups = F::kTwoScales ? 2 : 1;  // scales in a chunk
  float ones[F::kMinimum ? kNt : 1][kGroups][4];
  if constexpr (F::kMinimum) {
    const uint32_t one = OnesPair<A>();
    const uint32_t a[4] = {one, one, one, one};
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t b[2] = {x[nt][2 * step], x[nt][2 * step + 1]};
        float(&group)[4] = ones[nt][step * (kGroups - 1)];
        step == 0 || kGroups == 2 ? Mma16816Zero<A>(group, a, b) : Mma16816<A>(group, a, b);
      }
    }
  }
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt) {
    uint32_t low[4], high[4];
    F::template Pairs<A>(raw[mt][0], p, low);
    F::template Pairs<A>(raw[mt][1], p, high);
    float s[2][2], m[2][2];
    F::Scales(raw[mt][0], p, s[0], m[0]);
    F::Scales(raw[mt][1], p, s[1], m[1]);
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      float d[kGroups][4];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t a[4] = {low[2 * step], high[2 * step], low[2 * step + 1],
                               high[2 * step + 1]};
        const uint32_t b[2] = {x[nt][2 * step], x[nt][2 * step + 1]};
        if constexpr (F::kScaled) {
          float(&group)[4] = d[step * (kGroups - 1)];
          step == 0 || kGroups == 2 ? Mma16816Zero<A>(group, a, b) : Mma16816<A>(group, a, b);
        } else {
          Mma16816<A>(sums[mt][nt], a, b);
        }
      }
      if constexpr (F::kScaled) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& sum = sums[mt][nt][i];
            sum = fmaf(s[i / 2][group], d[group][i], sum);
            if constexpr (F::kMinimum) sum = fmaf(m[i / 2][group], ones[nt][group][i], sum);
          }
        }
      }
    }
  }
}

// Adds the sums of the warps that share K in order and stores them, or this split's share.
template <typename S>
__device__ __forceinline__ void StoreSums(const ProductParams& params, int64_t tile,
                                          const float (&sums)[S::kMt][S::kNt][4]) {
  __shared__ float shared[S::kTurns][S::kOutputs][S::kRows + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpThreads, lane = thread % kWarpThreads;
  const int first = warp % S::kOutputWarps * S::kMt * 16;
#pragma unroll
  for (int mt = 0; mt < S::kMt; ++mt) {
#pragma unroll
    for (int nt = 0; nt < S::kNt; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared[warp / S::kOutputWarps][first + mt * 16 + lane / 4 + i / 2 * 8]
              [nt * 8 + lane % 4 * 2 + i % 2] = sums[mt][nt][i];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < S::kOutputs * S::kRows; i += kProductThreads) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * S::kRows + i / S::kOutputs;
    const int64_t output = tile * S::kOutputs + i % S::kOutputs;
    if (row >= params.x.rows || output >= params.y.outputs) continue;
    float sum = 0;
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      sum += shared[turn][i % S::kOutputs][i / S::kOutputs];
    }
    if (params.splits > 1) {
      params.partial[(blockIdx.z * params.x.rows + row) * params.y.outputs + output] = sum;
    } else {
      StoreProduct(params.y, row, output, sum);
    }
  }
}

// The two rows of weights of each of a warp's tiles of outputs that a lane reads.
template <int kMt>
struct WeightRows {
  const uint8_t* rows[kMt][2];
};
template <typename S>
__device__ __forceinline__ WeightRows<S::kMt> FindWeightRows(const ProductParams& params,
                                                             int64_t tile) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t first = tile * S::kOutputs + warp % S::kOutputWarps * S::kMt * 16 + lane / 4;
  const int64_t last = params.w.rows - 1;  // beyond it: read, never stored
  WeightRows<S::kMt> weights;
#pragma unroll
  for (int i = 0; i < 2 * S::kMt; ++i) {
    const int64_t output = first + 8 * i < last ? first + 8 * i : last;
    weights.rows[i / 2][i % 2] = params.w.data + output * params.shape.stride;
  }
  return weights;
}

// A lane's weights of a unit, if there is one.
template <DType kD, typename S>
__device__ __forceinline__ void LoadUnit(typename Format<kD>::Raw (&raw)[S::kMt][2],
                                         const WeightRows<S::kMt>& weights,
                                         const CudaRowShape& shape, int unit, int t) {
  if (unit >= static_cast<int>(shape.units)) return;
#pragma unroll
  for (int mt = 0; mt < S::kMt; ++mt) {
    Format<kD>::template Load<S::kWhole>(raw[mt][0], weights.rows[mt][0], shape, unit, t);
    Format<kD>::template Load<S::kWhole>(raw[mt][1], weights.rows[mt][1], shape, unit, t);
  }
}

// sums += the products of a unit.
template <DType kD, typename A, typename S>
__device__ __forceinline__ void MultiplyUnit(const ProductParams& params,
                                             const typename Format<kD>::Raw (&raw)[S::kMt][2],
                                             const InputRow<A> (&inputs)[S::kNt], int unit, int t,
                                             float (&sums)[S::kMt][S::kNt][4]) {
#pragma unroll
  for (int p = 0; p < Format<kD>::kChunks; ++p) {
    uint32_t x[S::kNt][4];
#pragma unroll
    for (int nt = 0; nt < S::kNt; ++nt) {
      LoadInputOctet<kD, A, S::kWhole>(params.x, inputs[nt], unit, p, t, x[nt]);
    }
    MultiplyChunk<kD, A, S::kMt, S::kNt>(raw, p, x, sums);
  }
}

template <DType kD, typename A, typename S>
__global__ void __launch_bounds__(kProductThreads, S::kBlocksOfMultiprocessor)
    TensorProductKernel(const __grid_constant__ ProductParams params) {
  LetNextBegin();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads, t = lane % 4;
  const int units = static_cast<int>(params.shape.units);
  const int turn =
      static_cast<int>(blockIdx.z) * S::kTurns + thread / kWarpThreads / S::kOutputWarps;
  const int step = params.splits * S::kTurns * S::kSpan;
  const int first = turn * S::kSpan;
  const int64_t tiles = (params.y.outputs + S::kOutputs - 1) / S::kOutputs;
  int64_t tile = blockIdx.y;
  WeightRows<S::kMt> weights = FindWeightRows<S>(params, tile);
  typename Format<kD>::Raw raw[S::kSpan][S::kMt][2];
  // Nobody writes weights: they are under way before the kernel before this one has ended.
#pragma unroll
  for (int u = 0; u < S::kSpan; ++u) LoadUnit<kD, S>(raw[u], weights, params.shape, first + u, t);
  AwaitPrevious();
  InputRow<A> inputs[S::kNt];
#pragma unroll
  for (int nt = 0; nt < S::kNt; ++nt) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * S::kRows + nt * 8 + lane / 4;
    inputs[nt] = InputRowOf<A, S::kWhole>(params.x, row);
  }
  while (true) {
    float sums[S::kMt][S::kNt][4] = {};
    for (int begin = first; begin < units; begin += step) {
#pragma unroll
      for (int u = 0; u < S::kSpan; ++u) {
        if (begin + u < units) {
          MultiplyUnit<kD, A, S>(params, raw[u], inputs, begin + u, t, sums);
        }
        LoadUnit<kD, S>(raw[u], weights, params.shape, begin + step + u, t);
      }
    }
    // The next tile's first weights are under way while this one's sums are added up.
    const int64_t stored = tile;
    tile += gridDim.y;
    if (tile < tiles) {
      weights = FindWeightRows<S>(params, tile);
#pragma unroll
      for (int u = 0; u < S::kSpan; ++u) {
        LoadUnit<kD, S>(raw[u], weights, params.shape, first + u, t);
      }
    }
    StoreSums<S>(params, stored, sums);
    if (tile >= tiles) return;
    __syncthreads();  // nobody reads the sums any more
  }
}

// Splits of K, where outputs are so few that a quarter of the machine would be busy at most (with
// 32 rows, whose tiles are larger, all of it): only there they gain more than the second launch
// costs. Each split has work for all of its warps.
template <typename S>
int SplitsOf(const CudaContext& context, const ProductParams& params, int64_t blocks) {
  constexpr int kShare = S::kOutputWarps == 1 ? 4 : 1;
  if (kShare * blocks > context.multiprocessors) return 1;
  const int64_t wanted = (context.multiprocessors + blocks - 1) / blocks;
  const int64_t room =
      context.workspace_bytes / (4 * std::max<int64_t>(1, params.x.rows * params.y.outputs));
  const int64_t most = std::min<int64_t>(params.shape.units / (S::kSpan * S::kTurns), kMostSplits);
  return static_cast<int>(std::max<int64_t>(std::min(std::min(wanted, room), most), 1));
}

template <DType kD, typename A, typename S>
void LaunchTensorProduct(const CudaContext& context, ProductParams params) {
  const int64_t tiles = (params.y.outputs + S::kOutputs - 1) / S::kOutputs;
  const int64_t chunks = (params.x.rows + S::kRows - 1) / S::kRows;
  params.splits = SplitsOf<S>(context, params, tiles * chunks);
  params.partial = reinterpret_cast<float*>(context.workspace);
  // As many blocks as run at once; the others' tiles are theirs too, one after the other. Row
  // chunks of the same weights run side by side: all but the first find them in L2.
  const int64_t places = int64_t{S::kBlocksOfMultiprocessor} * context.multiprocessors;
  const int64_t blocks = std::min(tiles, std::max<int64_t>(places / (chunks * params.splits), 1));
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(blocks),
                  static_cast<unsigned>(params.splits));
  Launch(TensorProductKernel<kD, A, S>, grid, kProductThreads, 0, context, params);
  if (params.splits > 1) FinishSplitsCuda(context, params);
}

// Whether the product has octets of whole units only; others are few, and go eight rows at a time.
template <DType kD>
bool IsWhole(const ProductParams& params) {
  return params.x.vectors && params.x.lead == 0 && params.x.columns % Format<kD>::kUnit == 0;
}

template <DType kD, typename A>
void TensorProduct(const CudaContext& context, const CudaMatmulArgs& args) {
  const ProductParams params = ProductParamsOf(args);
  const int64_t rows = params.x.rows;
  if (Format<kD>::kValueBits == 16) PERGOLA_CHECK(rows <= kMostPlainTensorRows);
  if (!IsWhole<kD>(params)) {
    return LaunchTensorProduct<kD, A, ProductShape<kD, 1, 1, false>>(context, params);
  }
  if (rows <= 8) return LaunchTensorProduct<kD, A, ProductShape<kD, 1, 1, true>>(context, params);
  if (rows <= 16) return LaunchTensorProduct<kD, A, ProductShape<kD, 1, 2, true>>(context, params);
  if constexpr (Format<kD>::kValueBits != 16) {
    // Superblocks have their registers full with one tile of outputs.
    constexpr int kMt = Format<kD>::kUnit == 256 ? 1 : 2;
    LaunchTensorProduct<kD, A, ProductShape<kD, kMt, 4, true>>(context, params);
  }
}

template <DType kD>
void TensorProductOf(const CudaContext& context, const CudaMatmulArgs& args) {
  if (args.x.dtype() == DType::kBF16) return TensorProduct<kD, __nv_bfloat16>(context, args);
  PERGOLA_CHECK(args.x.dtype() == DType::kF16);
  TensorProduct<kD, __half>(context, args);
}

}  // namespace pergola
