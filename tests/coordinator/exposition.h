// A strict reader of Prometheus' text exposition format 0.0.4, written from its description
// (prometheus.io/docs/instrumenting/exposition_formats) to judge what we print.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

namespace pergola {

struct Exposition {
  std::map<std::string, std::string> types;  // by family
  std::map<std::string, double> samples;     // by 'name{label="value",...}' as printed
  std::string error;                         // the first line that breaks a rule, and why
};

inline std::string FamilyOf(const std::string& name, const Exposition& page) {
  for (const char* suffix : {"_bucket", "_sum", "_count"}) {
    const size_t size = std::string(suffix).size();
    if (name.size() <= size || name.compare(name.size() - size, size, suffix) != 0) continue;
    const auto family = page.types.find(name.substr(0, name.size() - size));
    if (family != page.types.end() && family->second == "histogram") return family->first;
  }
  return name;
}

// Line by line: each family has HELP, then TYPE, then its samples together; no sample twice;
// counters end in _total and are not negative; values are numbers; labels are quoted and escaped.
inline Exposition ReadExposition(const std::string& text) {
  static const std::regex kHelp("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ([^\\n]+)");
  static const std::regex kType("# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)");
  static const std::regex kSample(
      "([a-zA-Z_:][a-zA-Z0-9_:]*)(\\{[a-zA-Z_][a-zA-Z0-9_]*=\"([^\"\\\\]|\\\\[\\\\\"n])*\""
      "(,[a-zA-Z_][a-zA-Z0-9_]*=\"([^\"\\\\]|\\\\[\\\\\"n])*\")*\\})? ([^ ]+)");
  Exposition page;
  std::string help;     // the family whose HELP came last
  std::string current;  // the family whose TYPE came last
  const auto fail = [&page](const std::string& line, const char* why) {
    if (page.error.empty()) page.error = line + ": " + why;
  };
  if (text.empty() || text.back() != '\n') fail(text.substr(0, 20), "no end of line at the end");
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::smatch match;
    if (std::regex_match(line, match, kHelp)) {
      help = match[1];
    } else if (std::regex_match(line, match, kType)) {
      current = match[1];
      if (current != help) fail(line, "no HELP before");
      if (!page.types.emplace(current, match[2]).second) fail(line, "a family twice");
    } else if (std::regex_match(line, match, kSample)) {
      const std::string name = match[1];
      if (FamilyOf(name, page) != current) fail(line, "not of the family before it");
      const std::string number = match[6];
      char* end = nullptr;
      const double value =
          number == "+Inf" ? std::numeric_limits<double>::infinity() : strtod(number.c_str(), &end);
      if (end != nullptr && *end != '\0') fail(line, "no number");
      const bool counter = page.types[current] == "counter";
      if (counter && (name.size() < 6 || name.compare(name.size() - 6, 6, "_total") != 0)) {
        fail(line, "a counter that does not end in _total");
      }
      if (page.types[current] != "gauge" && value < 0) fail(line, "a negative count");
      if (!page.samples.emplace(name + match[2].str(), value).second) fail(line, "a sample twice");
    } else {
      fail(line, "neither HELP, TYPE nor a sample");
    }
  }
  return page;
}

// Empty if the histogram `family` with `labels` ("" or 'group="g"') has buckets with ascending
// bounds and counts that never fall, the last +Inf and equal to _count; else what is wrong.
inline std::string CheckHistogram(const Exposition& page, const std::string& family,
                                  const std::string& labels) {
  const std::string braces = labels.empty() ? "" : "{" + labels + "}";
  const auto count = page.samples.find(family + "_count" + braces);
  if (count == page.samples.end()) return "no _count";
  if (page.samples.count(family + "_sum" + braces) == 0) return "no _sum";
  std::map<double, double> buckets;
  const std::string begin = family + "_bucket{" + labels + (labels.empty() ? "" : ",") + "le=\"";
  for (const auto& [name, value] : page.samples) {
    if (name.rfind(begin, 0) != 0) continue;
    const std::string bound = name.substr(begin.size(), name.size() - begin.size() - 2);
    buckets[bound == "+Inf" ? std::numeric_limits<double>::infinity() : atof(bound.c_str())] =
        value;
  }
  if (buckets.size() < 2 || !std::isinf(buckets.rbegin()->first)) return "no +Inf bucket";
  double before = 0;
  for (const auto& [bound, value] : buckets) {
    if (value < before) return "a bucket below the one before it";
    before = value;
  }
  return before == count->second ? "" : "+Inf is not _count";
}

}  // namespace pergola
