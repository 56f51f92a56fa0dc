#include "client/bench/result.h"

#include <algorithm>

namespace pergola {

void BenchCounts::Add(const BenchCounts& other) {
  sent += other.sent;
  completed += other.completed;
  failed += other.failed;
  cancelled += other.cancelled;
  good += other.good;
  tokens += other.tokens;
  messages += other.messages;
  for (const auto& [code, number] : other.errors) errors[code] += number;
  if (first_error.empty()) first_error = other.first_error;
  first_token_ms.Add(other.first_token_ms);
  request_ms.Add(other.request_ms);
  refusal_ms.Add(other.refusal_ms);
  gap_ms.Add(other.gap_ms);
}

void TokensOverTime::Add(double at_s, uint64_t tokens) {
  const auto tick = static_cast<size_t>(std::max(0.0, at_s) / kTickS);
  if (tick >= ticks.size()) ticks.resize(tick + 1);
  ticks[tick] += tokens;
}

std::vector<std::pair<double, double>> TokensOverTime::Rates(size_t points) const {
  std::vector<std::pair<double, double>> rates;
  if (ticks.empty() || points == 0) return rates;
  const size_t span = (ticks.size() + points - 1) / points;
  for (size_t begin = 0; begin < ticks.size(); begin += span) {
    const size_t end = std::min(begin + span, ticks.size());
    uint64_t tokens = 0;
    for (size_t i = begin; i < end; ++i) tokens += ticks[i];
    const double length_s = kTickS * static_cast<double>(end - begin);
    rates.emplace_back(kTickS * static_cast<double>(begin) + length_s / 2,
                       static_cast<double>(tokens) / length_s);
  }
  return rates;
}

BenchCounts BenchResult::All() const {
  BenchCounts all;
  for (const BenchCounts& counts : addresses) all.Add(counts);
  return all;
}

uint32_t LargestBatch(const SweepResult& result, uint32_t context) {
  uint32_t largest = 0;
  for (const SweepPoint& point : result.points) {
    if (point.context == context && point.fits) largest = std::max(largest, point.batch);
  }
  return largest;
}

}  // namespace pergola
