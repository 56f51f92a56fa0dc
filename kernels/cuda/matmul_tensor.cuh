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

// Units that a lane has in flight at once: 256 values of 4-bit weights, 128 of wider ones.
template <DType kD, int kMt>
struct Span {
  static constexpr bool kPair =
      Format<kD>::kScaled && Format<kD>::kUnit == 128 && Format<kD>::kValueBits == 4 && kMt == 1;
  static constexpr int kUnits = kPair ? 2 : 1;
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
  float ones[F::kMinimum ? kNt : 1][kGroups][4] = {};
  if constexpr (F::kMinimum) {
    const uint32_t one = OnesPair<A>();
    const uint32_t a[4] = {one, one, one, one};
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t b[2] = {x[nt][2 * step], x[nt][2 * step + 1]};
        Mma16816<A>(ones[nt][step * (kGroups - 1)], a, b);
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
      float d[kGroups][4] = {};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t a[4] = {low[2 * step], high[2 * step], low[2 * step + 1],
                               high[2 * step + 1]};
        const uint32_t b[2] = {x[nt][2 * step], x[nt][2 * step + 1]};
        if constexpr (F::kScaled) {
          Mma16816<A>(d[step * (kGroups - 1)], a, b);
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

// Adds the warps' sums in order and stores them, or this split's share.
template <int kMt, int kNt>
__device__ __forceinline__ void StoreSums(const ProductParams& params,
                                          const float (&sums)[kMt][kNt][4]) {
  constexpr int kOutputs = 16 * kMt, kRows = 8 * kNt;
  __shared__ float shared[kProductWarps][kOutputs][kRows + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpThreads, lane = thread % kWarpThreads;
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt) {
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared[warp][mt * 16 + lane / 4 + i / 2 * 8][nt * 8 + lane % 4 * 2 + i % 2] =
            sums[mt][nt][i];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < kOutputs * kRows; i += kProductThreads) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + i / kOutputs;
    const int64_t output = static_cast<int64_t>(blockIdx.y) * kOutputs + i % kOutputs;
    if (row >= params.x.rows || output >= params.y.outputs) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kProductWarps; ++w) sum += shared[w][i % kOutputs][i / kOutputs];
    if (params.splits > 1) {
      params.partial[(blockIdx.z * params.x.rows + row) * params.y.outputs + output] = sum;
    } else {
      StoreProduct(params.y, row, output, sum);
    }
  }
}

// A lane's weights of the span of units that begins at `begin`, as far as there are units.
template <DType kD, int kMt>
__device__ __forceinline__ void LoadSpan(
    typename Format<kD>::Raw (&raw)[Span<kD, kMt>::kUnits][kMt][2],
    const uint8_t* const (&rows)[kMt][2], const CudaRowShape& shape, int begin, int units, int t) {
#pragma unroll
  for (int u = 0; u < Span<kD, kMt>::kUnits; ++u) {
    if (begin + u >= units) break;
#pragma unroll
    for (int mt = 0; mt < kMt; ++mt) {
      Format<kD>::Load(raw[u][mt][0], rows[mt][0], shape, begin + u, t);
      Format<kD>::Load(raw[u][mt][1], rows[mt][1], shape, begin + u, t);
    }
  }
}

template <DType kD, typename A, int kMt, int kNt>
__global__ void __launch_bounds__(kProductThreads, kNt == 1 ? 3 : 2)
    TensorProductKernel(ProductParams params) {
  LetNextBegin();
  using F = Format<kD>;
  constexpr int kSpanUnits = Span<kD, kMt>::kUnits;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads, g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * (8 * kNt);
  const uint8_t* rows[kMt][2];
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t output = (static_cast<int64_t>(blockIdx.y) * kMt + mt) * 16 + half * 8 + g;
      const int64_t last = params.w.rows - 1;  // beyond it: read, never stored
      rows[mt][half] = params.w.data + (output < last ? output : last) * params.shape.stride;
    }
  }
  InputRow<A> inputs[kNt];
