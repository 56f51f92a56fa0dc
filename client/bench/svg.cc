#include "client/bench/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_format.h"

namespace pergola {
namespace {

constexpr double kWidth = 800;
constexpr double kHeight = 480;
constexpr double kLeft = 80;
constexpr double kRight = 780;
constexpr double kTop = 50;
constexpr double kBottom = 420;
// Colours that people who see few of them tell apart: Okabe and Ito, "Color universal design",
// 2008.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000"};

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // XML has no other control characters.
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

// One axis: values to places on the page.
struct Axis {
  std::vector<double> marks;  // at least two, rising
  bool logarithmic = false;
  double from = 0;  // place of the first mark
  double to = 1;    // and of the last

  double At(double value) const {
    const auto place = [this](double v) { return logarithmic ? std::log(v) : v; };
    const double low = place(marks.front());
    const double high = place(marks.back());
    return from + (to - from) * (place(value) - low) / (high - low);
  }
};

bool Shown(const Plot& plot, const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second) &&
         (!plot.log_x || point.first > 0);
}

struct Range {
  double low = 0;
  double high = 0;
  bool any = false;
  void Add(double value) {
    low = any ? std::min(low, value) : value;
    high = any ? std::max(high, value) : value;
    any = true;
  }
};

void AddText(std::string* svg, double x, double y, const char* rest, const std::string& text) {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, rest,
                        Escaped(text));
}

void AddAxes(std::string* svg, const Plot& plot, const Axis& x, const Axis& y) {
  constexpr char kLine[] =
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n";
  for (const double mark : x.marks) {
    absl::StrAppendFormat(svg, kLine, x.At(mark), kTop, x.At(mark), kBottom);
    AddText(svg, x.At(mark), kBottom + 18, "text-anchor=\"middle\"", absl::StrFormat("%g", mark));
  }
  for (const double mark : y.marks) {
    absl::StrAppendFormat(svg, kLine, kLeft, y.At(mark), kRight, y.At(mark));
    AddText(svg, kLeft - 6, y.At(mark) + 4, "text-anchor=\"end\"", absl::StrFormat("%g", mark));
  }
  absl::StrAppendFormat(svg, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#333\"/>\n",
                        kLeft, kTop, kBottom, kRight);
  AddText(svg, (kLeft + kRight) / 2, kHeight - 18, "text-anchor=\"middle\"", plot.x_label);
  const double middle = (kTop + kBottom) / 2;
  AddText(
      svg, 20, middle,
      absl::StrFormat("text-anchor=\"middle\" transform=\"rotate(-90 20 %.1f)\"", middle).c_str(),
      plot.y_label);
}

void AddLines(std::string* svg, const Plot& plot, const Axis& x, const Axis& y) {
  double legend_y = kTop + 16;
  for (size_t i = 0; i < plot.lines.size(); ++i) {
    const char* colour = kColours[i % (sizeof(kColours) / sizeof(kColours[0]))];
    std::string places;
    std::string dots;
    for (const auto& point : plot.lines[i].points) {
      if (!Shown(plot, point)) continue;
      const double at_x = x.At(point.first);
      const double at_y = y.At(point.second);
      absl::StrAppendFormat(&places, "%.1f,%.1f ", at_x, at_y);
      if (!plot.dots) continue;
      absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", at_x,
                            at_y, colour);
    }
    if (places.empty()) continue;
    places.pop_back();
    absl::StrAppendFormat(
        svg, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n%s", places,
        colour, dots);
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"4\" fill=\"%s\"/>\n",
                          kLeft + 12, legend_y - 6, colour);
    AddText(svg, kLeft + 32, legend_y, "", plot.lines[i].name);
    legend_y += 18;
  }
}

}  // namespace

std::vector<double> LinearMarks(double low, double high, int count) {
  if (!(high > low)) high = low + (low == 0 ? 1 : std::fabs(low));
  const double rough = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double times : {5, 2, 1}) {
    if (times * power >= rough * (1 - 1e-9)) step = times * power;
  }
  std::vector<double> marks;
  const auto first = static_cast<int64_t>(std::floor(low / step + 1e-9));
  const auto last = static_cast<int64_t>(std::ceil(high / step - 1e-9));
  for (int64_t i = first; i <= last; ++i) marks.push_back(step * static_cast<double>(i));
  return marks;
}

std::vector<double> LogMarks(double low, double high, double base) {
  const auto power = [base](double value) { return std::log(value) / std::log(base); };
  auto first = static_cast<int>(std::floor(power(low) + 1e-9));
  auto last = static_cast<int>(std::ceil(power(high) - 1e-9));
  if (first == last) ++last;
  std::vector<double> marks;
  for (int i = first; i <= last; ++i) marks.push_back(std::pow(base, i));
  return marks;
}

std::string PlotSvg(const Plot& plot) {
  Range x_range;
  Range y_range;
  y_range.Add(0);  // bars of different heights, not of different zooms
  for (const PlotLine& line : plot.lines) {
    for (const auto& point : line.points) {
      if (!Shown(plot, point)) continue;
      x_range.Add(point.first);
      y_range.Add(point.second);
    }
  }
  std::string svg = absl::StrFormat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<title>%s</title>\n<rect width=\"%g\" height=\"%g\" fill=\"white\"/>\n",
      kWidth, kHeight, kWidth, kHeight, Escaped(plot.title), kWidth, kHeight);
  AddText(&svg, kWidth / 2, 28, "text-anchor=\"middle\" font-size=\"16\"", plot.title);
  if (!x_range.any) {
    AddText(&svg, kWidth / 2, kHeight / 2, "text-anchor=\"middle\"", "nothing was measured");
    return svg + "</svg>\n";
  }
  Axis x{plot.log_x ? LogMarks(x_range.low, x_range.high, plot.log_base)
                    : LinearMarks(x_range.low, x_range.high, 8),
         plot.log_x, kLeft, kRight};
  Axis y{LinearMarks(y_range.low, y_range.high, 6), false, kBottom, kTop};
  AddAxes(&svg, plot, x, y);
  AddLines(&svg, plot, x, y);
  return svg + "</svg>\n";
}

}  // namespace pergola
