// PagedAttention's contract on every device. What is a GPU's alone (its plans, splits and recorded
// steps) is in cuda_attention_test.cc.
#include <limits>
#include <tuple>

#include "kernels/decoder_ops.h"
#include "tests/kernels/attention_place.h"

namespace pergola {
namespace {

using Shape = AttentionShape;
using Scene = AttentionScene;

std::vector<float> Attend(OpDevice& device, Scene* scene, int64_t begin = 0, int64_t end = -1) {
  AttentionStep step;
  step.begin = begin;
  step.end = end;
  const PlacedAttention placed(device, scene, step);
  PagedAttention(device.stream(), placed.args());
  return placed.Read();
}

// By place and dtype of the KV cache.
using AttentionCase = std::tuple<OpPlace, DType>;

class AttentionTest : public testing::TestWithParam<AttentionCase> {
 protected:
  static OpPlace place() { return std::get<0>(GetParam()); }
  static Shape shape() {
    Shape shape;
    shape.kv_dtype = std::get<1>(GetParam());
    return shape;
  }
  static Scene Make(const Shape& shape, const std::vector<int64_t>& lengths) {
    return RoundedScene(shape, lengths, place().dtype);
  }
  static void ExpectNearReference(Scene scene) {
    OpDevice device(place());
    EXPECT_TRUE(NearReference(device, scene, Attend(device, &scene)));
  }
};

TEST_P(AttentionTest, AgreesWithTheReference) {
  SKIP_WITHOUT_PLACE(place());
  ExpectNearReference(Make(shape(), {1, 33, 70}));
}

TEST_P(AttentionTest, AgreesForUnevenHeadsAndOddHeadSizes) {
  SKIP_WITHOUT_PLACE(place());
  for (int64_t head_dim : {2, 36, 64, 80, 96, 128}) {
    Shape s = shape();
    s.heads = head_dim == 80 ? 9 : 5;  // of five, runs of 2, 2 and 1 heads: not a ratio
    s.kv_heads = 3;
    s.head_dim = head_dim;
    ExpectNearReference(Make(s, {5, 40}));
  }
}

TEST_P(AttentionTest, AgreesForEveryBlockSize) {
  SKIP_WITHOUT_PLACE(place());
  for (int64_t block_tokens : {16, 48, 64, 128}) {
    Shape s = shape();
    s.heads = 2;
    s.block_tokens = block_tokens;
    ExpectNearReference(Make(s, {20, 130}));
  }
}

TEST_P(AttentionTest, AgreesWithinAWindow) {
  SKIP_WITHOUT_PLACE(place());
  for (int64_t window : {1, 7, 32, 50, 64}) {
    Shape s = shape();
    s.heads = 2;
    s.window = window;
    ExpectNearReference(Make(s, {3, 100}));
  }
}

// Adding slope * distance, at most 3 * 100 here, errs by one rounding of a sum that is at most 340.
// Only keys whose p is above 2^-24 count: their distance term is within 40 + 2 * 40 of the largest
// score, so that the rounding is below the 120 u that ErrorOfWeights' 45 per tile (of which there
// are several) and its factor two leave room for.
TEST_P(AttentionTest, AgreesWithSlopes) {
  SKIP_WITHOUT_PLACE(place());
  for (int64_t window : {0, 20}) {
    Shape s = shape();
    s.heads = 6;
    s.kv_heads = 3;
    s.window = window;
    Scene scene = Make(s, {3, 100});
    scene.slopes = {3.0F, 0.5F, 0.03F, 0.25F, 0.0F, 0.9F};
    ExpectNearReference(scene);
  }
}

TEST_P(AttentionTest, ASlopeMovesWeightToNearKeys) {
  SKIP_WITHOUT_PLACE(place());
  Scene scene = Make(shape(), {40});
  scene.slopes = {200.0F, 200.0F, 200.0F, 200.0F};
  OpDevice device(place());
  const auto got = Attend(device, &scene, 39, 40);
  std::vector<float> newest(64);
  for (int64_t head = 0; head < 4; ++head) {
    DecodeToF32(scene.shape.kv_dtype, scene.CacheAt(&scene.v, 0, 39, head / 2), 64, newest.data());
    EXPECT_TRUE(CompareBits({got.begin() + head * 64, got.begin() + (head + 1) * 64},
                            Rounded(place().dtype, newest)));
  }
}

TEST_P(AttentionTest, ManyHeadsMayShareOneKvHead) {
  SKIP_WITHOUT_PLACE(place());
  Shape s = shape();
  s.heads = 71;
  s.kv_heads = 1;
  s.head_dim = 16;
  ExpectNearReference(Make(s, {37}));
}

TEST_P(AttentionTest, UnwrittenPositionsDoNotMatter) {
  SKIP_WITHOUT_PLACE(place());
  Scene scene = Make(shape(), {40});
  OpDevice device(place());
  const auto want = Attend(device, &scene);
  // All bits set is a NaN in each of the dtypes.
  for (int64_t p = 40; p < scene.table_stride * 32; ++p) {
    for (int64_t h = 0; h < scene.shape.kv_heads; ++h) {
      const auto bytes = static_cast<size_t>(DTypeBytes(scene.shape.kv_dtype, 64));
      std::memset(scene.CacheAt(&scene.k, 0, p, h), 0xff, bytes);
      std::memset(scene.CacheAt(&scene.v, 0, p, h), 0xff, bytes);
    }
  }
  EXPECT_TRUE(CompareBits(Attend(device, &scene), want));
}

// On the CPU a row that does not see a NaN is as it was; on a GPU it may reach rows of the same
// prefill tile that do not see it, so there the sequence's last row and the other sequences tell.
TEST_P(AttentionTest, NaNReachesTheRowsThatSeeItAndNoOtherSequence) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  for (const bool in_value : {false, true}) {
    Scene scene = Make(shape(), {40, 40, 3});
    const auto want = Attend(device, &scene);
    for (const auto& [sequence, position] : {std::pair(0, 20), std::pair(2, 2)}) {
      std::memset(scene.CacheAt(in_value ? &scene.v : &scene.k, sequence, position, 0), 0xff,
                  static_cast<size_t>(DTypeBytes(scene.shape.kv_dtype, 64)));
    }
    const auto got = Attend(device, &scene);
    for (int64_t i = 0; i < 83 * 4 * 64; ++i) {
      const int64_t row = i / (4 * 64), head = i / 64 % 4;
      if (!device.on_cpu() && row < 20 && head < 2) continue;
      const bool sees = head < 2 && ((row >= 20 && row < 40) || row == 82);
      ASSERT_EQ(std::isnan(got[i]), sees) << "row " << row << " head " << head;
      if (!sees) {
        ASSERT_TRUE(SameBits(got[i], want[i])) << "row " << row << " head " << head;
      }
    }
  }
}

constexpr DType kKvTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// On a GPU the cache has the activations' type, or one that is converted.
std::vector<AttentionCase> Cases() {
  std::vector<AttentionCase> cases;
  for (const OpPlace& place : AllPlaces()) {
    for (const DType kv : kKvTypes) {
      const bool used = place.device == Device::kCpu || kv == place.dtype ||
                        (place.dtype == DType::kF32 && kv == DType::kF16) ||
                        (place.dtype == DType::kF16 && kv == DType::kBF16);
      if (used) cases.emplace_back(place, kv);
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Places, AttentionTest, testing::ValuesIn(Cases()),
                         [](const testing::TestParamInfo<AttentionCase>& test) {
                           return PlaceName(std::get<0>(test.param)) + "_over_" +
                                  std::string(DTypeName(std::get<1>(test.param)));
                         });

class AttentionBitsTest : public testing::TestWithParam<std::tuple<CpuTarget, DType>> {
 protected:
  static CpuTarget target() { return std::get<0>(GetParam()); }
  static Shape shape() {
    Shape shape;
    shape.kv_dtype = std::get<1>(GetParam());
    return shape;
  }
  static std::vector<float> AttendOn(CpuTarget target, int threads, Scene* scene, int64_t begin = 0,
                                     int64_t end = -1) {
    OpDevice device({Device::kCpu, target, DType::kF32}, threads);
    return Attend(device, scene, begin, end);
  }
};

TEST_P(AttentionBitsTest, ChunksDoNotChangeBits) {
  SKIP_WITHOUT(target());
  for (int64_t window : {0, 45}) {
    Shape s = shape();
    s.window = window;
    const int64_t length = target() == CpuTarget::kPortable ? 100 : 520;
    Scene scene = MakeScene(s, {length});
    if (window > 0) scene.slopes = {0.5F, 0.25F, 0.125F, 0.01F};
    const auto want = AttendOn(target(), 1, &scene);
    for (int64_t chunk : {1, 7, 64, 512}) {
      std::vector<float> got;
      for (int64_t begin = 0; begin < length; begin += chunk) {
        const auto part = AttendOn(target(), 1, &scene, begin, std::min(begin + chunk, length));
        got.insert(got.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(CompareBits(got, want)) << "chunk " << chunk << ", window " << window;
    }
  }
}

TEST_P(AttentionBitsTest, ThreadsDoNotChangeBits) {
  SKIP_WITHOUT(target());
  Scene scene = MakeScene(shape(), {1, 50, 33});
  const auto want = AttendOn(target(), 1, &scene);
  for (int threads : {2, 3}) {
    EXPECT_TRUE(CompareBits(AttendOn(target(), threads, &scene), want));
  }
}

TEST_P(AttentionBitsTest, TargetsAgree) {
  SKIP_WITHOUT(target());
  for (int64_t head_dim : {36, 64}) {
    Shape s = shape();
    s.head_dim = head_dim;
    Scene scene = MakeScene(s, {70});
    if (head_dim == 36) scene.slopes = {0.5F, 0.25F, 0.125F, 0.01F};
    EXPECT_TRUE(
        CompareBits(AttendOn(target(), 2, &scene), AttendOn(CpuTarget::kPortable, 2, &scene)));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, AttentionBitsTest,
                         testing::Combine(testing::ValuesIn(kFastTargets),
                                          testing::ValuesIn(kKvTypes)),
                         [](const auto& test) {
                           return std::string(CpuTargetName(std::get<0>(test.param))) + "_" +
                                  std::string(DTypeName(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace pergola
