// Attention on a CUDA device, or the emulator, against the reference.
#include <functional>
#include <numeric>
#include <tuple>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/kernels/attention_scene.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/cuda/device_array.h"

namespace pergola {
namespace {

using Shape = AttentionShape;
using Scene = AttentionScene;

// Unit roundoff.
double UnitOf(DType dtype) {
  return dtype == DType::kF32 ? kUnit : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

struct RunOptions {
  int64_t begin = 0, end = -1;  // rows; -1: all
  // Of the device that the split is planned for: many give many parts.
  int multiprocessors = 64;
  int compute_capability = 90;
  int64_t longest_context = 0;  // 0: the plan's
  bool all_decode = false;      // prompts too go through the decode kernel
  bool graph = false;           // captured once, then launched twice
};

// The step's attention on the device, as f32.
std::vector<float> Attend(Scene* scene, DType activation, const RunOptions& options = {}) {
  const int64_t begin = options.begin;
  const int64_t end = options.end < 0 ? scene->Rows() : options.end;
  std::vector<float> out;
  AttentionArgs args = scene->Args(begin, end, &out);
  AttentionPlan plan;
  PlanAttention(args.positions, args.table_of_row, end - begin, &plan);
  if (options.all_decode) {
    plan.prefill_tiles.clear();
    plan.decode_rows.resize(static_cast<size_t>(end - begin));
    std::iota(plan.decode_rows.begin(), plan.decode_rows.end(), 0);
    plan.longest_context = *std::max_element(scene->lengths.begin(), scene->lengths.end());
  }
  plan.decode_rows.push_back(-1);  // as a graph's padding
  const std::vector<int32_t> groups = PlanHeadGroups(args.kv_of_head, args.heads);

  const std::vector<float> qkv_rows(args.qkv.f32(), args.qkv.f32() + args.qkv.values());
  const DeviceArray<uint8_t> qkv(ToBytes(activation, qkv_rows));
  const DeviceArray<uint8_t> device_out(ToBytes(activation, out));
  const DeviceArray<uint8_t> k(scene->k), v(scene->v);
  const DeviceArray<int32_t> kv_of_head(scene->kv_of_head), tables(scene->tables);
  const DeviceArray<float> slopes(scene->slopes.empty() ? std::vector<float>(1) : scene->slopes);
  const DeviceArray<int32_t> positions(
      std::vector<int32_t>(args.positions, args.positions + (end - begin)));
  const DeviceArray<int32_t> table_of_row(
      std::vector<int32_t>(args.table_of_row, args.table_of_row + (end - begin)));
  const DeviceArray<int32_t> head_groups(groups), decode_rows(plan.decode_rows);
  std::vector<int32_t> tiles = plan.prefill_tiles;
  tiles.insert(tiles.end(), {-1, 5});
  const DeviceArray<int32_t> prefill_tiles(tiles);
  const DeviceArray<int32_t> done(std::vector<int32_t>(plan.decode_rows.size() * groups.size()));
  args.qkv = Tensor(qkv.data(), activation, {end - begin, scene->RowValues()});
  args.out = Tensor(device_out.data(), activation, {end - begin, args.heads * args.head_dim});
  args.k_cache = k.data();
  args.v_cache = v.data();
  args.kv_of_head = kv_of_head.data();
  args.block_tables = tables.data();
  args.alibi_slopes = scene->slopes.empty() ? nullptr : slopes.data();
  args.positions = positions.data();
  args.table_of_row = table_of_row.data();
  args.work.prefill_tiles = prefill_tiles.data();
  args.work.prefill_tile_count = prefill_tiles.size() / 2;
  args.work.decode_rows = decode_rows.data();
  args.work.decode_row_count = decode_rows.size();
  args.work.longest_context = std::max(options.longest_context, plan.longest_context);
  args.work.head_groups = head_groups.data();
  args.work.head_group_count = head_groups.size() / 2;
  args.work.largest_head_group = LargestHeadGroup(groups);
  args.work.decode_done = done.data();

  const TestCudaContext device(PagedAttentionWorkspaceBytes(
      options.multiprocessors, args.work.largest_head_group, args.head_dim));
  CudaContext context = device;
  context.multiprocessors = options.multiprocessors;
  context.compute_capability = std::min(context.compute_capability, options.compute_capability);
  if (options.graph) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    PERGOLA_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    PagedAttentionCuda(context, args);
    PERGOLA_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
    PERGOLA_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 2; ++i) PERGOLA_CUDA_CHECK(cudaGraphLaunch(exec, context.stream));
    PERGOLA_CUDA_CHECK(cudaStreamSynchronize(context.stream));
    PERGOLA_CUDA_CHECK(cudaGraphExecDestroy(exec));
    PERGOLA_CUDA_CHECK(cudaGraphDestroy(graph));
  } else {
    PagedAttentionCuda(context, args);
  }
  const std::vector<uint8_t> bytes = device_out.Read();
  for (const int32_t count : done.Read()) EXPECT_EQ(count, 0);
  return ToFloats(activation, bytes);
}

// The queries become numbers of the activations' type, which the reference then sees too.
Scene RoundedScene(const Shape& shape, const std::vector<int64_t>& lengths, DType activation) {
  Scene scene = MakeScene(shape, lengths);
  scene.qkv = ToFloats(activation, ToBytes(activation, scene.qkv));
  return scene;
}

// A relative error e of a weight p moves the mean of v by at most e times the mean of |v|, and the
// total's error as much again. The weights of the fast kernels are rounded to the cache's type
// where it is the activations' (the total is that of the unrounded ones; f16 loses 2^-25 of weights
// below 2^-14 besides), else they are a sum of two such numbers, as are the queries.
double ErrorOfWeights(const Scene& s, DType activation) {
  const double longest = static_cast<double>(*std::max_element(s.lengths.begin(), s.lengths.end()));
  const auto dim = static_cast<double>(s.shape.head_dim);
  // sum |q k| scale <= dim * scale for normal values (typically 0.64 of it). Products are exact; a
  // tensor core may cut each addition (2 u) and the query's rest has T's unit squared.
  const double unit = UnitOf(s.shape.kv_dtype);
  const double sum = dim * static_cast<double>(s.scale);
  double score = 2 * (dim + 3) * kUnit * sum;
  double rounding = 0;
  if (s.shape.kv_dtype != DType::kF32) {
    const double tiny = s.shape.kv_dtype == DType::kF16 ? longest * 0x1p-25 : 0;
    if (activation == s.shape.kv_dtype) {
      rounding = unit + tiny;
    } else {
      rounding = unit * unit + tiny;
      score += (unit * unit + (s.shape.kv_dtype == DType::kF16 ? 0x1p-25 : 0)) * sum;
    }
  }
  // Scores and slopes times log2(e) (two roundings of at most 40 that count), the difference to the
  // largest (below 2 * 60), an exponential (4 u); once for the weight, and for every step of the
  // online softmax and of adding up (the generic kernel's steps are 16 keys for a warp).
  const double step = (80 + 120 + 4 + 1) * kUnit;
  return 2 * score + rounding + 2 * (longest / 16 + 12) * step + 2 * (longest + 3) * kUnit;
}

// The reference's output, and with |v| for v: the mean that errors of weights are relative to.
std::vector<float> Reference(Scene scene, bool absolute) {
  if (absolute) {
    const int64_t value_bytes = BlockBytes(scene.shape.kv_dtype);
    for (size_t i = 0; i < scene.v.size(); i += static_cast<size_t>(value_bytes)) {
      scene.v[i + static_cast<size_t>(value_bytes) - 1] &= 0x7f;  // the sign is the highest bit
    }
  }
  std::vector<float> want;
  PagedAttentionRef(scene.Args(0, scene.Rows(), &want));
  return want;
}

testing::AssertionResult NearReference(const Scene& scene, DType activation,
                                       const std::vector<float>& got) {
  const std::vector<float> want = Reference(scene, false);
  const std::vector<float> magnitude = Reference(scene, true);
  const double error = ErrorOfWeights(scene, activation);
  const double unit = UnitOf(activation);
  return CompareWith(got, want, [&](size_t i) {
    const double of_weights = error * static_cast<double>(magnitude[i]);
    // f16 rounds results below 2^-14 by up to 2^-25.
    return of_weights + unit * (std::abs(static_cast<double>(want[i])) + of_weights) + 0x1p-25 +
           kUnit * static_cast<double>(magnitude[i]);
  });
}

// Runs `body` in the emulator's other orders of blocks, warps and lanes; a GPU has its own.
void InEveryOrder(const std::function<void()>& body) {
  for (const auto order : {emulator::Order::kDescending, emulator::Order::kShuffled}) {
    emulator::SetOrder(order, 5);
    body();
  }
  emulator::SetOrder(emulator::Order::kAscending);
}

struct Types {
  DType activation = DType::kF32, kv = DType::kF32;
};

class CudaAttentionTest : public testing::TestWithParam<Types> {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  }
  DType activation() const { return GetParam().activation; }
  Shape shape() const {
    Shape shape;
    shape.kv_dtype = GetParam().kv;
    return shape;
  }
  Scene MakeRounded(const Shape& shape, const std::vector<int64_t>& lengths) const {
    return RoundedScene(shape, lengths, activation());
  }
  // Of the rows that the options name.
  void ExpectNearReference(Scene scene, const RunOptions& options = {}) const {
    const std::vector<float> got = Attend(&scene, activation(), options);
    std::vector<float> all = Reference(scene, false);
    const int64_t first = options.begin * scene.shape.heads * scene.shape.head_dim;
    std::copy(got.begin(), got.end(), all.begin() + first);
    EXPECT_TRUE(NearReference(scene, activation(), all));
  }
};

