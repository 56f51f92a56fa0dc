#include "worker/weights/loader.h"

#include <cstring>
#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "model/cut.h"
#include "tests/worker/golden.h"
#include "tests/worker/memory_checkpoint.h"
#include "worker/weights/finite.h"

namespace pergola {
namespace {

// Whose memory the weights are in.
CpuStream& HostStream() {
  static const std::unique_ptr<CpuStream> stream = CpuStream::Create({});
  return *stream;
}

std::vector<float> Values(const DeviceVector<float>& vector) {
  return {vector.data(), vector.data() + vector.size()};
}

RankLayout LayoutOf(const MemoryCheckpoint& checkpoint, int tp, int pp, int rank) {
  const auto layout = MakeLayout(checkpoint.spec(), tp, pp, rank);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

StageWeights Load(const MemoryCheckpoint& checkpoint, const RankLayout& layout) {
  auto weights = LoadStageWeights(checkpoint, layout, HostStream(), nullptr);
  EXPECT_TRUE(weights.ok()) << weights.status();
  return std::move(weights).value();
}

std::vector<float> Unpacked(const PackedMatrix& matrix, int64_t row) {
  std::vector<float> values(matrix.columns());
  matrix.UnpackRow(row, values.data());
  return values;
}

// Row `row` of the part's stacked parts.
std::vector<float> Unpacked(const Projection& projection, int64_t row) {
  for (const PackedMatrix& part : projection.parts) {
    if (row < part.rows()) return Unpacked(part, row);
    row -= part.rows();
  }
  return {};
}

std::vector<float> Slice(const std::vector<float>& values, int64_t columns, int64_t row,
                         Range range) {
  const auto begin = values.begin() + row * columns;
  return {begin + range.begin, begin + range.end};
}

// Quantisable, and no cut of heads lies on a block of 32: lead and ragged ends.
ModelSpec QuantSpec() {
  ModelSpec spec = TinySpec();
  spec.heads = 12;
  spec.kv_heads = 4;
  spec.ffn = 160;
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = true;
  return spec;
}

struct Case {
  std::string name;
  DType query, key, down;
  bool gguf_rope_rows;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

class LoaderTest : public testing::TestWithParam<Case> {
 protected:
  static MemoryCheckpoint Make() {
    MemoryCheckpoint::Options options;
    options.dtype = [](Role role) {
      if (role == Role::kKey) return GetParam().key;
      if (role == Role::kDown || role == Role::kUp) return GetParam().down;
      return GetParam().query;
    };
    options.gguf_rope_rows = GetParam().gguf_rope_rows;
    return MemoryCheckpoint(QuantSpec(), options);
  }
};

TEST_P(LoaderTest, EveryRankHoldsItsCutOfAttention) {
  const MemoryCheckpoint checkpoint = Make();
  for (int rank = 0; rank < 6; ++rank) {
    const RankLayout layout = LayoutOf(checkpoint, 3, 2, rank);
    const StageWeights weights = Load(checkpoint, layout);
    for (int64_t layer = layout.layers.begin; layer < layout.layers.end; ++layer) {
      const LayerWeights& loaded = weights.Layer(layer);
      int64_t out = 0;
      for (auto [role, bias, heads] :
           {std::tuple(Role::kQuery, Role::kQueryBias, layout.heads),
            std::tuple(Role::kKey, Role::kKeyBias, layout.kv_heads),
            std::tuple(Role::kValue, Role::kValueBias, layout.kv_heads)}) {
        for (int64_t row = heads.begin * 8; row < heads.end * 8; ++row, ++out) {
          ASSERT_EQ(Unpacked(loaded.qkv, out),
                    Slice(checkpoint.Values(role, layer), 32, row, {0, 32}))
              << RoleName(role, layer) << " row " << row;
          ASSERT_EQ(loaded.qkv.bias.data()[out], checkpoint.Values(bias, layer)[row]);
        }
      }
      ASSERT_EQ(out, loaded.qkv.rows);
      const Range columns{layout.heads.begin * 8, layout.heads.end * 8};
      for (int64_t row = 0; row < 32; ++row) {
        ASSERT_EQ(Unpacked(loaded.output, row),
                  Slice(checkpoint.Values(Role::kAttentionOutput, layer), 96, row, columns));
      }
    }
  }
}

TEST_P(LoaderTest, EveryRankHoldsItsCutOfTheMlp) {
  const MemoryCheckpoint checkpoint = Make();
  for (int rank = 0; rank < 6; ++rank) {
    const RankLayout layout = LayoutOf(checkpoint, 3, 2, rank);
    const StageWeights weights = Load(checkpoint, layout);
    const Range ffn = layout.ffn;
    for (int64_t layer = layout.layers.begin; layer < layout.layers.end; ++layer) {
      const LayerWeights& loaded = weights.Layer(layer);
      ASSERT_EQ(loaded.gate_up.rows, 2 * ffn.size());
      for (int64_t i = 0; i < ffn.size(); ++i) {
        ASSERT_EQ(Unpacked(loaded.gate_up, i),
                  Slice(checkpoint.Values(Role::kGate, layer), 32, ffn.begin + i, {0, 32}));
        ASSERT_EQ(Unpacked(loaded.gate_up, ffn.size() + i),
                  Slice(checkpoint.Values(Role::kUp, layer), 32, ffn.begin + i, {0, 32}));
        ASSERT_EQ(loaded.gate_up.bias.data()[ffn.size() + i],
                  checkpoint.Values(Role::kUpBias, layer)[ffn.begin + i]);
      }
      for (int64_t row = 0; row < 32; ++row) {
        ASSERT_EQ(Unpacked(loaded.down, row),
                  Slice(checkpoint.Values(Role::kDown, layer), 160, row, ffn));
      }
      EXPECT_EQ(Values(loaded.attention_norm.weight),
                checkpoint.Values(Role::kAttentionNorm, layer));
      EXPECT_EQ(Values(loaded.mlp_norm.weight), checkpoint.Values(Role::kMlpNorm, layer));
    }
  }
}

TEST_P(LoaderTest, RowParallelBiasesBelongToTheFirstRankAlone) {
  const MemoryCheckpoint checkpoint = Make();
  for (int rank = 0; rank < 3; ++rank) {
    const StageWeights weights = Load(checkpoint, LayoutOf(checkpoint, 3, 1, rank));
    EXPECT_EQ(weights.Layer(1).output.bias.empty(), rank != 0);
    EXPECT_EQ(weights.Layer(1).down.bias.empty(), rank != 0);
    EXPECT_FALSE(weights.Layer(1).qkv.bias.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes, LoaderTest,
    testing::Values(Case{"f32", DType::kF32, DType::kF32, DType::kF32, false},
                    Case{"f32_gguf", DType::kF32, DType::kF32, DType::kF32, true},
                    Case{"bf16", DType::kBF16, DType::kBF16, DType::kBF16, false},
                    Case{"q8_0", DType::kQ8_0, DType::kQ8_0, DType::kQ8_0, false},
                    Case{"q4_0_gguf", DType::kQ4_0, DType::kQ4_0, DType::kQ4_0, true},
                    Case{"q4_1", DType::kQ4_1, DType::kQ4_1, DType::kQ4_1, false},
                    Case{"mixed", DType::kQ4_1, DType::kF16, DType::kQ8_0, true}),
    [](const auto& test) { return test.param.name; });

TEST(StageWeightsTest, ProjectionOfOneDtypeIsOneMatrixAndOfTwoIsTwo) {
  MemoryCheckpoint::Options options;
  options.dtype = [](Role role) { return role == Role::kValue ? DType::kF16 : DType::kF32; };
  const MemoryCheckpoint checkpoint(TinySpec(), options);
  const StageWeights weights = Load(checkpoint, LayoutOf(checkpoint, 1, 1, 0));
  EXPECT_EQ(weights.Layer(0).qkv.parts.size(), 2U);
  EXPECT_EQ(weights.Layer(0).gate_up.parts.size(), 1U);
  EXPECT_EQ(weights.dtypes, "f16+f32");
}

TEST(StageWeightsTest, VocabularyIsCutByRows) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int rank = 0; rank < 3; ++rank) {
    const RankLayout layout = LayoutOf(checkpoint, 3, 1, rank);
    const StageWeights weights = Load(checkpoint, layout);
    ASSERT_EQ(weights.embedding.rows(), layout.vocabulary.size());
    for (int64_t i = 0; i < layout.vocabulary.size(); ++i) {
      const int64_t row = layout.vocabulary.begin + i;
      EXPECT_EQ(Unpacked(weights.embedding, i),
                Slice(checkpoint.Values(Role::kTokenEmbedding, -1), 32, row, {0, 32}));
      EXPECT_EQ(Unpacked(weights.lm_head(), i),
                Slice(checkpoint.Values(Role::kLmHead, -1), 32, row, {0, 32}));
    }
  }
}

TEST(StageWeightsTest, TiedEmbeddingIsHeldOncePerRankThatNeedsIt) {
  ModelSpec spec = TinySpec();
  spec.tied_embeddings = true;
  const MemoryCheckpoint checkpoint(spec, {});
  const StageWeights both = Load(checkpoint, LayoutOf(checkpoint, 1, 1, 0));
  EXPECT_EQ(&both.lm_head(), &both.embedding);
  EXPECT_EQ(both.head.rows(), 0);
  const StageWeights first = Load(checkpoint, LayoutOf(checkpoint, 1, 3, 0));
  EXPECT_EQ(first.embedding.rows(), 97);
  EXPECT_EQ(first.head.rows(), 0);
  EXPECT_TRUE(first.final_norm.weight.empty());
  const StageWeights middle = Load(checkpoint, LayoutOf(checkpoint, 1, 3, 1));
  EXPECT_EQ(middle.embedding.rows() + middle.head.rows(), 0);
  const StageWeights last = Load(checkpoint, LayoutOf(checkpoint, 1, 3, 2));
  EXPECT_EQ(last.embedding.rows(), 0);
  EXPECT_EQ(last.lm_head().rows(), 97);
  EXPECT_EQ(Values(last.final_norm.weight), checkpoint.Values(Role::kFinalNorm, -1));
}

TEST(StageWeightsTest, ProgressEndsAtTheTotalAndOnlyOwnRowsAreRead) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  int64_t last_done = 0;
  int64_t last_total = 0;
  const auto weights = LoadStageWeights(checkpoint, LayoutOf(checkpoint, 3, 3, 4), HostStream(),
                                        [&](int64_t done, int64_t total) {
                                          EXPECT_GT(done, last_done);
                                          last_done = done;
                                          last_total = total;
                                        });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(last_done, last_total);
  EXPECT_EQ(checkpoint.bytes_read(), last_total);
  // One layer: a third of q, k, v (40 of 120 rows), gate and up at 36 or less rows; output and down
  // are read whole.
  const RankLayout layout = LayoutOf(checkpoint, 3, 3, 4);
  const int64_t rows = (3 + 1 + 1) * 8 + 2 * layout.ffn.size();
  EXPECT_EQ(last_total, 4 * (rows * 32 + 32 * 72 + 32 * 100 + 2 * 32));
}

template <typename T>
void Poke(std::vector<uint8_t>& bytes, size_t offset, T value) {
  std::memcpy(&bytes[offset], &value, sizeof(T));
}

std::string LoadMessage(const MemoryCheckpoint& checkpoint, int tp = 1, int rank = 0) {
  return std::string(
      LoadStageWeights(checkpoint, LayoutOf(checkpoint, tp, 1, rank), HostStream(), nullptr)
          .status()
          .message());
}

TEST(DamagedWeightTest, NanInAMatrixIsRefusedByName) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  Poke(checkpoint.Bytes(Role::kUp, 1), (41 * 32 + 7) * 4, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(LoadMessage(checkpoint),
            "tensor layers.1.mlp.up has a NaN or Inf at row 41, column 7; weights must be finite");
}

TEST(DamagedWeightTest, InfInANormIsRefusedByName) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  Poke(checkpoint.Bytes(Role::kFinalNorm, -1), 31 * 4, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(LoadMessage(checkpoint),
            "tensor final.norm has a NaN or Inf at row 31, column 0; weights must be finite");
}

TEST(DamagedWeightTest, InfInAColumnCutIsRefusedWhereItLiesAndNowhereElse) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  Poke(checkpoint.Bytes(Role::kAttentionOutput, 2), (5 * 72 + 71) * 4,
       std::numeric_limits<float>::infinity());
  EXPECT_EQ(LoadMessage(checkpoint, 3, 0), "");
  EXPECT_EQ(LoadMessage(checkpoint, 3, 2),
            "tensor layers.2.attention.output has a NaN or Inf at row 5, column 71; weights must "
            "be finite");
}

TEST(DamagedWeightTest, NanInAScaleOrMinimumIsRefusedByName) {
  for (int half : {0, 1}) {
    MemoryCheckpoint::Options options;
    options.dtype = [](Role) { return DType::kQ4_1; };
    MemoryCheckpoint checkpoint(QuantSpec(), options);
    // Row 3 of down has 5 blocks of 20 bytes; the third begins at column 64.
    Poke(checkpoint.Bytes(Role::kDown, 0), (3 * 5 + 2) * 20 + 2 * half, uint16_t{0x7E00});
    EXPECT_EQ(LoadMessage(checkpoint),
              "tensor layers.0.mlp.down has a NaN or Inf at row 3, in the block of column 64; "
              "weights must be finite");
  }
}

// What a rank holds of a converted weight is the cut of what one rank alone holds.
void ExpectCutsOfTheWhole(const Checkpoint& checkpoint, WeightFormat format) {
  const auto load = [&](const RankLayout& layout) {
    auto weights = LoadStageWeights(checkpoint, layout, HostStream(), nullptr, format);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return std::move(weights).value();
  };
  const ModelSpec& spec = checkpoint.spec();
  const StageWeights whole = load(*MakeLayout(spec, 1, 1, 0));
  for (int rank = 0; rank < 3; ++rank) {
    const RankLayout layout = *MakeLayout(spec, 3, 1, rank);
    const StageWeights part = load(layout);
    const Range heads{layout.heads.begin * spec.head_dim, layout.heads.end * spec.head_dim};
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      for (int64_t i = 0; i < heads.size(); ++i) {
        ASSERT_EQ(Unpacked(part.Layer(layer).qkv, i),
                  Unpacked(whole.Layer(layer).qkv, heads.begin + i));
      }
      for (int64_t row = 0; row < spec.hidden; ++row) {
        ASSERT_EQ(Unpacked(part.Layer(layer).output, row),
                  Slice(Unpacked(whole.Layer(layer).output, row), 0, 0, heads));
        ASSERT_EQ(Unpacked(part.Layer(layer).down, row),
                  Slice(Unpacked(whole.Layer(layer).down, row), 0, 0, layout.ffn));
      }
    }
  }
}

TEST(ConvertedWeightTest, EveryRankHoldsItsCutOfTheRoundedRows) {
  // Plain rows, fused ones, transposed ones, and llama.cpp's order in four bits.
  for (const char* name : {"uneven", "bloom", "gpt2", "gguf_q8_0"}) {
    const auto checkpoint = Checkpoint::Open(LoadGolden(name).checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const WeightFormat format : kWeightFormats) {
      if (format == WeightFormat::kFp8) continue;  // a GPU's: format_golden_test.cc
      SCOPED_TRACE(testing::Message() << name << " in " << WeightFormatName(format));
      ExpectCutsOfTheWhole(**checkpoint, format);
    }
  }
}

TEST(ConvertedWeightTest, EmbeddingAndHeadStayUnderInt8AndInt4) {
  MemoryCheckpoint::Options options;
  options.dtype = [](Role) { return DType::kBF16; };
  const MemoryCheckpoint checkpoint(TinySpec(), options);
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto weights =
        LoadStageWeights(checkpoint, LayoutOf(checkpoint, 1, 1, 0), HostStream(), nullptr, format);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->embedding.dtype(), DType::kBF16);
    EXPECT_EQ(weights->lm_head().dtype(), DType::kBF16);
    const DType held = format == WeightFormat::kInt8 ? DType::kInt8 : kInt4Groups;
    EXPECT_EQ(weights->Layer(0).down.parts[0].dtype(), held);
    EXPECT_EQ(weights->Layer(0).qkv.parts[0].dtype(), held);
    EXPECT_EQ(weights->dtypes, "bf16+" + std::string(DTypeName(held)));
  }
}

