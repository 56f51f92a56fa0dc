// RopeAndStore, Embedding, Add and the copies.
#include <limits>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/op_device.h"

namespace pergola {
namespace {

class RowwiseTest : public testing::TestWithParam<OpPlace> {};

// Three heads over two KV heads, four blocks of 16 positions.
struct Rope {
  int64_t rows = 0, dim = 0, dims = 0;
  DType kv_dtype = DType::kF32;
  std::vector<float> qkv, cosine, sine;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  std::vector<uint8_t> k, v;

  RopeAndStoreArgs Args(const Tensor& tensor) const {
    RopeAndStoreArgs args;
    args.qkv = tensor;
    args.heads = 3;
    args.kv_heads = 2;
    args.head_dim = dim;
    args.rope.dims = dims;
    args.rope.positions = 64;
    args.block_tokens = 16;
    args.kv_dtype = kv_dtype;
    return args;
  }
  void Reference() {
    RopeAndStoreArgs args = Args(HostTensor(&qkv, rows, 7 * dim));
    args.rope.cosine = cosine.data();
    args.rope.sine = sine.data();
    args.positions = positions.data();
    args.slot_of_row = slots.data();
    args.k_cache = k.data();
    args.v_cache = v.data();
    RopeAndStoreRef(args);
  }
  void There(OpDevice& device) {
    const OpTensor tensor(device, device.dtype(), rows, 7 * dim, qkv);
    const OnDevice<float> cosine_there(device, cosine), sine_there(device, sine);
    const OnDevice<int32_t> positions_there(device, positions);
    const OnDevice<int64_t> slots_there(device, slots);
    const OnDevice<uint8_t> k_there(device, k), v_there(device, v);
    RopeAndStoreArgs args = Args(tensor.tensor());
    args.rope.cosine = cosine_there.data();
    args.rope.sine = sine_there.data();
    args.positions = positions_there.data();
    args.slot_of_row = slots_there.data();
    args.k_cache = k_there.data();
    args.v_cache = v_there.data();
    RopeAndStore(device.stream(), args);
    qkv = tensor.Read();
    k = k_there.Read();
    v = v_there.Read();
  }
};

Rope MakeRope(DType dtype, DType kv_dtype, int64_t rows, int64_t dim, int64_t dims) {
  Rope r;
  r.rows = rows;
  r.dim = dim;
  r.dims = dims;
  r.kv_dtype = kv_dtype;
  r.qkv = Rounded(dtype, RandomValues(rows * 7 * dim, 4));
  for (int64_t i = 0; i < 64 * dims / 2; ++i) {
    r.cosine.push_back(static_cast<float>(std::cos(static_cast<double>(i))));
    r.sine.push_back(static_cast<float>(std::sin(static_cast<double>(i))));
  }
  for (int64_t i = 0; i < rows; ++i) {
    r.positions.push_back(static_cast<int32_t>((i * 7) % 64));
    r.slots.push_back((i * 5 + 3) % 64);  // blocks 0..3, each slot once for up to 64 rows
  }
  r.k.resize(static_cast<size_t>(DTypeBytes(kv_dtype, 4 * 2 * 16 * dim)));
  r.v = r.k;
  return r;
}

// Two products and a sum, each rounded; |a|, |b| < 6 for these values.
constexpr double kRotationError = 3 * kUnit * 12;

TEST_P(RowwiseTest, RopeAndStoreAgreesWithTheReference) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const int64_t shapes[][2] = {{2, 2}, {15, 8}, {36, 20}, {64, 64}, {80, 80}, {16, 0}};
  for (const DType kv : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& shape : shapes) {
      for (const int64_t rows : {0, 1, 20}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << shape[1] << " of " << shape[0]);
        Rope got = MakeRope(device.dtype(), kv, rows, shape[0], shape[1]), want = got;
        got.There(device);
        want.Reference();
        EXPECT_TRUE(CompareWith(got.qkv, want.qkv, [&](size_t i) {
          return kRotationError + device.StoreError(want.qkv[i]);
        }));
        // Near a rounding edge of the cache's type a key may fall to the other side.
        const std::vector<float> keys = ToFloats(kv, want.k);
        EXPECT_TRUE(CompareWith(ToFloats(kv, got.k), keys, [&](size_t i) {
          return kRotationError + 2 * RoundingError(kv, keys[i]) + device.StoreError(keys[i]);
        }));
        EXPECT_EQ(got.v, want.v) << "values are stored as they are";
      }
    }
  }
}

TEST_P(RowwiseTest, StoredKeysAreTheRotatedOnesRounded) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  if (device.dtype() != DType::kF32) GTEST_SKIP() << "keys are rounded once, from f32";
  for (const DType kv : {DType::kF16, DType::kBF16}) {
    Rope rope = MakeRope(DType::kF32, kv, 20, 36, 36);
    rope.There(device);
    for (int64_t r = 0; r < 20; ++r) {
      for (int64_t i = 0; i < 2 * 36; ++i) {
        const float rotated = rope.qkv[r * 7 * 36 + 3 * 36 + i];
        const int64_t slot = rope.slots[r];
        const int64_t at = ((slot / 16 * 2 + i / 36) * 16 + slot % 16) * 36 + i % 36;
        uint16_t stored;
        std::memcpy(&stored, &rope.k[2 * at], 2);
        ASSERT_EQ(stored, kv == DType::kF16 ? F32ToF16(rotated) : F32ToBF16(rotated));
      }
    }
  }
}

