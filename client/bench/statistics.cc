#include "client/bench/statistics.h"

#include <algorithm>
#include <cmath>

namespace pergola {

void Samples::Add(double value, uint32_t weight) {
  if (weight == 0) return;
  if (kept_.size() >= kMaxKept) {
    left_out_ += weight;
    return;
  }
  const Sample sample{static_cast<float>(value), weight};
  sorted_ = sorted_ && (kept_.empty() || kept_.back().value <= sample.value);
  kept_.push_back(sample);
  count_ += weight;
}

void Samples::Add(const Samples& other) {
  for (const Sample& sample : other.kept_) Add(sample.value, sample.weight);
  left_out_ += other.left_out_;
}

void Samples::Sort() {
  if (sorted_) return;
  std::sort(kept_.begin(), kept_.end(),
            [](const Sample& a, const Sample& b) { return a.value < b.value; });
  sorted_ = true;
}

double Samples::Percentile(double percent) {
  if (kept_.empty()) return 0.0;
  Sort();
  // 99.9 percent of 1000 is 999, also after the rounding of 99.9 to a binary number.
  const double rank = std::ceil(percent * static_cast<double>(count_) / 100.0 - 1e-6);
  double below = 0;
  for (const Sample& sample : kept_) {
    below += sample.weight;
    if (below >= rank) return sample.value;
  }
  return kept_.back().value;
}

std::vector<std::pair<double, double>> Samples::Distribution(size_t points) {
  std::vector<std::pair<double, double>> pairs;
  if (kept_.empty() || points == 0) return pairs;
  Sort();
  const double total = static_cast<double>(count_);
  const double step = total / static_cast<double>(points);
  double below = 0;
  double due = step;
  for (size_t i = 0; i < kept_.size(); ++i) {
    below += kept_[i].weight;
    const bool last = i + 1 == kept_.size();
    if (below < due - 1e-6 && !last) continue;
    pairs.emplace_back(kept_[i].value, 100.0 * below / total);
    due = (std::floor(below / step + 1e-9) + 1) * step;
  }
  return pairs;
}

}  // namespace pergola
