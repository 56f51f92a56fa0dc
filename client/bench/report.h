// What a benchmark has measured, as text, JSON and plots. docs/bench.md says what each figure
// means. Pure.
#pragma once

#include <string>
#include <vector>

#include "client/bench/result.h"
#include "client/bench/svg.h"

namespace pergola {

// A table for people.
std::string BenchText(const BenchResult& result);
std::string SweepText(const SweepResult& result);

// One JSON object with stable names; times in ms, rates in tokens/s.
std::string BenchJson(const BenchResult& result);
std::string SweepJson(const SweepResult& result);

struct NamedPlot {
  std::string name;  // "latency"
  Plot plot;
};
std::vector<NamedPlot> BenchPlots(const BenchResult& result);
std::vector<NamedPlot> SweepPlots(const SweepResult& result);

}  // namespace pergola
