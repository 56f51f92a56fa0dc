#include "client/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace pergola {

double Percentile(std::vector<double>& samples, double percent) {
  if (samples.empty()) return 0.0;
  std::sort(samples.begin(), samples.end());
  const double rank = std::ceil(percent / 100.0 * static_cast<double>(samples.size()));
  const auto index = static_cast<size_t>(std::max(rank, 1.0)) - 1;
  return samples[std::min(index, samples.size() - 1)];
}

}  // namespace pergola