TEST_P(CudaAttentionTest, AgreesInEveryOrder) {
  Scene scene = MakeRounded(shape(), {1, 8, 9, 140});
  const std::vector<float> want = Attend(&scene, activation());
  EXPECT_TRUE(NearReference(scene, activation(), want));
  InEveryOrder([&] { EXPECT_TRUE(CompareBits(Attend(&scene, activation()), want)); });
}

TEST_P(CudaAttentionTest, AgreesForEveryHeadSize) {
  for (const int64_t head_dim : {2, 36, 64, 80, 96, 128, 256, 512}) {
    Shape s = shape();
    s.heads = 3;
    s.kv_heads = 1;
    s.head_dim = head_dim;
    ExpectNearReference(MakeRounded(s, {5, 70}));
  }
}

TEST_P(CudaAttentionTest, AgreesForUnevenHeads) {
  Shape s = shape();
  s.block_tokens = 16;
  s.heads = 9;
  s.kv_heads = 3;
  ExpectNearReference(MakeRounded(s, {3, 30}));
  s.heads = 5;  // runs of 2, 2 and 1 heads: not a ratio
  ExpectNearReference(MakeRounded(s, {3, 30}));
  s.heads = 2;  // a rank of two that holds heads 1 and 2 of 9 needs KV heads 0 and 1 of 3
  s.kv_heads = 2;
  ExpectNearReference(MakeRounded(s, {3, 30}));
}

