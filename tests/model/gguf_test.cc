#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/model/test_files.h"

namespace pergola {
namespace {

using testing::Bytes;
using testing::GgufBuilder;
using ::testing::HasSubstr;

absl::StatusOr<GgufHeader> Parse(const std::string& bytes, TensorTable* table) {
  const absl::Span<const uint8_t> span(reinterpret_cast<const uint8_t*>(bytes.data()),
                                       bytes.size());
  auto header = AddGguf(MakeMemorySource("m.gguf", span), table);
  table->Seal();
  return header;
}

std::string ErrorOf(const std::string& bytes) {
  TensorTable table;
  const absl::Status status = Parse(bytes, &table).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("m.gguf: "));
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  return std::string(status.message());
}

GgufBuilder Small() {
  GgufBuilder gguf;
  gguf.String("name", "x");
  gguf.Uint32("number", 7);
  gguf.Tensor("a", 0, {2, 3}, std::string(24, 'a'));
  gguf.Tensor("q", 2, {2, 64}, std::string(72, 'q'));
  return gguf;
}

TEST(GgufTest, ReadsMetadataOfEveryKind) {
  GgufBuilder gguf;
  gguf.Uint32("u32", 7);
  gguf.Value("i8", 1, Bytes<int8_t>(-3));
  gguf.Value("u64", 10, Bytes<uint64_t>(1));
  gguf.Value("f64", 12, Bytes(0.5));
  gguf.Float32("f32", 0.25F);
  gguf.Bool("yes", true);
  gguf.String("text", "hello");
  gguf.Strings("list", {"a", "", "c"});
  gguf.Int32s("ids", {1, -2});
  TensorTable table;
  const auto header = Parse(gguf.Build(), &table);
  ASSERT_TRUE(header.ok()) << header.status();
  const GgufMetadata& m = header->metadata;
  EXPECT_EQ(m.Int("u32", std::nullopt, 0, 9).value(), 7);
  EXPECT_EQ(m.Int("i8", std::nullopt, -9, 9).value(), -3);
  EXPECT_EQ(m.Int("u64", std::nullopt, 0, 9).value(), 1);
  EXPECT_EQ(m.Number("f64", std::nullopt, 0, 1).value(), 0.5);
  EXPECT_EQ(m.Number("f32", std::nullopt, 0, 1).value(), 0.25);
  EXPECT_TRUE(m.Bool("yes", false).value());
  EXPECT_EQ(m.String("text", std::nullopt).value(), "hello");
  EXPECT_EQ(m.Strings("list").value(), (std::vector<std::string>{"a", "", "c"}));
  EXPECT_EQ(m.Int32s("ids").value(), (std::vector<int32_t>{1, -2}));
  EXPECT_EQ(m.Count("list"), 3);
  EXPECT_EQ(m.Int("absent", 5, 0, 1).value(), 5);
}

TEST(GgufTest, RefusesMetadataOfTheWrongTypeOrBeyondItsLimit) {
  GgufBuilder gguf;
  gguf.Uint32("u32", 7);
  gguf.Value("big", 10, Bytes<uint64_t>(~uint64_t{0}));
  gguf.Float32("nan", std::numeric_limits<float>::quiet_NaN());
  gguf.String("text", "hello");
  gguf.Strings("list", {"a"});
  TensorTable table;
  const auto header = Parse(gguf.Build(), &table);
  ASSERT_TRUE(header.ok());
  const GgufMetadata& m = header->metadata;
  EXPECT_EQ(m.Int("u32", std::nullopt, 8, 9).status().message(),
            "m.gguf: u32 is 7, but must be from 8 to 9");
  EXPECT_EQ(m.Int("gone", std::nullopt, 8, 9).status().message(), "m.gguf: gone is missing");
  EXPECT_FALSE(m.Int("big", std::nullopt, 0, INT64_MAX).ok());
  EXPECT_FALSE(m.Int("text", std::nullopt, 0, 1).ok());
  EXPECT_FALSE(m.Int("list", std::nullopt, 0, 1).ok());
  EXPECT_FALSE(m.Number("nan", std::nullopt, 0, 1).ok());
  EXPECT_FALSE(m.Number("text", std::nullopt, 0, 1).ok());
  EXPECT_FALSE(m.String("u32", std::nullopt).ok());
  EXPECT_FALSE(m.String("list", std::nullopt).ok());
  EXPECT_FALSE(m.Bool("u32", false).ok());
  EXPECT_FALSE(m.Int32s("list").ok());
  EXPECT_FALSE(m.Int32s("u32").ok());
  EXPECT_FALSE(m.Strings("text").ok());
}

TEST(GgufTest, TurnsShapesAroundAndFindsBytes) {
  const std::string bytes = Small().Build();
  TensorTable table;
  ASSERT_TRUE(Parse(bytes, &table).ok());
  const TensorInfo* a = table.Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 3}));
  uint8_t out[72] = {};
  ASSERT_TRUE(table.Read(*table.Find("q"), 0, absl::MakeSpan(out)).ok());
  EXPECT_EQ(out[0], 'q');
  EXPECT_EQ(out[71], 'q');
}