#pragma unroll
  for (int nt = 0; nt < kNt; ++nt) {
    inputs[nt] = InputRowOf<A>(params.x, first_row + nt * 8 + g);
  }
  float sums[kMt][kNt][4] = {};
  const int units = static_cast<int>(params.shape.units);
  const int turn = static_cast<int>(blockIdx.z) * kProductWarps + thread / kWarpThreads;
  const int step = params.splits * kProductWarps * kSpanUnits;
  const int first = turn * kSpanUnits;
  typename F::Raw raw[kSpanUnits][kMt][2];
  // Nobody writes weights: they are under way before the kernel before this one has ended.
  LoadSpan<kD, kMt>(raw, rows, params.shape, first, units, t);
  AwaitPrevious();
  for (int begin = first; begin < units; begin += step) {
    if (begin != first) LoadSpan<kD, kMt>(raw, rows, params.shape, begin, units, t);
#pragma unroll
    for (int u = 0; u < kSpanUnits; ++u) {
      if (begin + u >= units) break;
#pragma unroll
      for (int p = 0; p < F::kChunks; ++p) {
        uint32_t x[kNt][4];
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
          LoadInputOctet<kD>(params.x, inputs[nt], begin + u, p, t, x[nt]);
        }
        MultiplyChunk<kD, A, kMt, kNt>(raw[u], p, x, sums);
      }
    }
  }
  StoreSums<kMt, kNt>(params, sums);
}

// Splits of K, where outputs are so few that a quarter of the machine would be busy at most: only
// there they gain more than the second launch costs. Each split has work for all of its warps.
inline int SplitsOf(const CudaContext& context, const ProductParams& params, int64_t blocks,
                    int64_t spans) {
  if (4 * blocks > context.multiprocessors) return 1;
  const int64_t wanted = (context.multiprocessors + blocks - 1) / blocks;
  const int64_t room =
      context.workspace_bytes / (4 * std::max<int64_t>(1, params.x.rows * params.y.outputs));
  const int64_t splits =
      std::min(std::min(wanted, room), std::min<int64_t>(spans / kProductWarps, kMostSplits));
  return static_cast<int>(std::max<int64_t>(splits, 1));
}

template <DType kD, typename A, int kMt, int kNt>
void LaunchTensorProduct(const CudaContext& context, ProductParams params) {
  constexpr int kSpanUnits = Span<kD, kMt>::kUnits;
  const int64_t tiles = (params.y.outputs + 16 * kMt - 1) / (16 * kMt);
  const int64_t chunks = (params.x.rows + 8 * kNt - 1) / (8 * kNt);
  params.splits = SplitsOf(context, params, tiles * chunks, params.shape.units / kSpanUnits);
  params.partial = reinterpret_cast<float*>(context.workspace);
  // Row chunks of the same weights run side by side: all but the first find them in L2.
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(tiles),
                  static_cast<unsigned>(params.splits));
  Launch(TensorProductKernel<kD, A, kMt, kNt>, grid, kProductThreads, 0, context, params);
  if (params.splits > 1) FinishSplitsCuda(context, params);
}

template <DType kD, typename A>
void TensorProduct(const CudaContext& context, const CudaMatmulArgs& args) {
  const ProductParams params = ProductParamsOf(args);
  if (params.x.rows <= 8) return LaunchTensorProduct<kD, A, 1, 1>(context, params);
  if (params.x.rows <= 16) return LaunchTensorProduct<kD, A, 1, 2>(context, params);
  if constexpr (Format<kD>::kValueBits == 16) {
    PERGOLA_CHECK(params.x.rows <= kMostPlainTensorRows);
  } else {
    // Superblocks have their registers full with one tile of outputs.
    LaunchTensorProduct<kD, A, Format<kD>::kUnit == 256 ? 1 : 2, 4>(context, params);
  }
}

template <DType kD>
void TensorProductOf(const CudaContext& context, const CudaMatmulArgs& args) {
  if (args.x.dtype() == DType::kBF16) return TensorProduct<kD, __nv_bfloat16>(context, args);
  PERGOLA_CHECK(args.x.dtype() == DType::kF16);
  TensorProduct<kD, __half>(context, args);
}

}  // namespace pergola