TEST_P(CudaAttentionTest, ManyHeadsMayShareOneKvHead) {
  for (const int64_t heads : {16, 17, 48, 71}) {
    Shape s = shape();
    s.heads = heads;
    s.kv_heads = 1;
    ExpectNearReference(MakeRounded(s, {6, 20}));
  }
}

TEST_P(CudaAttentionTest, AgreesForEveryBlockSize) {
  for (const int64_t block_tokens : {16, 48, 64, 128}) {
    Shape s = shape();
    s.heads = 2;
    s.block_tokens = block_tokens;
    ExpectNearReference(MakeRounded(s, {7, 150}));
  }
}

// A chunk begins anywhere in a key tile, and so do the rows of its warps.
TEST_P(CudaAttentionTest, AgreesForChunks) {
  for (const int64_t heads : {1, 2, 3}) {
    Shape s = shape();
    s.heads = heads;
    s.kv_heads = 1;
    const Scene scene = MakeRounded(s, {150});
    for (const int64_t begin : {37, 64}) {
      RunOptions options;
      options.begin = begin;
      ExpectNearReference(scene, options);
    }
  }
}

TEST_P(CudaAttentionTest, AgreesWithinAWindow) {
  for (const int64_t window : {1, 7, 64, 100}) {
    Shape s = shape();
    s.heads = 2;
    s.window = window;
    ExpectNearReference(MakeRounded(s, {3, 200}));
  }
}

