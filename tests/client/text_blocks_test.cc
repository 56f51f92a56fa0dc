#include "client/text_blocks.h"

#include <gtest/gtest.h>

namespace pergola {
namespace {

v1::GenerateResponse Message(uint32_t index, const std::string& text, bool last = false) {
  v1::GenerateResponse message;
  message.set_index(index);
  message.set_text(text);
  if (last) message.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
  return message;
}

TEST(TextBlocksTest, OneSequenceComesAtOnceAndAsItIs) {
  TextBlocks blocks(1);
  EXPECT_EQ(blocks.Take(Message(0, "a")), "a");
  EXPECT_EQ(blocks.Take(Message(0, "b", true)), "b");
  EXPECT_EQ(blocks.Rest(), "");
}

TEST(TextBlocksTest, ABlockWaitsForItsEndAndForThoseBeforeIt) {
  TextBlocks blocks(3);
  EXPECT_EQ(blocks.Take(Message(1, "second", true)), "");
  EXPECT_EQ(blocks.Take(Message(0, "fir")), "");
  EXPECT_EQ(blocks.Take(Message(2, "thi")), "");
  EXPECT_EQ(blocks.Take(Message(0, "st", true)), "--- 1\nfirst\n--- 2\nsecond\n");
  EXPECT_EQ(blocks.Take(Message(2, "rd\n", true)), "--- 3\nthird\n");
  EXPECT_EQ(blocks.Rest(), "");
}

TEST(TextBlocksTest, AnEmptyTextHasItsBlockToo) {
  TextBlocks blocks(2);
  EXPECT_EQ(blocks.Take(Message(0, "", true)), "--- 1\n");
}

TEST(TextBlocksTest, WhatAnEarlyEndLeavesIsShownUnderItsNumber) {
  TextBlocks blocks(3);
  blocks.Take(Message(1, "half"));
  blocks.Take(Message(2, "", true));
  EXPECT_EQ(blocks.Rest(), "--- 2\nhalf\n--- 3\n");
  EXPECT_EQ(blocks.Rest(), "");
}

TEST(TextBlocksTest, AnIndexBeyondTheSequencesIsLeftOut) {
  TextBlocks blocks(2);
  EXPECT_EQ(blocks.Take(Message(2, "x", true)), "");
  EXPECT_EQ(blocks.Rest(), "");
}

}  // namespace
}  // namespace pergola
