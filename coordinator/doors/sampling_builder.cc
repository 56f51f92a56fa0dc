#include "coordinator/doors/sampling_builder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/limits.h"

namespace pergola {
namespace {

// An interval for a float parameter; NaN is in none.
struct Interval {
  float low;
  bool low_open;  // the limit itself is outside
  float high;

  bool Holds(float value) const { return (low_open ? value > low : value >= low) && value <= high; }
  std::string ToString() const { return absl::StrCat(low_open ? "(" : "[", low, ", ", high, "]"); }
};

constexpr Interval kTemperature = {0, false, kMaxTemperature};
constexpr Interval kPositiveShare = {0, true, 1};
constexpr Interval kShare = {0, false, 1};
constexpr Interval kRepetition = {0, true, kMaxPenalty};
constexpr Interval kAdditive = {-kMaxPenalty, false, kMaxPenalty};

class Resolver {
 public:
  Resolver(const v1::SamplingParameters& asked, const SamplingLimits& limits,
           Violations* violations)
      : asked_(asked), limits_(limits), violations_(*violations) {}

  void Temperature(const GenerationDefaults& defaults, bool samples, v1::Sampling* sampling) {
    const float temperature =
        Float("temperature", asked_.has_temperature(), asked_.temperature(),
              defaults.temperature.value_or(samples ? 1.0F : 0.0F), kTemperature);
    sampling->set_temperature(temperature > 0 ? temperature : 0.0F);  // -0 becomes 0
  }

  void Filters(const GenerationDefaults& defaults, v1::Sampling* sampling) {
    sampling->set_top_k(Count("top_k", asked_.has_top_k(), asked_.top_k(),
                              defaults.top_k.value_or(0), limits_.vocabulary_size,
                              "the vocabulary size"));
    sampling->set_top_p(Float("top_p", asked_.has_top_p(), asked_.top_p(),
                              defaults.top_p.value_or(1.0F), kPositiveShare));
    sampling->set_min_p(
        Float("min_p", asked_.has_min_p(), asked_.min_p(), defaults.min_p.value_or(0.0F), kShare));
    sampling->set_typical_p(Float("typical_p", asked_.has_typical_p(), asked_.typical_p(),
                                  defaults.typical_p.value_or(1.0F), kPositiveShare));
  }

  void Penalties(const GenerationDefaults& stated, v1::Sampling* sampling) {
    sampling->set_repetition_penalty(Float("repetition_penalty", asked_.has_repetition_penalty(),
                                           asked_.repetition_penalty(),
                                           stated.repetition_penalty.value_or(1.0F), kRepetition));
    sampling->set_presence_penalty(Float("presence_penalty", asked_.has_presence_penalty(),
                                         asked_.presence_penalty(), 0, kAdditive));
    sampling->set_frequency_penalty(Float("frequency_penalty", asked_.has_frequency_penalty(),
                                          asked_.frequency_penalty(), 0, kAdditive));
    sampling->set_no_repeat_ngram_size(Count(
        "no_repeat_ngram_size", asked_.has_no_repeat_ngram_size(), asked_.no_repeat_ngram_size(),
        stated.no_repeat_ngram_size.value_or(0), limits_.context_length, "the context length"));
  }

  void LogitBias(v1::Sampling* sampling) {
    const auto& biases = asked_.logit_bias();
    if (biases.size() > kMaxLogitBiases) {
      violations_.Add("sampling.logit_bias",
                      absl::StrCat(biases.size(), " ids exceed the limit of ", kMaxLogitBiases));
      return;
    }
    std::vector<std::pair<int32_t, float>> sorted(biases.begin(), biases.end());
    std::sort(sorted.begin(), sorted.end());
    for (const auto& [id, bias] : sorted) {
      const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
      if (id < 0 || static_cast<uint64_t>(id) >= limits_.vocabulary_size) {
        violations_.Add(field, absl::StrCat("the id is not in 0 to the vocabulary size of ",
                                            limits_.vocabulary_size, " (exclusive)"));
      }
      Check(field, bias, kAdditive);
      v1::LogitBias* entry = sampling->add_logit_bias();
      entry->set_id(id);
      entry->set_bias(bias);
    }
  }

  void Logprobs(v1::Sampling* sampling) {
    if (!asked_.has_logprobs()) return;
    if (asked_.logprobs() > kMaxLogprobs) {
      violations_.Add("sampling.logprobs",
                      absl::StrCat(asked_.logprobs(), " exceeds the limit of ", kMaxLogprobs));
    }
    sampling->set_logprobs(asked_.logprobs());
  }

 private:
  void Check(std::string_view field, float value, const Interval& interval) {
    if (interval.Holds(value)) return;
    violations_.Add(field, absl::StrCat(value, " is not in ", interval.ToString()));
  }

  // What was asked, held to its interval; else the default, which the model's files are trusted
  // with no more than a client, but cannot be refused for: outside of the interval it is ignored.
  float Float(std::string_view name, bool set, float value, float fallback,
              const Interval& interval) {
    if (!set) return interval.Holds(fallback) ? fallback : Off(interval);
    Check(absl::StrCat("sampling.", std::string(name)), value, interval);
    return value;
  }

  static float Off(const Interval& interval) { return interval.low_open ? 1.0F : 0.0F; }

  uint32_t Count(std::string_view name, bool set, uint64_t value, uint64_t fallback, uint64_t limit,
                 std::string_view limit_name) {
    if (!set) return static_cast<uint32_t>(std::min(fallback, limit));
    if (value > limit) {
      violations_.Add(absl::StrCat("sampling.", std::string(name)),
                      absl::StrCat(value, " exceeds ", std::string(limit_name), " of ", limit));
    }
    return static_cast<uint32_t>(value);
  }

  const v1::SamplingParameters& asked_;
  const SamplingLimits& limits_;
  Violations& violations_;
};

}  // namespace

v1::Sampling ResolveSampling(const v1::SamplingParameters& asked, const GenerationDefaults& stated,
                             const SamplingLimits& limits, Violations* violations) {
  const bool samples = stated.do_sample.value_or(false);
  const GenerationDefaults none;
  const GenerationDefaults& defaults = samples ? stated : none;
  v1::Sampling sampling;
  Resolver resolver(asked, limits, violations);
  resolver.Temperature(defaults, samples, &sampling);
  resolver.Filters(defaults, &sampling);
  resolver.Penalties(stated, &sampling);
  resolver.LogitBias(&sampling);
  resolver.Logprobs(&sampling);
  return sampling;
}

SequenceCount ResolveCount(const v1::SamplingParameters& asked, bool greedy,
                           Violations* violations) {
  const uint32_t n = asked.has_n() ? asked.n() : 1;
  const uint32_t best_of = asked.has_best_of() ? asked.best_of() : n;
  if (n < 1 || n > kMaxSequences) {
    violations->Add("sampling.n", absl::StrCat(n, " is not in 1 to ", kMaxSequences));
  } else if (best_of < n || best_of > kMaxSequences) {
    violations->Add("sampling.best_of",
                    absl::StrCat(best_of, " is not in sampling.n, ", n, ", to ", kMaxSequences));
  } else if (best_of > 1 && greedy) {
    violations->Add(asked.has_best_of() ? "sampling.best_of" : "sampling.n",
                    absl::StrCat(best_of,
                                 " sequences contradict greedy decoding, by which all are equal; "
                                 "set sampling.temperature above 0"));
  } else {
    return {n, best_of};
  }
  return {};
}

}  // namespace pergola