TEST(ConvertedWeightTest, GroupsOfFourBitsStayUnderInt4) {
  MemoryCheckpoint::Options options;
  options.dtype = [](Role role) { return role == Role::kUp ? DType::kQ4_1 : DType::kQ4_0; };
  const MemoryCheckpoint checkpoint(QuantSpec(), options);
  const auto weights = LoadStageWeights(checkpoint, LayoutOf(checkpoint, 1, 1, 0), HostStream(),
                                        nullptr, WeightFormat::kInt4);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->dtypes, "q4_0+q4_1");
}

TEST(ConvertedWeightTest, ValuesTheFormatCannotHoldAreRefusedByNameAndValue) {
  const auto message = [](float value, WeightFormat format) {
    MemoryCheckpoint checkpoint(TinySpec(), {});
    Poke(checkpoint.Bytes(Role::kUp, 1), (41 * 32 + 7) * 4, value);
    const auto layout = LayoutOf(checkpoint, 1, 1, 0);
    return std::string(
        LoadStageWeights(checkpoint, layout, HostStream(), nullptr, format).status().message());
  };
  const std::string at = " at row 41, column 7, which ";
  EXPECT_EQ(message(70000, WeightFormat::kF16),
            "tensor layers.1.mlp.up has 70000" + at + "f16 cannot hold; use --dtype auto or f32");
  EXPECT_EQ(
      message(-3.4e38F, WeightFormat::kBF16),
      "tensor layers.1.mlp.up has -3.4e+38" + at + "bf16 cannot hold; use --dtype auto or f32");
  EXPECT_EQ(message(2e6F, WeightFormat::kInt4),
            "tensor layers.1.mlp.up has 2e+06" + at +
                "a group of q4_1 cannot hold; use --dtype auto or f32");
  EXPECT_EQ(message(2e6F, WeightFormat::kInt8), "");
  EXPECT_EQ(message(-3.4e38F, WeightFormat::kF32), "");
}