TEST(GgufTest, TakesVersionTwoAndNamesTheOthers) {
  GgufBuilder gguf = Small();
  gguf.version = 2;
  TensorTable table;
  EXPECT_TRUE(Parse(gguf.Build(), &table).ok());
  gguf.version = 1;
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("is GGUF version 1"));
  gguf.version = 4;
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("is GGUF version 4"));
  gguf.version = 3U << 24;
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("big-endian"));
  EXPECT_THAT(ErrorOf("GGML" + std::string(20, '\0')), HasSubstr("not with \"GGUF\""));
}

TEST(GgufTest, RefusesHugeCountsBeforeBelievingThem) {
  GgufBuilder gguf = Small();
  gguf.claimed_tensors = INT64_MAX;
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("tensor count: 9223372036854775807"));
  gguf = Small();
  gguf.claimed_keys = INT64_MAX;
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("metadata count: 9223372036854775807"));
  for (const uint32_t element : {0U, 4U, 8U, 9U, 12U}) {
    gguf = Small();
    gguf.Value("list", 9, Bytes(element) + Bytes(~uint64_t{0}));
    EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("list: 18446744073709551615")) << element;
  }
  gguf = Small();
  gguf.Value("text", 8, Bytes(~uint64_t{0}));
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("a string of 18446744073709551615 bytes"));
}

TEST(GgufTest, RefusesUnknownValueTypesAndDeepArrays) {
  GgufBuilder gguf = Small();
  gguf.Value("odd", 13, "");
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("odd: value type 13 is unknown"));
  std::string nested;
  for (int i = 0; i < 40; ++i) nested += Bytes<uint32_t>(9) + Bytes<uint64_t>(1);
  gguf = Small();
  gguf.Value("deep", 9, nested + Bytes<uint32_t>(0) + Bytes<uint64_t>(0));
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("nested deeper"));
}

TEST(GgufTest, RefusesKeysAndTensorsGivenTwice) {
  GgufBuilder gguf = Small();
  gguf.Uint32("number", 8);
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("key number is there twice"));
  gguf = Small();
  gguf.Tensor("a", 0, {1}, std::string(4, 'a'));
  EXPECT_THAT(ErrorOf(gguf.Build()), HasSubstr("tensor \"a\" is there twice"));
}

