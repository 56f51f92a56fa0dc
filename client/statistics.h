// Percentiles and the like over measured samples.
#pragma once

#include <vector>

namespace pergola {

// The smallest sample that at least `percent` of a hundred of all samples do not exceed (nearest
// rank); 0 if there are none. `percent` in (0, 100]. Sorts the samples.
double Percentile(std::vector<double>& samples, double percent);

}  // namespace pergola
