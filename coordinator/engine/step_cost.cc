#include "coordinator/engine/step_cost.h"

#include <algorithm>

namespace pergola {
namespace {

constexpr double kFade = 63.0 / 64;
constexpr double kMostSurprise = 4;
// Plans that differ less in size (coefficient of variation below 10 %) do not tell fixed cost from
// cost per row; all of it is then taken as cost per row, which plans too few rows rather than too
// many.
constexpr double kLeastVariation = 0.01;  // squared

}  // namespace

void StepCost::Add(uint32_t rows, int64_t time_us) {
  if (rows == 0 || time_us <= 0) return;
  const double x = rows;
  double y = static_cast<double>(time_us);
  if (known()) y = std::min(y, kMostSurprise * TimeUs(x));
  if (plans_ < kLearningPlans) ++plans_;
  weight_ = weight_ * kFade + 1;
  rows_ = rows_ * kFade + x;
  time_ = time_ * kFade + y;
  rows_squared_ = rows_squared_ * kFade + x * x;
  rows_time_ = rows_time_ * kFade + x * y;

  const double mean_rows = rows_ / weight_;
  const double mean_time = time_ / weight_;
  const double variance = rows_squared_ / weight_ - mean_rows * mean_rows;
  per_row_us_ = mean_time / mean_rows;
  fixed_us_ = 0;
  if (variance < kLeastVariation * mean_rows * mean_rows) return;
  const double slope = std::max(0.0, (rows_time_ / weight_ - mean_rows * mean_time) / variance);
  if (slope * mean_rows > mean_time) return;  // the line would begin below zero
  per_row_us_ = slope;
  fixed_us_ = mean_time - slope * mean_rows;
}

uint32_t StepCost::RowsWithin(int64_t time_us) const {
  const double left = static_cast<double>(time_us) - fixed_us_;
  if (left < per_row_us_) return 0;
  const double rows = per_row_us_ > 0 ? left / per_row_us_ : UINT32_MAX;
  return static_cast<uint32_t>(std::min<double>(rows, UINT32_MAX));
}

}  // namespace pergola