TEST_P(CudaAttentionTest, AgreesWithSlopes) {
  for (const int64_t window : {0, 20}) {
    Shape s = shape();
    s.heads = 6;
    s.kv_heads = 3;
    s.window = window;
    Scene scene = MakeRounded(s, {3, 100});
    scene.slopes = {3.0F, 0.5F, 0.03F, 0.25F, 0.0F, 0.9F};
    ExpectNearReference(scene);
  }
}

TEST_P(CudaAttentionTest, SplitRowsAgreeForManyContexts) {
  Shape s = shape();
  s.heads = 3;
  s.kv_heads = 1;
  s.block_tokens = 16;
  for (const int64_t length : {1, 63, 64, 65, 129, 300}) {
    Scene scene = MakeRounded(s, {length});
    SCOPED_TRACE(length);
    RunOptions options;
    options.begin = std::max<int64_t>(0, length - 3);
    options.longest_context = 5000;  // as of a graph for longer rows
    ExpectNearReference(scene, options);
  }
}

TEST_P(CudaAttentionTest, SplitRowsAgreeInEveryOrder) {
  Shape s = shape();
  s.window = 280;
  Scene scene = MakeRounded(s, {300});
  scene.slopes = {0.5F, 0.03F, 0.25F, 0.0F};
  RunOptions options;
  options.begin = 297;
  const std::vector<float> want = Attend(&scene, activation(), options);
  InEveryOrder([&] { EXPECT_TRUE(CompareBits(Attend(&scene, activation(), options), want)); });
  // One multiprocessor: the row in one or two parts.
  options.multiprocessors = 1;
  const std::vector<float> whole = Attend(&scene, activation(), options);
  const double bound = 2 * (ErrorOfWeights(scene, activation()) * 5 + UnitOf(activation()) * 5);
  EXPECT_TRUE(CompareWith(whole, want, [&](size_t) { return bound; }));
}

TEST_P(CudaAttentionTest, AGraphRepeatsIt) {
  Scene scene = MakeRounded(shape(), {300});
  RunOptions options;
  for (const int64_t begin : {280, 298}) {
    options.begin = begin;
    options.graph = false;
    const std::vector<float> want = Attend(&scene, activation(), options);
    options.graph = true;
    EXPECT_TRUE(CompareBits(Attend(&scene, activation(), options), want));
  }
}

TEST_P(CudaAttentionTest, TheDecodeKernelTakesPromptsToo) {
  Scene scene = MakeRounded(shape(), {40});
  RunOptions options;
  options.all_decode = true;
  ExpectNearReference(scene, options);
}

// Queries of zero give every key it sees the same weight, 1 before the division. Value p of a
// sequence is 1 in place p % 16 and else 0: so each output counts the keys seen, and must be exact
// but for the division (2 u) and the rounding to the output's type.
TEST_P(CudaAttentionTest, EveryVisibleKeyCountsOnce) {
  for (const int64_t window : {0, 37}) {
    Shape s = shape();
    s.window = window;
    s.block_tokens = 16;
    Scene scene = MakeRounded(s, {150, 11});
    std::fill(scene.qkv.begin(), scene.qkv.end(), 0.0F);
    for (int64_t sequence = 0; sequence < 2; ++sequence) {
      for (int64_t p = 0; p < scene.lengths[sequence]; ++p) {
        std::vector<float> value(64, 0.0F);
        value[p % 16] = 1.0F;
        const std::vector<uint8_t> bytes = ToBytes(s.kv_dtype, value);
        for (int64_t head = 0; head < s.kv_heads; ++head) {
          std::copy(bytes.begin(), bytes.end(), scene.CacheAt(&scene.v, sequence, p, head));
        }
      }
    }
    const std::vector<float> want = Reference(scene, false);
    const double unit = UnitOf(activation()) + 3 * kUnit;
    for (const bool all_decode : {false, true}) {
      RunOptions options;
      options.all_decode = all_decode;
      EXPECT_TRUE(CompareWith(Attend(&scene, activation(), options), want,
                              [&](size_t i) { return unit * static_cast<double>(want[i]); }));
    }
  }
}

