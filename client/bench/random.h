// Random numbers of a benchmark: a pure function of (seed, purpose, number), so that a run can be
// repeated exactly, on any machine and in any order. Not for the draws of a model.
#pragma once

#include <cmath>
#include <cstdint>

namespace pergola {

// What numbers are for: those of different purposes do not depend on each other.
enum class RandomPurpose : uint64_t { kArrivals = 1, kThinking, kLengths, kPrompt, kSampling };

// splitmix64 of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
// 2014.
class BenchRandom {
 public:
  BenchRandom(uint64_t seed, RandomPurpose purpose, uint64_t number)
      : state_(Mix(Mix(seed + kStep * static_cast<uint64_t>(purpose)) + number)) {}

  uint64_t Next() { return Mix(state_ += kStep); }

  // Uniform in the open interval (0, 1), so that its logarithm is finite.
  double Unit() { return (static_cast<double>(Next() >> 12) + 0.5) * 0x1p-52; }
  double Between(double low, double high) { return low + (high - low) * Unit(); }
  // Of a Poisson process, the time to its next event.
  double Exponential(double mean) { return -mean * std::log(Unit()); }
  // Of mean 0 and variance 1: Box and Muller, Annals of Mathematical Statistics 29 (1958).
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log(Unit()));
    return radius * std::cos(2.0 * M_PI * Unit());
  }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15ULL;
  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

}  // namespace pergola