TEST_P(RowwiseTest, CopyBlockCopiesKeysAndValues) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  std::vector<uint8_t> k(30), v(30);
  for (size_t i = 0; i < 30; ++i) {
    k[i] = static_cast<uint8_t>(i);
    v[i] = static_cast<uint8_t>(100 + i);
  }
  const OnDevice<uint8_t> k_there(device, k), v_there(device, v);
  CopyBlock(device.stream(), CopyBlockArgs{2, 0, 10, k_there.data(), v_there.data()});
  std::copy_n(k.begin() + 20, 10, k.begin());
  std::copy_n(v.begin() + 20, 10, v.begin());
  EXPECT_EQ(k_there.Read(), k);
  EXPECT_EQ(v_there.Read(), v);
}

TEST_P(RowwiseTest, AddConvertsAndAdds) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  std::vector<float> x = RandomValues(4 * 37, 1);
  const std::vector<float> y = Rounded(device.dtype(), RandomValues(4 * 37, 2));
  const OpTensor sum(device, DType::kF32, 4, 37, x), branch(device, device.dtype(), 4, 37, y);
  Add(device.stream(), AddArgs{sum.tensor(), branch.tensor()});
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  EXPECT_TRUE(CompareBits(sum.Read(), x));
}

TEST_P(RowwiseTest, CopyRowsPicksAndConverts) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const std::vector<float> x = RandomValues(4 * 37, 1);
  // On a GPU a negative row is padding of a recorded step.
  const std::vector<int32_t> rows = {3, 0, device.on_cpu() ? 2 : -1};
  const OpTensor from(device, DType::kF32, 4, 37, x);
  const OpTensor to(device, device.dtype(), 3, 37, std::vector<float>(3 * 37, 7.0F));
  const OnDevice<int32_t> rows_there(device, rows);
  CopyRows(device.stream(), CopyRowsArgs{from.tensor(), rows_there.data(), to.tensor()});
  std::vector<float> want;
  for (const int32_t row : rows) {
    for (int64_t i = 0; i < 37; ++i) want.push_back(row < 0 ? 7.0F : x[row * 37 + i]);
  }
  EXPECT_TRUE(CompareBits(to.Read(), Rounded(device.dtype(), want)));
}

TEST_P(RowwiseTest, CopyColumnsLeavesTheOthers) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const std::vector<float> x = Rounded(device.dtype(), RandomValues(4 * 37, 1));
  const OpTensor from(device, device.dtype(), 4, 37, x);
  const OpTensor to(device, device.dtype(), 4, 50, std::vector<float>(4 * 50, -1.0F));
  CopyColumns(device.stream(), CopyColumnsArgs{from.tensor(), 9, to.tensor()});
  const std::vector<float> got = to.Read();
  for (int64_t i = 0; i < 4 * 50; ++i) {
    const int64_t column = i % 50 - 9;
    EXPECT_EQ(got[i], column >= 0 && column < 37 ? x[i / 50 * 37 + column] : -1.0F);
  }
}

TEST_P(RowwiseTest, ScatterReachesItsPlacesAlone) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const OnDevice<int32_t> to(device, std::vector<int32_t>(10, -1)), at(device, {9, 0, 4}),
      values(device, {90, 1, 40});
  Scatter(device.stream(), ScatterArgs{at.data(), values.data(), 3, to.data()});
  EXPECT_EQ(to.Read(), (std::vector<int32_t>{1, -1, -1, -1, 40, -1, -1, -1, -1, 90}));
}

INSTANTIATE_TEST_SUITE_P(Places, RowwiseTest, testing::ValuesIn(AllPlaces()),
                         [](const auto& test) { return PlaceName(test.param); });

// The padding of a recorded step, which the CPU does not know.
class RowwisePaddingTest : public RowwiseTest {};