// A checkpoint with one value of one tensor replaced.
class PokedCheckpoint : public Checkpoint {
 public:
  PokedCheckpoint(std::unique_ptr<Checkpoint> inner, std::string tensor, int64_t index, float value)
      : inner_(std::move(inner)), tensor_(std::move(tensor)), offset_(4 * index), value_(value) {}
  const ModelSpec& spec() const override { return inner_->spec(); }
  const std::vector<WeightBinding>& weights() const override { return inner_->weights(); }
  const std::vector<std::string>& files() const override { return inner_->files(); }
  const std::vector<TensorInfo>& tensors() const override { return inner_->tensors(); }
  const TensorInfo* Find(const std::string& name) const override { return inner_->Find(name); }
  absl::StatusOr<std::string> Fingerprint() const override { return inner_->Fingerprint(); }
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override {
    const absl::Status status = inner_->Read(tensor, offset, out);
    const int64_t at = offset_ - offset;
    if (tensor.name == tensor_ && at >= 0 && at + 4 <= static_cast<int64_t>(out.size())) {
      std::memcpy(out.data() + at, &value_, 4);
    }
    return status;
  }

 private:
  const std::unique_ptr<Checkpoint> inner_;
  const std::string tensor_;
  const int64_t offset_;
  const float value_;
};

