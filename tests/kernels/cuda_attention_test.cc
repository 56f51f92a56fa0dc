// What a GPU's attention does beyond its contract (attention_test.cc): its plans, splits, orders,
// padding and recorded steps, on a CUDA device or the emulator.
#include <functional>
#include <tuple>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/kernels/attention_place.h"
#include "tests/kernels/cuda/device_array.h"

namespace pergola {
namespace {

using Shape = AttentionShape;
using Scene = AttentionScene;

struct RunOptions : AttentionStep {
  int64_t workspace_bytes = 0;  // 0: what any call takes
  // Of the device that the split is planned for: many give many parts.
  int multiprocessors = 64;
  int compute_capability = 90;
  bool graph = false;  // captured once, then launched twice
};

void LaunchGraph(const CudaContext& context, const AttentionArgs& args) {
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
}

// The step's attention on the device, as f32.
std::vector<float> Attend(OpDevice& device, Scene* scene, const RunOptions& options = {}) {
  const PlacedAttention placed(device, scene, options);
  const AttentionArgs& args = placed.args();
  const TestCudaContext own(options.workspace_bytes > 0
                                ? options.workspace_bytes
                                : PagedAttentionWorkspaceBytes(options.multiprocessors,
                                                               args.work.largest_head_group,
                                                               args.head_dim));
  CudaContext context = own;
  context.multiprocessors = options.multiprocessors;
  context.compute_capability = std::min(context.compute_capability, options.compute_capability);
  if (options.graph) {
    LaunchGraph(context, args);
  } else {
    PagedAttentionCuda(context, args);
    PERGOLA_CUDA_CHECK(cudaStreamSynchronize(context.stream));
  }
  return placed.Read();
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
    device_ = std::make_unique<OpDevice>(
        OpPlace{Device::kCuda, CpuTarget::kPortable, GetParam().activation});
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
  std::vector<float> Run(Scene* scene, const RunOptions& options = {}) {
    return Attend(*device_, scene, options);
  }
  // Of the rows that the options name.
  void ExpectNearReference(Scene scene, const RunOptions& options = {}) {
    EXPECT_TRUE(NearReference(*device_, scene, Run(&scene, options), options.begin));
  }

  std::unique_ptr<OpDevice> device_;
};

TEST_P(CudaAttentionTest, AgreesInEveryOrder) {
  Scene scene = MakeRounded(shape(), {1, 8, 9, 140});
  const std::vector<float> want = Run(&scene);
  EXPECT_TRUE(NearReference(*device_, scene, want));
  InEveryOrder([&] { EXPECT_TRUE(CompareBits(Run(&scene), want)); });
}

TEST_P(CudaAttentionTest, AgreesForTheLargestHeads) {
  for (const int64_t head_dim : {256, 512}) {
    Shape s = shape();
    s.heads = 3;
    s.kv_heads = 1;
    s.head_dim = head_dim;
    ExpectNearReference(MakeRounded(s, {5, 70}));
  }
}

TEST_P(CudaAttentionTest, ManyHeadsMayShareOneKvHead) {
  for (const int64_t heads : {16, 17, 48}) {
    Shape s = shape();
    s.heads = heads;
    s.kv_heads = 1;
    ExpectNearReference(MakeRounded(s, {6, 20}));
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
  const std::vector<float> want = Run(&scene, options);
  InEveryOrder([&] { EXPECT_TRUE(CompareBits(Run(&scene, options), want)); });
  // One multiprocessor: the row in one or two parts.
  options.multiprocessors = 1;
  const std::vector<float> whole = Run(&scene, options);
  const double bound = 2 * (CudaErrorOfWeights(scene, activation()) * 5 + UnitOf(activation()) * 5);
  EXPECT_TRUE(CompareWith(whole, want, [&](size_t) { return bound; }));
}

TEST_P(CudaAttentionTest, SplitPromptsAgree) {
  for (const int64_t window : {0, 520}) {
    Shape s = shape();
    s.heads = 2;
    s.kv_heads = 1;
    s.head_dim = window == 0 ? 64 : 80;
    s.window = window;
    Scene scene = MakeRounded(s, {600, 12});  // the short one in fewer parts
    if (window == 0) scene.slopes = {0.5F, 0.03F};
    RunOptions options;
    options.begin = 585;
    ExpectNearReference(scene, options);
  }
}

TEST_P(CudaAttentionTest, SplitPromptsAgreeInEveryOrder) {
  Scene scene = MakeRounded(shape(), {560});
  RunOptions options;
  options.begin = 545;
  const std::vector<float> want = Run(&scene, options);
  EXPECT_TRUE(NearReference(*device_, scene, want, options.begin));
  InEveryOrder([&] { EXPECT_TRUE(CompareBits(Run(&scene, options), want)); });
  // One multiprocessor, or too little workspace: the prompt is in one part.
  const bool fast = activation() == shape().kv_dtype && activation() != DType::kF32;
  options.multiprocessors = 1;
  const std::vector<float> whole = Run(&scene, options);
  EXPECT_TRUE(NearReference(*device_, scene, whole, options.begin));
  EXPECT_EQ(fast, !CompareBits(whole, want));
  options.multiprocessors = 64;
  options.workspace_bytes = 1024;
  EXPECT_TRUE(CompareBits(Run(&scene, options), whole));
}

TEST_P(CudaAttentionTest, AGraphRepeatsIt) {
  Scene scene = MakeRounded(shape(), {300});
  RunOptions options;
  for (const int64_t begin : {280, 298}) {
    options.begin = begin;
    options.graph = false;
    const std::vector<float> want = Run(&scene, options);
    options.graph = true;
    EXPECT_TRUE(CompareBits(Run(&scene, options), want));
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
    const std::vector<float> want = AttentionReference(scene);
    const double unit = UnitOf(activation()) + 3 * kUnit;
    for (const bool all_decode : {false, true}) {
      RunOptions options;
      options.all_decode = all_decode;
      EXPECT_TRUE(CompareWith(Run(&scene, options), want,
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
  const std::vector<float> want = Run(&scene, prompt);
  const std::vector<float> want_token = Run(&scene, token);
  for (int64_t p = 150; p < scene.table_stride * s.block_tokens; ++p) {
    for (int64_t h = 0; h < s.kv_heads; ++h) {
      const auto bytes = static_cast<size_t>(DTypeBytes(s.kv_dtype, s.head_dim));
      std::memset(scene.CacheAt(&scene.k, 0, p, h), 0xff, bytes);  // NaN
      std::memset(scene.CacheAt(&scene.v, 0, p, h), 0xff, bytes);
    }
  }
  // Blocks wholly before the windows of rows 110 and on are gone: those entries name no block.
  for (int64_t i = 0; i < (110 - 19) / s.block_tokens; ++i) scene.tables[i] = INT32_MIN / 2;
  EXPECT_TRUE(CompareBits(Run(&scene, prompt), want));
  EXPECT_TRUE(CompareBits(Run(&scene, token), want_token));
}

TEST_P(CudaAttentionTest, PaddedRowsStayAsTheyAre) {
  Scene scene = MakeRounded(shape(), {5});
  scene.positions[2] = -1;
  scene.table_of_row[2] = INT32_MIN / 2;
  const int64_t values = scene.shape.heads * scene.shape.head_dim;
  RunOptions options;
  options.all_decode = true;
  const std::vector<float> got = Run(&scene, options);
  for (int64_t i = 0; i < 5 * values; ++i) {
    EXPECT_EQ(got[i] == -7.0F, i / values == 2) << i;
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
