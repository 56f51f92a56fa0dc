// RmsNorm, RopeAndStore, Embedding and CopyBlock.
#include <limits>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class RowwiseTest : public testing::TestWithParam<CpuTarget> {};

struct Norm {
  int64_t rows = 0, hidden = 0;
  std::vector<float> x, residual, weight, y;
  RmsNormArgs Args(bool with_residual) {
    RmsNormArgs args;
    y.assign(x.size(), 0.0F);
    args.x = Tensor(x.data(), DType::kF32, {rows, hidden});
    if (with_residual) args.residual = Tensor(residual.data(), DType::kF32, {rows, hidden});
    args.weight = weight.data();
    args.epsilon = 1e-5F;
    args.y = Tensor(y.data(), DType::kF32, {rows, hidden});
    return args;
  }
};

Norm MakeNorm(int64_t rows, int64_t hidden) {
  return {rows,
          hidden,
          RandomValues(rows * hidden, 1),
          RandomValues(rows * hidden, 2),
          RandomValues(hidden, 3),
          {}};
}

// The sum of squares errs by (hidden/16 + 5) u relative, its root by half of that; then mean, sum,
// root, reciprocal and two products; with a residual x itself is rounded alike on both sides.
double NormError(int64_t hidden) {
  return (static_cast<double>(hidden) / 32 + 2.5 + 7) * kUnit;
}

TEST_P(RowwiseTest, RmsNormAgreesWithTheReference) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  for (int64_t hidden : {1, 15, 16, 31, 576, 2048}) {
    for (int64_t rows : {0, 1, 3, 40}) {
      for (bool with_residual : {false, true}) {
        Norm got = MakeNorm(rows, hidden), want = got;
        RmsNorm(*stream, got.Args(with_residual));
        RmsNormRef(want.Args(with_residual));
        EXPECT_TRUE(CompareBits(got.x, want.x)) << "the sum with the residual";
        EXPECT_TRUE(CompareWith(
            got.y, want.y,
            [&](size_t i) { return NormError(hidden) * std::abs(static_cast<double>(want.y[i])); }))
            << rows << " x " << hidden;
      }
    }
  }
}

TEST_P(RowwiseTest, RmsNormMayWorkInPlace) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Norm apart = MakeNorm(4, 100), inside = apart;
  RmsNorm(*stream, apart.Args(false));
  RmsNormArgs args = inside.Args(false);
  args.y = args.x;
  RmsNorm(*stream, args);
  EXPECT_TRUE(CompareBits(inside.x, apart.y));
}

TEST_P(RowwiseTest, RmsNormKeepsNaNInItsRow) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Norm norm = MakeNorm(3, 40);
  norm.x[40 + 39] = kNaN;
  RmsNorm(*stream, norm.Args(false));
  for (int64_t i = 0; i < 120; ++i) EXPECT_EQ(std::isnan(norm.y[i]), i / 40 == 1);
}

struct Rope {
  int64_t heads = 3, kv_heads = 2, head_dim = 0, rows = 0;
  DType kv_dtype = DType::kF32;
  std::vector<float> qkv, cosine, sine;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  std::vector<uint8_t> k, v;
  RopeAndStoreArgs Args(int64_t dims) {
    RopeAndStoreArgs args;
    args.qkv = Tensor(qkv.data(), DType::kF32, {rows, (heads + 2 * kv_heads) * head_dim});
    args.heads = heads;
    args.kv_heads = kv_heads;
    args.head_dim = head_dim;
    args.rope = {dims, 64, cosine.data(), sine.data()};
    args.positions = positions.data();
    args.slot_of_row = slots.data();
    args.block_tokens = 16;
    args.kv_dtype = kv_dtype;
    args.k_cache = k.data();
    args.v_cache = v.data();
    return args;
  }
};

Rope MakeRope(DType kv_dtype, int64_t rows, int64_t head_dim, int64_t dims) {
  Rope r;
  r.head_dim = head_dim;
  r.rows = rows;
  r.kv_dtype = kv_dtype;
  r.qkv = RandomValues(rows * (r.heads + 2 * r.kv_heads) * head_dim, 4);
  for (int64_t i = 0; i < 64 * dims / 2; ++i) {
    r.cosine.push_back(static_cast<float>(std::cos(static_cast<double>(i))));
    r.sine.push_back(static_cast<float>(std::sin(static_cast<double>(i))));
  }
  for (int64_t i = 0; i < rows; ++i) {
    r.positions.push_back(static_cast<int32_t>((i * 7) % 64));
    r.slots.push_back((i * 5 + 3) % 64);  // blocks 0..3, each slot once for up to 64 rows
  }
  r.k.resize(static_cast<size_t>(DTypeBytes(kv_dtype, 4 * r.kv_heads * 16 * head_dim)));
  r.v = r.k;
  return r;
}

