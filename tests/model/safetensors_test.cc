#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/model/test_files.h"

namespace pergola {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;

absl::Status Parse(const std::string& bytes, TensorTable* table) {
  const absl::Span<const uint8_t> span(reinterpret_cast<const uint8_t*>(bytes.data()),
                                       bytes.size());
  absl::Status status = AddSafetensors(MakeMemorySource("m.safetensors", span), table);
  table->Seal();
  return status;
}

std::string ErrorOf(const std::string& bytes) {
  TensorTable table;
  const absl::Status status = Parse(bytes, &table);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("m.safetensors: "));
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  return std::string(status.message());
}

std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets, size_t data_bytes) {
  return SafetensorsBytes(absl::StrCat(R"({"t":{"dtype":")", dtype, R"(","shape":)", shape,
                                       R"(,"data_offsets":)", offsets, "}}"),
                          std::string(data_bytes, 'x'));
}

TEST(SafetensorsTest, ReadsNamesTypesShapesAndPlaces) {
  const std::string bytes = SafetensorsBytes({{"b", "F32", {2, 3}, std::string(24, 'x')},
                                              {"a", "BF16", {4}, std::string(8, 'y')},
                                              {"s", "F16", {}, "zz"}});
  TensorTable table;
  const absl::Status status = Parse(bytes, &table);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(table.tensors().size(), 3U);
  const TensorInfo* b = table.Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF32);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->offset, static_cast<int64_t>(bytes.size()) - 34);
  EXPECT_EQ(b->bytes, 24);
  uint8_t out[2] = {};
  ASSERT_TRUE(table.Read(*table.Find("a"), 6, absl::MakeSpan(out)).ok());
  EXPECT_EQ(out[0], 'y');
  EXPECT_EQ(table.Find("s")->dtype, DType::kF16);
}

TEST(SafetensorsTest, IgnoresMetadataAndPaddingSpaces) {
  TensorTable table;
  EXPECT_TRUE(Parse(SafetensorsBytes(R"({"__metadata__":{"format":"pt"}}     )", ""), &table).ok());
  EXPECT_TRUE(table.tensors().empty());
}

TEST(SafetensorsTest, RefusesAFileOfLessThanEightBytes) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("has 0 bytes"));
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("has 7 bytes"));
}

TEST(SafetensorsTest, RefusesAHeaderLengthBeyondTheFile) {
  EXPECT_THAT(ErrorOf(Bytes<uint64_t>(3) + "{}"),
              HasSubstr("header length is 3, but must be at most 2"));
  EXPECT_THAT(ErrorOf(Bytes<uint64_t>(~uint64_t{0}) + "{}"), HasSubstr("18446744073709551615"));
}

TEST(SafetensorsTest, RefusesABrokenHeader) {
  EXPECT_THAT(ErrorOf(SafetensorsBytes("[]", "")), HasSubstr("must be an object"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes("{\"a\":", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes(R"({"t":3})", "")), HasSubstr("is not an object"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes(R"({"t":{}})", "")), HasSubstr("dtype is missing"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes(R"({"t":{"dtype":"F32"}})", "")), HasSubstr("shape"));
  EXPECT_THAT(ErrorOf(SafetensorsBytes(R"({"t":{"dtype":"F32","shape":[]}})", "")),
              HasSubstr("data_offsets"));
}

TEST(SafetensorsTest, RefusesATensorGivenTwice) {
  const std::string entry = R"("t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_THAT(ErrorOf(SafetensorsBytes("{" + entry + "," + entry + "}", "x")),
              HasSubstr("given twice"));
}

TEST(SafetensorsTest, RefusesOffsetsOutsideTheFile) {
  EXPECT_THAT(ErrorOf(OneTensor("F32", "[2]", "[0,8]", 7)), HasSubstr("outside the 7 bytes"));
  EXPECT_THAT(ErrorOf(OneTensor("F32", "[2]", "[8,0]", 8)), HasSubstr("[8, 0]"));
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[2]", "[0,18446744073709551615]", 8)).empty());
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[2]", "[-8,0]", 8)).empty());
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[2]", "[0,8,8]", 8)).empty());
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[2]", "[0.0,8.0]", 8)).empty());
}

TEST(SafetensorsTest, RefusesASizeThatDoesNotFollowFromShapeAndType) {
  EXPECT_THAT(ErrorOf(OneTensor("F32", "[3]", "[0,8]", 8)), HasSubstr("has 8 bytes, but F32"));
  EXPECT_THAT(ErrorOf(OneTensor("BF16", "[2,2]", "[0,7]", 7)), HasSubstr("has 7 bytes"));
}

TEST(SafetensorsTest, RefusesShapesThatOverflow) {
  EXPECT_THAT(ErrorOf(OneTensor("F32", "[4294967296,4294967296]", "[0,8]", 8)),
              HasSubstr("overflows"));
  // 2^62 x 4 bytes wraps to 0 in 64 bits.
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[4611686018427387904]", "[0,0]", 0)).empty());
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[-1]", "[0,4]", 4)).empty());
  EXPECT_FALSE(ErrorOf(OneTensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]", 4)).empty());
}

TEST(SafetensorsTest, RefusesOverlapHoleAndTrailingBytes) {
  const auto two = [](const char* second, size_t bytes) {
    return SafetensorsBytes(
        absl::StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)",
                     R"("b":{"dtype":"U8","shape":[4],"data_offsets":)", second, "}}"),
        std::string(bytes, 'x'));
  };
  TensorTable table;
  EXPECT_TRUE(Parse(two("[4,8]", 8), &table).ok());
  EXPECT_THAT(ErrorOf(two("[3,7]", 7)), HasSubstr("(overlap)"));
  EXPECT_THAT(ErrorOf(two("[0,4]", 4)), HasSubstr("(overlap)"));
  EXPECT_THAT(ErrorOf(two("[5,9]", 9)), HasSubstr("(hole)"));
  EXPECT_THAT(ErrorOf(two("[4,8]", 9)), HasSubstr("end at 8, but the file holds 9"));
}