TEST(GgufTest, RefusesBrokenShapes) {
  const auto with = [](const std::vector<int64_t>& shape, uint32_t type) {
    GgufBuilder gguf = Small();
    gguf.Tensor("t", type, shape, std::string(64, 't'));
    return gguf.Build();
  };
  EXPECT_THAT(ErrorOf(with({0}, 0)), HasSubstr("tensor \"t\" has shape [0]"));
  EXPECT_THAT(ErrorOf(with({-1}, 0)), HasSubstr("[-1]"));
  EXPECT_THAT(ErrorOf(with({1, 1, 1, 1, 1}, 0)), HasSubstr("has 5 dimensions"));
  EXPECT_THAT(ErrorOf(with({INT64_MAX, INT64_MAX}, 0)), HasSubstr("2^62"));
  EXPECT_THAT(ErrorOf(with({int64_t{1} << 62}, 0)), HasSubstr("is too large"));
  EXPECT_THAT(ErrorOf(with({2, 33}, 2)),
              HasSubstr("rows of 33 values; Q4_0 needs a multiple of 32"));
}

TEST(GgufTest, RefusesOffsetsOutsideOverlappingOrUnaligned) {
  const auto with = [](int64_t offset) {
    GgufBuilder gguf;
    gguf.Tensor("a", 0, {16}, std::string(64, 'a'));
    gguf.Tensor("b", 0, {16}, std::string(64, 'b'), offset);
    return gguf.Build();
  };
  TensorTable table;
  EXPECT_TRUE(Parse(with(64), &table).ok());
  EXPECT_THAT(ErrorOf(with(96)), HasSubstr("takes 64 bytes at offset 96 of the data"));
  EXPECT_THAT(ErrorOf(with(32)), HasSubstr("(overlap)"));
  EXPECT_THAT(ErrorOf(with(0)), HasSubstr("(overlap)"));
  EXPECT_THAT(ErrorOf(with(65)), HasSubstr("no multiple of 32"));
  EXPECT_THAT(ErrorOf(with(INT64_MAX)), HasSubstr("has offset 9223372036854775807"));
}

TEST(GgufTest, HonoursTheAlignmentOfTheFile) {
  GgufBuilder gguf;
  gguf.alignment = 128;
  gguf.Uint32("general.alignment", 128);
  gguf.Tensor("a", 0, {1}, "aaaa");
  gguf.Tensor("b", 0, {1}, "bbbb");
  TensorTable table;
  const std::string bytes = gguf.Build();  // the table reads from it
  ASSERT_TRUE(Parse(bytes, &table).ok());
  uint8_t out[4] = {};
  ASSERT_TRUE(table.Read(*table.Find("b"), 0, absl::MakeSpan(out)).ok());
  EXPECT_EQ(out[3], 'b');
  for (const uint32_t alignment : {0U, 24U, 1U << 31}) {
    GgufBuilder bad;
    bad.Uint32("general.alignment", alignment);
    EXPECT_THAT(ErrorOf(bad.Build()), HasSubstr("general.alignment"));
  }
}

TEST(GgufTest, NamesAnUnsupportedTypeOnlyWhereItIsNeeded) {
  GgufBuilder gguf = Small();
  gguf.Tensor("k", 23, {1, 256}, std::string(136, 'k'));
  gguf.Tensor("new", 77, {1, 256}, std::string(210, 'k'));
  TensorTable table;
  ASSERT_TRUE(Parse(gguf.Build(), &table).ok());
  EXPECT_THAT(std::string(table.Require("k", {1, 256}).status().message()),
              HasSubstr("tensor \"k\" has type IQ4_XS, which is not supported; supported: F32"));
  EXPECT_THAT(std::string(table.Require("new", {1, 256}).status().message()),
              HasSubstr("has type number 77"));
}

TEST(GgufTest, SurvivesEveryTruncation) {
  const std::string good = Small().Build();
  for (size_t size = 0; size < good.size(); ++size) ErrorOf(good.substr(0, size));
}

TEST(GgufTest, SurvivesEveryFlippedBit) {
  const std::string good = Small().Build();
  int refused = 0;
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    TensorTable table;
    refused += Parse(bad, &table).ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 500) << "of " << good.size() * 8;
}

}  // namespace
}  // namespace pergola
