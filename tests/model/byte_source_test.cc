#include "model/byte_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/model/test_files.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

TEST(ByteSourceTest, ReadsAtAnyOffset) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("a"), "0123456789");
  const auto source = OpenFileSource(dir.File("a"));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->size(), 10);
  uint8_t out[3] = {};
  ASSERT_TRUE((*source)->ReadAt(7, absl::MakeSpan(out)).ok());
  EXPECT_EQ(std::string(out, out + 3), "789");
}

TEST(ByteSourceTest, RefusesReadsBeyondTheEnd) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("a"), "0123456789");
  const auto source = OpenFileSource(dir.File("a"));
  ASSERT_TRUE(source.ok());
  uint8_t out[3] = {};
  for (const int64_t offset : {int64_t{8}, int64_t{11}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    EXPECT_EQ((*source)->ReadAt(offset, absl::MakeSpan(out)).code(), absl::StatusCode::kDataLoss)
        << offset;
  }
}

TEST(ByteSourceTest, ReportsAFileThatShrankAfterOpening) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("a"), "0123456789");
  const auto source = OpenFileSource(dir.File("a"));
  ASSERT_TRUE(source.ok());
  ASSERT_EQ(truncate(dir.File("a").c_str(), 4), 0);
  uint8_t out[6] = {};
  const absl::Status status = (*source)->ReadAt(2, absl::MakeSpan(out));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("had 10 bytes when opened"));
}

TEST(ByteSourceTest, NamesAMissingFile) {
  const auto source = OpenFileSource("/nonexistent/model.gguf");
  EXPECT_EQ(source.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(source.status().message()), HasSubstr("/nonexistent/model.gguf"));
}

TEST(ByteSourceTest, RefusesAFifoWithoutHanging) {
  const testing::TempDir dir;
  ASSERT_EQ(mkfifo(dir.File("fifo").c_str(), 0600), 0);
  EXPECT_EQ(OpenFileSource(dir.File("fifo")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ByteSourceTest, RefusesAFileLargerThanTheLimit) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("a"), "0123456789");
  EXPECT_TRUE(ReadWholeFile(dir.File("a"), 10).ok());
  const auto text = ReadWholeFile(dir.File("a"), 9);
  ASSERT_FALSE(text.ok());
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("has 10 bytes; at most 9"));
}

TEST(PrintableTest, EscapesControlCharactersAndCutsLongNames) {
  EXPECT_EQ(Printable("a\nb"), "a\\nb");
  EXPECT_LT(Printable(std::string(1000, 'x')).size(), 130U);
}

}  // namespace
}  // namespace pergola
