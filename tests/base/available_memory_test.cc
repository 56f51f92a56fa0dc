#include "base/available_memory.h"

#include "gtest/gtest.h"

namespace pergola {
namespace {

TEST(AvailableMemoryTest, TheMachineSaysWhatItHas) {
  EXPECT_GT(AvailableMemory(), 1 << 20);
}

}  // namespace
}  // namespace pergola