std::string PokedMessage(const std::string& golden, const std::string& tensor, int64_t index,
                         int tp, int rank) {
  auto inner = Checkpoint::Open(LoadGolden(golden).checkpoint);
  EXPECT_TRUE(inner.ok()) << inner.status();
  const PokedCheckpoint checkpoint(*std::move(inner), tensor, index,
                                   std::numeric_limits<float>::quiet_NaN());
  const auto layout = MakeLayout(checkpoint.spec(), tp, 1, rank);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return std::string(
      LoadStageWeights(checkpoint, *layout, HostStream(), nullptr).status().message());
}

// c_attn of GPT-2 is [35 inputs, 3 * 35 outputs], 7 heads of 5.
TEST(DamagedWeightTest, NanInATransposedMatrixIsRefusedWhereItLiesAndNowhereElse) {
  const std::string message =
      "tensor h.1.attn.c_attn.weight has a NaN or Inf at row 4, column 37; weights must be finite";
  EXPECT_EQ(PokedMessage("gpt2", "h.1.attn.c_attn.weight", 4 * 105 + 37, 1, 0), message);
  EXPECT_EQ(PokedMessage("gpt2", "h.1.attn.c_attn.weight", 4 * 105 + 37, 3, 0), message);
  EXPECT_EQ(PokedMessage("gpt2", "h.1.attn.c_attn.weight", 4 * 105 + 37, 3, 2), "");
}