TEST_P(RowwisePaddingTest, RopeAndStoreLeavesRowsWithoutAPosition) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const Rope before = MakeRope(device.dtype(), DType::kF32, 5, 80, 32);
  Rope padded = before, whole = before;
  padded.positions[2] = -1;
  padded.There(device);
  whole.There(device);
  for (int64_t i = 0; i < 5 * 7 * 80; ++i) {
    const Rope& want = i / (7 * 80) == 2 ? before : whole;
    ASSERT_EQ(padded.qkv[i], want.qkv[i]) << i;
  }
  const std::vector<float> keys = ToFloats(DType::kF32, padded.k);
  const std::vector<float> all = ToFloats(DType::kF32, whole.k);
  for (int64_t i = 0; i < 4 * 2 * 16 * 80; ++i) {
    const int64_t slot = i / (2 * 16 * 80) * 16 + i / 80 % 16;
    ASSERT_EQ(keys[i], slot == before.slots[2] ? 0 : all[i]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Places, RowwisePaddingTest, testing::ValuesIn(CudaPlaces()),
                         [](const auto& test) { return PlaceName(test.param); });

// By place (activations do not count: y is f32) and format of the table.
using EmbeddingCase = std::tuple<OpPlace, DType>;
class EmbeddingTest : public testing::TestWithParam<EmbeddingCase> {};

TEST_P(EmbeddingTest, TakesItsRowsToTheBitAndLeavesOthersZero) {
  const auto& [place, dtype] = GetParam();
  SKIP_WITHOUT_PLACE(place);
  OpDevice device(place);
  const auto last = static_cast<int>(BlockValues(dtype)) - 1;
  for (const int lead : {0, last / 2, last}) {
    for (const int64_t columns : {3, 260, 577}) {
      const int64_t block = BlockValues(dtype);
      const int64_t covered = (lead + columns + block - 1) / block * block;
      const std::vector<uint8_t> file = RandomFileRows(dtype, 10, covered, 7);
      PackedMatrix table = PackedMatrix::Allocate(device.stream(), dtype, 10, columns, lead);
      PackWhole(device.stream(), file.data(), DTypeBytes(dtype, covered), &table);
      const std::vector<int32_t> ids = {100, 109, 99, 104, 110, 0, 101};
      const auto count = static_cast<int64_t>(ids.size());
      const OnDevice<int32_t> ids_there(device, ids);
      const OpTensor y(device, DType::kF32, count, columns,
                       std::vector<float>(static_cast<size_t>(count * columns), 5.0F));
      EmbeddingArgs args;
      args.table = &table;
      args.first_row = 100;
      args.ids = Tensor(ids_there.data(), DType::kI32, {count});
      args.y = y.tensor();
      Embedding(device.stream(), args);
      std::vector<float> want(static_cast<size_t>(count * columns)), row(covered);
      for (int64_t i = 0; i < count; ++i) {
        if (ids[i] < 100 || ids[i] >= 110) continue;
        DecodeToF32(dtype, file.data() + (ids[i] - 100) * DTypeBytes(dtype, covered), covered,
                    row.data());
        std::copy_n(row.begin() + lead, columns, want.begin() + i * columns);
      }
      EXPECT_TRUE(CompareBits(y.Read(), want)) << "lead " << lead << ", " << columns << " columns";
    }
  }
}

TEST_P(EmbeddingTest, ScalesAndAdds) {
  const auto& [place, dtype] = GetParam();
  SKIP_WITHOUT_PLACE(place);
  OpDevice device(place);
  const std::vector<uint8_t> file = RandomFileRows(dtype, 4, 256, 8);
  PackedMatrix table = PackedMatrix::Allocate(device.stream(), dtype, 4, 256, 0);
  PackWhole(device.stream(), file.data(), DTypeBytes(dtype, 256), &table);
  const std::vector<float> before = RandomValues(3 * 256, 9);
  const OnDevice<int32_t> ids(device, {2, 7, 0});
  const OpTensor y(device, DType::kF32, 3, 256, before);
  EmbeddingArgs args;
  args.table = &table;
  args.ids = Tensor(ids.data(), DType::kI32, {3});
  args.scale = 4;  // exact
  args.accumulate = true;
  args.y = y.tensor();
  Embedding(device.stream(), args);
  std::vector<float> want = before, row(256);
  for (const auto& [at, id] : {std::pair(0, 2), std::pair(2, 0)}) {
    DecodeToF32(dtype, file.data() + id * DTypeBytes(dtype, 256), 256, row.data());
    for (int64_t k = 0; k < 256; ++k) want[at * 256 + k] += 4 * row[k];
  }
  EXPECT_TRUE(CompareBits(y.Read(), want));
}

INSTANTIATE_TEST_SUITE_P(Places, EmbeddingTest,
                         testing::Combine(testing::ValuesIn(F32Places()),
                                          testing::ValuesIn(kWeightTypes)),
                         [](const auto& test) {
                           return PlaceName(std::get<0>(test.param)) + "_" +
                                  std::string(DTypeName(std::get<1>(test.param)));
                         });

// The reference computes in double: it has no bits to share.
class RowwiseBitsTest : public testing::TestWithParam<CpuTarget> {};

TEST_P(RowwiseBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto run = [](CpuTarget target, int threads) {
    OpDevice device({Device::kCpu, target, DType::kF32}, threads);
    Rope rope = MakeRope(DType::kF32, DType::kF16, 60, 36, 36);
    rope.There(device);
    std::vector<float> y = rope.qkv;
    const std::vector<float> keys = ToFloats(DType::kF16, rope.k);
    y.insert(y.end(), keys.begin(), keys.end());
    return y;
  };
  const auto want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 2, 3}) EXPECT_TRUE(CompareBits(run(GetParam(), threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, RowwiseBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
