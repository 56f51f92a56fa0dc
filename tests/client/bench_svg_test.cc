// Plots are well-formed and say what they show. (tests/e2e also reads them with an XML parser.)
#include "client/bench/svg.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// What is wrong with the nesting of tags, or nothing. Knows what our writer makes: no comments, no
// CDATA, no '<' or '>' within attributes.
std::string Nesting(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const size_t end = xml.find('>', at);
    if (end == std::string::npos) return "a tag that does not end";
    const std::string tag = xml.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string::npos) return "a tag in a tag: " + tag;
    if (tag[0] == '?' || tag.back() == '/') continue;
    if (tag[0] != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    } else if (open.empty() || open.back() != tag.substr(1)) {
      return "closes what is not open: " + tag;
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

Plot Example() {
  Plot plot;
  plot.title = "<tokens> & \"time\"";
  plot.x_label = "batch";
  plot.y_label = "ms/token";
  plot.lines = {{"context 128", {{1, 10}, {512, 20}}}};
  return plot;
}

TEST(NestingTest, FindsEveryKindOfMistake) {
  EXPECT_EQ(Nesting("<?xml?><a b=\"1\"><c/></a>"), "");
  EXPECT_THAT(Nesting("<a><c></a>"), HasSubstr("closes"));
  EXPECT_THAT(Nesting("<a>"), HasSubstr("not closed"));
  EXPECT_THAT(Nesting("<a> < </a>"), HasSubstr("a tag in a tag"));
}

TEST(PlotSvgTest, IsWellFormedAndNamesTitleAndAxes) {
  const std::string svg = PlotSvg(Example());
  EXPECT_EQ(Nesting(svg), "");
  EXPECT_THAT(svg, HasSubstr("<title>&lt;tokens&gt; &amp; &quot;time&quot;</title>"));
  EXPECT_THAT(svg, HasSubstr(">batch</text>"));
  EXPECT_THAT(svg, HasSubstr(">ms/token</text>"));
  EXPECT_THAT(svg, HasSubstr(">context 128</text>"));
}

TEST(PlotSvgTest, PutsPointsWhereTheAxesSay) {
  Plot plot = Example();
  // x from 1 to 512 in powers of two: from the left edge to the right one; y from 0 to 20.
  plot.log_x = true;
  plot.log_base = 2;
  EXPECT_THAT(PlotSvg(plot), HasSubstr("points=\"80.0,235.0 780.0,50.0\""));
  plot.dots = true;
  EXPECT_THAT(PlotSvg(plot), HasSubstr("<circle cx=\"780.0\" cy=\"50.0\""));
  EXPECT_EQ(Nesting(PlotSvg(plot)), "");
}

TEST(PlotSvgTest, LeavesOutWhatHasNoPlace) {
  Plot plot = Example();
  plot.log_x = true;
  plot.lines[0].points = {{0, 1},
                          {-1, 1},
                          {1, std::numeric_limits<double>::quiet_NaN()},
                          {std::numeric_limits<double>::infinity(), 1}};
  EXPECT_THAT(PlotSvg(plot), HasSubstr("nothing was measured"));
  EXPECT_EQ(Nesting(PlotSvg(plot)), "");
  plot.lines[0].points.emplace_back(10, 5);
  const std::string svg = PlotSvg(plot);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, HasSubstr("points=\"80.0,"));
}

TEST(MarksTest, LinearOnesAreRoundAndCoverTheRange) {
  EXPECT_THAT(LinearMarks(0, 20, 4), ElementsAre(0, 5, 10, 15, 20));
  EXPECT_THAT(LinearMarks(0, 1.7, 4), ElementsAre(0, 0.5, 1, 1.5, 2));
  EXPECT_GE(LinearMarks(0, 0, 4).size(), 2U);
  EXPECT_GE(LinearMarks(3, 3, 4).size(), 2U);
}

TEST(MarksTest, LogarithmicOnesArePowers) {
  EXPECT_THAT(LogMarks(1, 8, 2), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(LogMarks(3, 3, 10), ElementsAre(1, 10));
  EXPECT_THAT(LogMarks(10, 10, 10), ElementsAre(10, 100));
  EXPECT_THAT(LogMarks(0.5, 20, 10), ElementsAre(0.1, 1, 10, 100));
}

}  // namespace
}  // namespace pergola
