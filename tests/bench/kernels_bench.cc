// Speed of the CPU kernels beside the machine's roofs, measured in the same run:
//   kernels_bench                       everything; takes a few minutes
//   kernels_bench --tiny                small shapes, one repetition: that the program still works
//   (ctest)
// x86-64 only; without AVX-512 the roofs are not measured. Read `of_roof`: for one row the share of
// the read bandwidth, for many rows the share of the f32 multiply-add rate.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/decoder_ops.h"
#include "kernels/matmul.h"
#include "kernels/sample.h"
#include "kernels/thread_pool.h"

namespace pergola {
namespace {

constexpr int kThreads = 2;

struct Settings {
  bool tiny = false;
  // At least 4 times the last-level cache (260 MiB on the reference machine).
  int64_t roof_bytes() const { return tiny ? int64_t{8} << 20 : int64_t{1152} << 20; }
  // Weights of one matmul are spread over copies that together exceed the cache.
  int64_t weight_bytes() const { return tiny ? int64_t{4} << 20 : int64_t{768} << 20; }
};

struct Roofs {
  double bytes_per_s = 0;
  double flops_per_s = 0;
};

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Sums 64-bit words with enough independent chains that loads are the limit.
#if defined(__x86_64__)
__attribute__((target("avx512f")))
#endif
uint64_t
SumWords(const uint64_t* words, int64_t begin, int64_t end) {
  typedef uint64_t Wide __attribute__((vector_size(64), aligned(64), may_alias));
  Wide sums[8] = {};
  for (int64_t i = begin; i + 64 <= end; i += 64) {
    for (int j = 0; j < 8; ++j) sums[j] += *reinterpret_cast<const Wide*>(words + i + 8 * j);
  }
  uint64_t sum = 0;
  for (const Wide& wide : sums) {
    for (int j = 0; j < 8; ++j) sum += wide[j];
  }
  return sum;
}

double ReadRoof(CpuStream& stream, const Settings& settings) {
  HostBuffer buffer(settings.roof_bytes());
  const int64_t words = buffer.size() / 8;
  double best = 1e30;
  for (int repeat = 0; repeat < (settings.tiny ? 1 : 5); ++repeat) {
    best = std::min(best, Seconds([&] {
                      stream.pool().ParallelFor(words / 64, 1, [&](int64_t begin, int64_t end) {
                        const auto* data = reinterpret_cast<const uint64_t*>(buffer.data());
                        benchmark::DoNotOptimize(SumWords(data, begin * 64, end * 64));
                      });
                    }));
  }
  return static_cast<double>(buffer.size()) / best;
}

// Sixteen chains of fused multiply-adds: more than the latency of two ports needs.
__attribute__((target("avx512f"))) float MultiplyAddChains(int64_t steps) {
  const __m512 a = _mm512_set1_ps(0.999F);
  const __m512 b = _mm512_set1_ps(0.001F);
  __m512 sums[16];
  for (int j = 0; j < 16; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sums[j] = _mm512_fmadd_ps(sums[j], a, b);
  }
  float total = 0;
  for (const __m512& sum : sums) total += sum[0];
  return total;
}

double FlopRoof(CpuStream& stream, const Settings& settings) {
  const int64_t steps = settings.tiny ? 1000 : 20000000;
  double best = 1e30;
  for (int repeat = 0; repeat < (settings.tiny ? 1 : 5); ++repeat) {
    best = std::min(
        best, Seconds([&] {
          stream.pool().Run([&](int) { benchmark::DoNotOptimize(MultiplyAddChains(steps)); });
        }));
  }
  return 2.0 * 16 * 16 * static_cast<double>(steps) * stream.threads() / best;
}

PackedMatrix RandomWeights(DType dtype, int64_t rows, int64_t columns) {
  std::mt19937 generator(1);
  PackedMatrix matrix = PackedMatrix::Allocate(dtype, rows, columns);
  const int64_t scale_bytes = dtype == DType::kInt8 ? 4 : 0;
  const int64_t row_bytes = scale_bytes + DTypeBytes(dtype, columns);
  std::vector<uint8_t> row(static_cast<size_t>(row_bytes));
  for (uint8_t& byte : row) byte = static_cast<uint8_t>(generator());
  // 0x3c in the high byte keeps every dense value and every scale a number near 0.01 to 1.
  const BlockHalves halves = HalvesOf(dtype);
  const bool dense = BlockValues(dtype) == 1;
  for (int64_t at = dense ? 0 : halves.offset; at < row_bytes; at += BlockBytes(dtype)) {
    const int64_t end = dense ? BlockBytes(dtype) : 2 * halves.count;
    for (int64_t b = 1; b < end; b += 2) row[static_cast<size_t>(at + b)] = 0x3c;
  }
  const float scale = 0.01F;
  if (dtype == DType::kInt8) std::memcpy(row.data(), &scale, sizeof(scale));
  for (int64_t r = 0; r < rows; ++r) matrix.PackRows(r, 1, row.data(), row_bytes);
  return matrix;
}

struct MatmulShape {
  DType dtype;
  int64_t rows, columns, outputs;
};

void BenchMatmul(benchmark::State& state, const Settings& settings, const Roofs& roofs,
                 const MatmulShape& shape) {
  StreamOptions options;
  options.threads = kThreads;
  const auto stream = CpuStream::Create(options);
  const int64_t bytes = PackedMatrix::PackedBytes(shape.dtype, shape.outputs, shape.columns);
  const int64_t copies = std::max<int64_t>(1, settings.weight_bytes() / bytes);
  std::vector<PackedMatrix> weights;
  weights.reserve(static_cast<size_t>(copies));
  for (int64_t i = 0; i < copies; ++i) {
    weights.push_back(RandomWeights(shape.dtype, shape.outputs, shape.columns));
  }
  std::vector<float> x(static_cast<size_t>(shape.rows * shape.columns), 0.5F);
  std::vector<float> y(static_cast<size_t>(shape.rows * shape.outputs));
  MatmulArgs args;
  args.x = Tensor(x.data(), DType::kF32, {shape.rows, shape.columns});
  args.y = Tensor(y.data(), DType::kF32, {shape.rows, shape.outputs});
  size_t next = 0;
  double seconds = 0;
  for (auto _ : state) {
    args.w = &weights[next++ % weights.size()];
    const double s = Seconds([&] { Matmul(*stream, args); });
    state.SetIterationTime(s);
    seconds += s;
  }
  const auto runs = static_cast<double>(state.iterations());
  const double gigabytes = static_cast<double>(bytes) * runs / seconds;
  const double flops =
      2.0 * static_cast<double>(shape.rows * shape.columns * shape.outputs) * runs / seconds;
  state.counters["GB/s"] = gigabytes / 1e9;
  state.counters["GFLOP/s"] = flops / 1e9;
  state.counters["of_roof"] = std::max(gigabytes / roofs.bytes_per_s, flops / roofs.flops_per_s);
}

// Prefill of one sequence from position 0: causal, so half of rows x rows scores are needed.
void BenchAttention(benchmark::State& state, const Roofs& roofs, int64_t rows, int64_t kv_heads,
                    int64_t first_position) {
  StreamOptions options;
  options.threads = kThreads;
  const auto stream = CpuStream::Create(options);
  AttentionArgs args;
  args.heads = 32;
  args.kv_heads = kv_heads;
  args.head_dim = 64;
  args.block_tokens = 32;
  args.kv_dtype = DType::kBF16;
  args.scale = 0.125F;
  const int64_t row_values = (args.heads + 2 * kv_heads) * args.head_dim;
  const int64_t positions = first_position + rows;
  const int64_t blocks = (positions + 31) / 32;
  std::vector<float> qkv(static_cast<size_t>(rows * row_values), 0.25F);
  std::vector<float> out(static_cast<size_t>(rows * args.heads * args.head_dim));
  HostBuffer k(blocks * kv_heads * 32 * 64 * 2), v(k.size());
  std::vector<int32_t> kv_of_head, table, position, table_of_row(static_cast<size_t>(rows), 0);
  for (int32_t h = 0; h < 32; ++h) kv_of_head.push_back(static_cast<int32_t>(h * kv_heads / 32));
  for (int32_t b = 0; b < blocks; ++b) table.push_back(b);
  for (int64_t r = 0; r < rows; ++r) {
    position.push_back(static_cast<int32_t>(first_position + r));
  }
  args.qkv = Tensor(qkv.data(), DType::kF32, {rows, row_values});
  args.out = Tensor(out.data(), DType::kF32, {rows, args.heads * args.head_dim});
  args.kv_of_head = kv_of_head.data();
  args.positions = position.data();
  args.table_of_row = table_of_row.data();
  args.block_tables = table.data();
  args.table_stride = blocks;
  args.k_cache = k.data();
  args.v_cache = v.data();
  double seconds = 0;
  for (auto _ : state) {
    const double s = Seconds([&] { PagedAttention(*stream, args); });
    state.SetIterationTime(s);
    seconds += s;
  }
  double keys = 0;
  for (int32_t p : position) keys += p + 1;
  const double flops = 4.0 * keys * 64 * 32 * static_cast<double>(state.iterations()) / seconds;
  state.counters["GFLOP/s"] = flops / 1e9;
  state.counters["of_roof"] = flops / roofs.flops_per_s;
}

// `deviation` of the logits: 3 is peaked as a language model's, 0.01 nearly uniform.
struct SampleCase {
  SampleRow row;
  float deviation = 3;
  bool logprobs = false;
};

void BenchSample(benchmark::State& state, int64_t vocabulary, const SampleCase& given) {
  StreamOptions options;
  options.workspace_bytes = SampleWorkspaceBytes(vocabulary, 2048);
  const auto stream = CpuStream::Create(options);
  std::mt19937 generator(2);
  std::normal_distribution<float> normal(0.0F, given.deviation);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (float& x : logits) x = normal(generator);
  std::vector<int32_t> history(2048);
  for (int32_t& id : history) id = static_cast<int32_t>(generator() % 90);
  SampleTask task;
  task.row = given.row;
  task.row.logits = logits.data();
  task.row.seed = 1;
  if (task.row.looks_back()) {
    task.row.history = history.data();
    task.row.history_count = static_cast<int64_t>(history.size());
  }
  task.draw = true;
  task.logprobs = given.logprobs;
  task.top = kMaxTopLogprobs;
  for (auto _ : state) {
    ++task.row.position;
    SampleTasks(*stream, &task, 1, vocabulary);
    benchmark::DoNotOptimize(task.id);
  }
}

void RegisterMatmul(const Settings& settings, const Roofs& roofs) {
  std::vector<MatmulShape> shapes;
  if (settings.tiny) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kQ4_1, DType::kQ4_K, DType::kInt8}) {
      shapes.push_back({dtype, 3, 256, 96});
    }
  } else {
    for (int64_t outputs : {2048, 2560, 11264}) {
      shapes.push_back({DType::kBF16, 1, 2048, outputs});
    }
    shapes.push_back({DType::kBF16, 1, 5632, 2048});
    for (int64_t rows : {2, 4, 8, 16, 32, 64, 128, 512}) {
      shapes.push_back({DType::kBF16, rows, 2048, 11264});
    }
    shapes.push_back({DType::kBF16, 512, 5632, 2048});
    for (DType dtype : {DType::kF32, DType::kF16, DType::kInt8, DType::kQ8_0, DType::kQ4_0,
                        DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kIQ4_NL, DType::kQ2_K,
                        DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
      for (int64_t rows : {1, 16, 128, 512}) shapes.push_back({dtype, rows, 2048, 11264});
    }
  }
  for (const MatmulShape& s : shapes) {
    const std::string name = "matmul/" + std::string(DTypeName(s.dtype)) +
                             "/rows:" + std::to_string(s.rows) + "/K:" + std::to_string(s.columns) +
                             "/N:" + std::to_string(s.outputs);
    auto* bench = benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State& state) { BenchMatmul(state, settings, roofs, s); });
    bench->UseManualTime()->Unit(benchmark::kMicrosecond);
    if (settings.tiny) bench->Iterations(2);
  }
}

