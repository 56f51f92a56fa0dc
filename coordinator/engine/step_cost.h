// What a plan costs: its time as a line over its rows, learnt from the answers of the group. Pure:
// the same answers give the same line.
//
//   time = fixed + per_row * rows
//
// by least squares with weights that fade by 1/64 per plan, so that growing contexts and a changed
// machine are followed. One late plan counts as at most four times its expectation.
#pragma once

#include <cstdint>

namespace pergola {

class StepCost {
 public:
  // A plan of `rows` rows kept the stages busy for `time_us` together. Plans without either are
  // passed over.
  void Add(uint32_t rows, int64_t time_us);

  // Enough plans were seen to rely on it.
  bool known() const { return plans_ >= kLearningPlans; }
  // 0 before the first plan.
  double fixed_us() const { return fixed_us_; }
  double per_row_us() const { return per_row_us_; }
  double TimeUs(double rows) const { return fixed_us_ + per_row_us_ * rows; }
  // The most rows a plan may have to end within `time_us`; 0 if not even one does.
  uint32_t RowsWithin(int64_t time_us) const;

 private:
  static constexpr uint32_t kLearningPlans = 16;

  uint32_t plans_ = 0;
  // Faded sums over the plans.
  double weight_ = 0;
  double rows_ = 0;
  double time_ = 0;
  double rows_squared_ = 0;
  double rows_time_ = 0;
  double fixed_us_ = 0;
  double per_row_us_ = 0;
};

}  // namespace pergola
