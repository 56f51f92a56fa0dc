// Line plots as SVG text. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pergola {

struct PlotLine {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y; those that are not finite are left out
};

struct Plot {
  std::string title;
  std::string x_label;  // with the unit
  std::string y_label;
  bool log_x = false;    // points with x <= 0 are left out then
  double log_base = 10;  // of the marks of a logarithmic x axis: 2 or 10
  bool dots = false;     // a dot on each point
  std::vector<PlotLine> lines;
};

// A whole SVG file. A plot without points says so in its middle.
std::string PlotSvg(const Plot& plot);

// Round numbers of an axis that starts at or below `low` and ends at or above `high`: 1, 2 or 5
// times a power of ten apart, about `count` of them.
std::vector<double> LinearMarks(double low, double high, int count);

// Powers of `base` from the last at or below `low` to the first at or above `high`; both > 0.
std::vector<double> LogMarks(double low, double high, double base);

}  // namespace pergola