std::vector<float> Decoded(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(BlockBytes(dtype)));
  DecodeToF32(dtype, bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

TEST_P(RowwiseTest, RopeAndStoreAgreesWithTheReference) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t head_dim : {2, 36, 64}) {
      for (int64_t rows : {0, 1, 20}) {
        const int64_t dims = head_dim == 36 ? 20 : head_dim;  // partial rotation too
        Rope got = MakeRope(dtype, rows, head_dim, dims), want = got;
        RopeAndStore(*stream, got.Args(dims));
        RopeAndStoreRef(want.Args(dims));
        // Two products and a sum, each rounded; |a|, |b| < 6 for these values.
        EXPECT_TRUE(CompareWith(got.qkv, want.qkv, [](size_t) { return 3 * kUnit * 12; }));
        // A value near a rounding edge of the narrow type may fall to the other side: one unit in
        // the last place.
        const double ulp = dtype == DType::kF32   ? 2 * kUnit
                           : dtype == DType::kF16 ? 0x1p-10
                                                  : 0x1p-7;
        EXPECT_TRUE(CompareWith(Decoded(dtype, got.k), Decoded(dtype, want.k),
                                [&](size_t) { return 12 * ulp + 36 * kUnit; }));
        EXPECT_EQ(got.v, want.v) << "values are stored as they are";
      }
    }
  }
}

TEST_P(RowwiseTest, StoredKeysAreTheRotatedOnesRounded) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    Rope rope = MakeRope(dtype, 20, 36, 36);
    RopeAndStore(*stream, rope.Args(36));
    for (int64_t r = 0; r < 20; ++r) {
      for (int64_t i = 0; i < 2 * 36; ++i) {
        const float rotated = rope.qkv[r * 7 * 36 + 3 * 36 + i];
        const int64_t slot = rope.slots[r];
        const int64_t at = ((slot / 16 * 2 + i / 36) * 16 + slot % 16) * 36 + i % 36;
        uint16_t stored;
        std::memcpy(&stored, &rope.k[2 * at], 2);
        ASSERT_EQ(stored, dtype == DType::kF16 ? F32ToF16(rotated) : F32ToBF16(rotated));
      }
    }
  }
}

TEST_P(RowwiseTest, EmbeddingTakesItsRowsAndLeavesOthersZero) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  const PackedMatrix table = RandomMatrix(DType::kQ4_1, 40, 64, 7);
  std::vector<int32_t> ids = {99, 100, 139, 140, 0, 100};
  std::vector<float> y(6 * 64, 5.0F), row(64);
  EmbeddingArgs args;
  args.table = &table;
  args.first_row = 100;
  args.ids = Tensor(ids.data(), DType::kI32, {6});
  args.y = Tensor(y.data(), DType::kF32, {6, 64});
  Embedding(*stream, args);
  for (size_t r = 0; r < ids.size(); ++r) {
    const bool here = ids[r] >= 100 && ids[r] < 140;
    if (here) table.UnpackRow(ids[r] - 100, row.data());
    if (!here) std::fill(row.begin(), row.end(), 0.0F);
    EXPECT_TRUE(CompareBits({y.begin() + r * 64, y.begin() + (r + 1) * 64}, row));
  }
}

TEST_P(RowwiseTest, CopyBlockCopiesKeysAndValues) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  std::vector<uint8_t> k(30), v(30);
  for (size_t i = 0; i < 30; ++i) {
    k[i] = static_cast<uint8_t>(i);
    v[i] = static_cast<uint8_t>(100 + i);
  }
  auto want_k = k, want_v = v;
  std::copy_n(want_k.begin() + 20, 10, want_k.begin());
  std::copy_n(want_v.begin() + 20, 10, want_v.begin());
  CopyBlockArgs args{2, 0, 10, k.data(), v.data()};
  CopyBlock(*stream, args);
  EXPECT_EQ(k, want_k);
  EXPECT_EQ(v, want_v);
}

INSTANTIATE_TEST_SUITE_P(Targets, RowwiseTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

// The reference computes in double: it has no bits to share.
class RowwiseBitsTest : public RowwiseTest {};

TEST_P(RowwiseBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto run = [](CpuTarget target, int threads) {
    const auto stream = MakeStream(target, threads);
    Norm norm = MakeNorm(600, 77);
    RmsNorm(*stream, norm.Args(true));
    Rope rope = MakeRope(DType::kF16, 60, 36, 36);
    RopeAndStore(*stream, rope.Args(36));
    std::vector<float> y;
    for (const auto& more : {norm.x, norm.y, rope.qkv, Decoded(DType::kF16, rope.k)}) {
      y.insert(y.end(), more.begin(), more.end());
    }
    return y;
  };
  const auto want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 2, 3}) EXPECT_TRUE(CompareBits(run(GetParam(), threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, RowwiseBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