void RegisterOthers(const Settings& settings, const Roofs& roofs) {
  const auto attention = [&](int64_t rows, int64_t kv_heads, int64_t first) {
    const std::string name = "attention/32x64/rows:" + std::to_string(rows) +
                             "/kv:" + std::to_string(kv_heads) + "/at:" + std::to_string(first);
    auto* bench = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      BenchAttention(state, roofs, rows, kv_heads, first);
    });
    bench->UseManualTime()->Unit(benchmark::kMicrosecond);
    if (settings.tiny) bench->Iterations(2);
  };
  const int64_t prompt = settings.tiny ? 5 : 512;
  for (int64_t kv_heads : {4, 32}) {
    attention(prompt, kv_heads, 0);
    attention(1, kv_heads, prompt);
  }
  const int64_t vocabulary = settings.tiny ? 100 : 131072;
  const auto sample = [&](const char* what, const SampleCase& given) {
    const std::string name = std::string("sample/") + what;
    auto* bench = benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State& state) { BenchSample(state, vocabulary, given); });
    bench->Unit(benchmark::kMicrosecond);
    if (settings.tiny) bench->Iterations(2);
  };
  SampleCase given;
  sample("greedy", given);
  given.logprobs = true;
  sample("greedy_logprobs:20", given);
  given.logprobs = false;
  given.row.temperature = 0.8F;
  sample("all", given);
  given.row.top_k = 40;
  sample("top_k:40", given);
  given.row.top_p = 0.9F;
  sample("top_k:40_top_p:0.9", given);
  given.row.top_k = 0;
  sample("top_p:0.9", given);
  given.deviation = 0.01F;
  sample("top_p:0.9_flat", given);
  given.deviation = 3;
  given.row.top_p = 1;
  given.row.min_p = 0.05F;
  sample("min_p:0.05", given);
  given.row.min_p = 0;
  given.row.typical_p = 0.9F;
  sample("typical_p:0.9", given);
  given.row.top_p = 0.9F;
  given.row.min_p = 0.05F;
  given.row.repetition_penalty = 1.1F;
  given.row.presence_penalty = given.row.frequency_penalty = 0.1F;
  given.row.no_repeat_ngram_size = 4;
  sample("mixed_history:2048", given);
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  pergola::Settings settings;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tiny") == 0) {
      settings.tiny = true;
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  pergola::Roofs roofs;
  if (pergola::CpuTargetSupported(pergola::CpuTarget::kAvx512)) {
    pergola::StreamOptions options;
    options.threads = pergola::kThreads;
    const auto stream = pergola::CpuStream::Create(options);
    roofs.bytes_per_s = pergola::ReadRoof(*stream, settings);
    roofs.flops_per_s = pergola::FlopRoof(*stream, settings);
    std::printf(
        "roofs with %d threads: read %.1f GB/s over %lld MiB, f32 multiply-add %.1f GFLOP/s\n",
        pergola::kThreads, roofs.bytes_per_s / 1e9,
        static_cast<long long>(settings.roof_bytes() >> 20), roofs.flops_per_s / 1e9);
  } else {
    std::printf("no AVX-512: roofs are not measured, of_roof means nothing\n");
  }
  pergola::RegisterMatmul(settings, roofs);
  pergola::RegisterOthers(settings, roofs);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
