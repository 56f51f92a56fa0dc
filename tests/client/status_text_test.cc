#include "client/status_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A status whose every text that a peer chose is `text`.
v1::StatusResponse SaidByAPeer(const std::string& text) {
  v1::StatusResponse status;
  status.set_model(text);
  v1::GroupStatus* group = status.add_groups();
  group->set_name(text);
  group->set_state(v1::GROUP_STATE_LOADING);
  group->mutable_progress()->set_phase(text);
  group->mutable_progress()->set_bytes_total(1);
  group->mutable_layout()->add_stages()->set_host(text);
  group->set_last_fault(text);
  return status;
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(StatusTextTest, EscapesEverythingAPeerSaysThatATerminalWouldObey) {
  // An escape sequence, a line feed, DEL, and CSI as one character of Latin-1 in UTF-8.
  const std::string text =
      StatusText(SaidByAPeer("a\x1b[2J\nb\x7f\xc2\x9b"
                             "31m"));
  for (const char c : text) {
    EXPECT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7F)) << static_cast<int>(c);
  }
  EXPECT_EQ(CountOf(text, "a\\x1b[2J\\x0ab\\x7f\\xc2\\x9b31m"), 5U) << text;
  // model, two lines of the coordinator, group, its blocks, its stage, its fault.
  const std::string plain = StatusText(SaidByAPeer("a"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'),
            std::count(plain.begin(), plain.end(), '\n'));
}

TEST(StatusTextTest, ABackslashOfAPeerIsNotTakenForAnEscape) {
  EXPECT_THAT(StatusText(SaidByAPeer("a\\x1b")), HasSubstr("group a\\\\x1b: "));
}

TEST(StatusTextTest, CutsNamesAndFaultsThatAreTooLong) {
  const std::string text = StatusText(SaidByAPeer(std::string(1 << 20, 'x')));
  EXPECT_LT(text.size(), 10'000U);
  EXPECT_THAT(text, HasSubstr("group " + std::string(256, 'x') + "...: "));
  EXPECT_THAT(StatusText(SaidByAPeer(std::string(256, 'x'))), Not(HasSubstr("...")));
}

}  // namespace
}  // namespace pergola
