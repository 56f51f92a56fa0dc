// Measured samples and their percentiles. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace pergola {

// Samples with weights: one of weight k counts as k equal ones. Keeps them all (8 bytes each), so
// that percentiles are samples and not estimates, up to a bound. One thread.
class Samples {
 public:
  // 256 MiB; what comes later is counted in left_out() and takes no part in the rest.
  static constexpr size_t kMaxKept = size_t{32} << 20;

  void Add(double value, uint32_t weight = 1);
  void Add(const Samples& other);

  bool empty() const { return kept_.empty(); }
  uint64_t count() const { return count_; }        // sum of the weights kept
  uint64_t left_out() const { return left_out_; }  // sum of the weights not kept

  // Nearest rank: the smallest sample that at least `percent` of a hundred of all samples do not
  // exceed; 0 if there are none. `percent` in (0, 100]. Sorts the samples if need be.
  double Percentile(double percent);
  double Median() { return Percentile(50); }

  // At most `points` pairs (value, percent of all samples that do not exceed it), rising; the last
  // one is the largest sample at 100.
  std::vector<std::pair<double, double>> Distribution(size_t points);

 private:
  struct Sample {
    float value;
    uint32_t weight;
  };
  void Sort();

  std::vector<Sample> kept_;
  bool sorted_ = true;
  uint64_t count_ = 0;
  uint64_t left_out_ = 0;
};

}  // namespace pergola