TEST(SafetensorsTest, RefusesAnUnsupportedTypeOnlyWhereItIsNeeded) {
  TensorTable table;
  ASSERT_TRUE(Parse(OneTensor("I64", "[2]", "[0,16]", 16), &table).ok());
  EXPECT_EQ(table.Find("t"), nullptr);
  const auto required = table.Require("t", {2});
  EXPECT_THAT(std::string(required.status().message()),
              HasSubstr("tensor \"t\" has type I64, which is not supported"));
}

TEST(SafetensorsTest, SurvivesEveryFlippedBit) {
  const std::string good = SafetensorsBytes(
      {{"a", "F32", {2, 3}, std::string(24, 'x')}, {"b", "BF16", {4}, std::string(8, 'y')}});
  int refused = 0;
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    TensorTable table;
    refused += Parse(bad, &table).ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 500) << "of " << good.size() * 8;
}

TEST(SafetensorsTest, SurvivesEveryTruncation) {
  const std::string good = SafetensorsBytes({{"a", "F32", {2, 3}, std::string(24, 'x')}});
  for (size_t size = 0; size < good.size(); ++size) ErrorOf(good.substr(0, size));
}

class ShardsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteFile(dir_.File("one.safetensors"),
                       SafetensorsBytes({{"a", "F32", {1}, std::string(4, 'x')}}));
    testing::WriteFile(dir_.File("two.safetensors"),
                       SafetensorsBytes({{"b", "F32", {1}, std::string(4, 'x')}}));
  }
  std::string OpenWith(const std::string& index) {
    testing::WriteFile(dir_.File("model.safetensors.index.json"), index);
    TensorTable table;
    const absl::Status status = AddSafetensorsDirectory(dir_.path(), &table);
    return status.ok() ? "ok" : std::string(status.message());
  }
  testing::TempDir dir_;
};

TEST_F(ShardsTest, OpensTheShardsOfTheIndex) {
  EXPECT_EQ(OpenWith(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"), "ok");
}

TEST_F(ShardsTest, RefusesATensorThatAnotherShardHolds) {
  EXPECT_THAT(OpenWith(R"({"weight_map":{"a":"two.safetensors","b":"one.safetensors"}})"),
              HasSubstr("tensor \"b\" is not in"));
}

TEST_F(ShardsTest, LetsTheIndexNameWhatNoShardHolds) {
  EXPECT_EQ(OpenWith(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors",)"
                     R"("tied":"one.safetensors"}})"),
            "ok");
}

TEST_F(ShardsTest, RefusesShardNamesThatLeaveTheDirectory) {
  for (const char* name :
       {"../one.safetensors", "/etc/passwd", "x/../../y", "", "..", ".", ".hidden", "a\\u0000b"}) {
    EXPECT_THAT(OpenWith(absl::StrCat(R"({"weight_map":{"a":")", name, R"("}})")),
                HasSubstr("is not the name of a file in this directory"))
        << name;
  }
  EXPECT_THAT(OpenWith(R"({"weight_map":{"a":3}})"), HasSubstr("is not the name of a file"));
}

TEST_F(ShardsTest, RefusesAnIndexWithoutMapAndAMissingShard) {
  EXPECT_THAT(OpenWith(R"({})"), HasSubstr("weight_map is missing"));
  EXPECT_THAT(OpenWith(R"({"weight_map":[]})"), HasSubstr("weight_map is missing"));
  EXPECT_THAT(OpenWith(R"({"weight_map":{"a":"three.safetensors"}})"),
              HasSubstr("three.safetensors: cannot open"));
}

TEST_F(ShardsTest, RefusesATensorThatLiesInTwoShards) {
  testing::WriteFile(dir_.File("two.safetensors"),
                     SafetensorsBytes({{"a", "F32", {1}, std::string(4, 'x')},
                                       {"b", "F32", {1}, std::string(4, 'x')}}));
  EXPECT_THAT(OpenWith(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"),
              HasSubstr("is there twice"));
}

TEST(SafetensorsDirectoryTest, SaysWhyPickledWeightsAreNotRead) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("pytorch_model.bin"), "x");
  TensorTable table;
  EXPECT_THAT(std::string(AddSafetensorsDirectory(dir.path(), &table).message()),
              HasSubstr("pytorch_model.bin is never read"));
}

}  // namespace
}  // namespace pergola