// query_key_value of BLOOM: rows [q k v] of 5 heads of 6.
TEST(DamagedWeightTest, NanInAFusedTensorIsRefusedWhereItLiesAndNowhereElse) {
  const std::string name = "transformer.h.2.self_attention.query_key_value.weight";
  const std::string message =
      "tensor " + name + " has a NaN or Inf at row 80, column 7; weights must be finite";
  EXPECT_EQ(PokedMessage("bloom", name, 80 * 30 + 7, 1, 0), message);
  EXPECT_EQ(PokedMessage("bloom", name, 80 * 30 + 7, 2, 0), "");
  EXPECT_EQ(PokedMessage("bloom", name, 80 * 30 + 7, 2, 1), message);
}

TEST(DamagedWeightTest, IntegersAreRefusedByName) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  checkpoint.Tensor(Role::kGate, 0).dtype = DType::kI32;
  EXPECT_EQ(LoadMessage(checkpoint),
            "tensor layers.0.mlp.gate is i32, which layers.0.mlp.gate cannot be");
}

TEST(DamagedWeightTest, WrongSizeIsRefusedByName) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  checkpoint.Tensor(Role::kGate, 0).bytes -= 4;
  EXPECT_THAT(LoadMessage(checkpoint),
              testing::HasSubstr("tensor layers.0.mlp.gate has 12796 bytes, not the 100 rows of 32"
                                 " f32 values"));
}