TEST_P(CudaAttentionTest, UnwrittenPositionsAndFreedBlocksAreNotRead) {
  Shape s = shape();
  s.block_tokens = 16;
  s.window = 20;
  Scene scene = MakeRounded(s, {150});
  RunOptions prompt, token;
  prompt.begin = 110;
  token.begin = 149;
  const std::vector<float> want = Attend(&scene, activation(), prompt);
  const std::vector<float> want_token = Attend(&scene, activation(), token);
  for (int64_t p = 150; p < scene.table_stride * s.block_tokens; ++p) {
    for (int64_t h = 0; h < s.kv_heads; ++h) {
      const auto bytes = static_cast<size_t>(DTypeBytes(s.kv_dtype, s.head_dim));
      std::memset(scene.CacheAt(&scene.k, 0, p, h), 0xff, bytes);  // NaN
      std::memset(scene.CacheAt(&scene.v, 0, p, h), 0xff, bytes);
    }
  }
  // Blocks wholly before the windows of rows 110 and on are gone: those entries name no block.
  for (int64_t i = 0; i < (110 - 19) / s.block_tokens; ++i) scene.tables[i] = INT32_MIN / 2;
  EXPECT_TRUE(CompareBits(Attend(&scene, activation(), prompt), want));
  EXPECT_TRUE(CompareBits(Attend(&scene, activation(), token), want_token));
}

TEST_P(CudaAttentionTest, PaddedRowsStayAsTheyAre) {
  Scene scene = MakeRounded(shape(), {5});
  scene.positions[2] = -1;
  scene.table_of_row[2] = INT32_MIN / 2;
  const int64_t values = scene.shape.heads * scene.shape.head_dim;
  RunOptions options;
  options.all_decode = true;
  const std::vector<float> got = Attend(&scene, activation(), options);
  for (int64_t i = 0; i < 5 * values; ++i) {
    EXPECT_EQ(got[i] == -7.0F, i / values == 2) << i;
  }
}

// Within a sequence a NaN may reach rows of the same prefill tile that do not see it.
TEST_P(CudaAttentionTest, NaNReachesTheRowsThatSeeItAndNoOtherSequence) {
  for (const bool in_value : {false, true}) {
    Scene scene = MakeRounded(shape(), {40, 40, 3});
    const std::vector<float> want = Attend(&scene, activation());
    for (const int64_t sequence : {0, 2}) {
      std::memset(scene.CacheAt(in_value ? &scene.v : &scene.k, sequence, 2, 0), 0xff,
                  static_cast<size_t>(DTypeBytes(scene.shape.kv_dtype, 64)));
    }
    const std::vector<float> got = Attend(&scene, activation());
    for (int64_t i = 0; i < 83 * 4 * 64; ++i) {
      const int64_t row = i / (4 * 64), head = i / 64 % 4;
      if (row < 2 && head < 2) continue;
      const bool sees = head < 2 && (row < 40 || row == 82);
      ASSERT_EQ(std::isnan(got[i]), sees) << "row " << row << " head " << head;
      if (!sees) {
        ASSERT_TRUE(SameBits(got[i], want[i])) << "row " << row << " head " << head;
      }
    }
  }
}

TEST_P(CudaAttentionTest, AgreesOnTuringsSharedMemory) {
  if (activation() == DType::kBF16 || shape().kv_dtype == DType::kBF16) return;
  for (const int64_t head_dim : {64, 128}) {
    Shape s = shape();
    s.head_dim = head_dim;
    RunOptions options;
    options.compute_capability = 75;
    ExpectNearReference(MakeRounded(s, {4, 70}), options);
  }
}

constexpr Types kTypes[] = {{DType::kF32, DType::kF32},
                            {DType::kF32, DType::kF16},
                            {DType::kF16, DType::kF16},
                            {DType::kBF16, DType::kBF16},
                            {DType::kF16, DType::kBF16}};

std::string NameOfTypes(const testing::TestParamInfo<Types>& info) {
  return std::string(DTypeName(info.param.activation)) + "_over_" +
         std::string(DTypeName(info.param.kv));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaAttentionTest, testing::ValuesIn(kTypes), NameOfTypes);

}  // namespace
}  // namespace pergola