TEST(FiniteTest, FindsTheFirstBadValueOfEveryDtype) {
  const std::vector<float> f32 = {1, -std::numeric_limits<float>::max(), 0, 2};
  EXPECT_EQ(FirstNonFinite(DType::kF32, reinterpret_cast<const uint8_t*>(f32.data()), 4), -1);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const int64_t size = BlockBytes(dtype);
    std::vector<uint8_t> bytes(3000 * size);
    EXPECT_EQ(FirstNonFinite(dtype, bytes.data(), 3000), -1);
    for (int64_t at : {0, 1023, 1024, 2999}) {
      std::vector<uint8_t> bad = bytes;
      // All bits of the exponent of either format, the sign too.
      bad[at * size + size - 1] = 0xFF;
      bad[at * size + size - 2] = 0x80;
      EXPECT_EQ(FirstNonFinite(dtype, bad.data(), 3000), at) << DTypeName(dtype);
    }
  }
}

TEST(FiniteTest, FindsTheFirstBadBlockOfEveryFormat) {
  for (DType dtype :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kIQ4_NL,
        DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const int64_t size = BlockBytes(dtype);
    const int64_t values = BlockValues(dtype);
    const BlockHalves halves = HalvesOf(dtype);
    std::vector<uint8_t> bytes(4 * size, 0xFF);
    for (int b = 0; b < 4; ++b) std::memset(&bytes[b * size + halves.offset], 0, 2 * halves.count);
    EXPECT_EQ(FirstNonFinite(dtype, bytes.data(), 4 * values), -1) << "quants of ones are finite";
    for (int64_t half = 0; half < halves.count; ++half) {
      std::vector<uint8_t> bad = bytes;
      bad[2 * size + halves.offset + 2 * half + 1] = 0x7C;
      EXPECT_EQ(FirstNonFinite(dtype, bad.data(), 4 * values), 2 * values) << DTypeName(dtype);
    }
  }
}

}  // namespace
}  // namespace pergola
