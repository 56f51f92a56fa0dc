// What the executor's tests share: small options, ways to run a sequence, and the bound on logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/executor_group.h"
#include "tests/worker/memory_checkpoint.h"
#include "tests/worker/plan_builder.h"
#include "tests/worker/reference_decoder.h"

namespace pergola {

using Row = std::vector<float>;

inline ExecutorOptions TinyOptions() {
  ExecutorOptions options;
  options.slot_count = 4;
  options.block_tokens = 16;
  options.step_tokens = 128;
  return options;
}

inline std::vector<int32_t> RandomIds(int64_t count, uint64_t seed = 7, int64_t vocabulary = 97) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random() % vocabulary));
  return ids;
}

inline Row Copy(absl::Span<const float> values) {
  return Row(values.begin(), values.end());
}

// Logits of all positions of `ids`, computed `chunk` tokens at a time.
inline std::vector<Row> LogitsInChunks(ExecutorGroup& group, const std::vector<int32_t>& ids,
                                       int64_t chunk) {
  group.KeepLogits(true);
  std::vector<Row> logits;
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t end = std::min(total, first + chunk);
    BuiltPlan built(first + 1);
    if (first == 0) built.Start(1);
    const auto blocks = first == 0 ? Blocks(2, 6) : std::vector<uint32_t>();
    BuiltPlan::WantAll(built.Add(1, {ids.begin() + first, ids.begin() + end}, first, blocks));
    group.Execute(built.plan, built.ids);
    for (int64_t i = 0; i < end - first; ++i) logits.push_back(Copy(group.last().Logits(i)));
  }
  group.KeepLogits(false);
  return logits;
}

// Grows `prompt` by `count` tokens in `slot` alone.
inline std::vector<int32_t> Generate(ExecutorGroup& group, const std::vector<int32_t>& prompt,
                                     int count, float temperature = 0, uint64_t seed = 0) {
  std::vector<int32_t> known = prompt;
  int64_t computed = 0;
  for (int i = 0; i < count; ++i) {
    BuiltPlan built(i + 1);
    if (i == 0) built.Start(2, temperature, seed);
    built.Add(2, {known.begin() + computed, known.end()}, computed,
              i == 0 ? Blocks(0, 8) : std::vector<uint32_t>());
    computed = static_cast<int64_t>(known.size());
    const auto results = group.Execute(built.plan, built.ids);
    EXPECT_EQ(results[0].ids_size(), 1);
    known.push_back(results[0].ids_size() == 1 ? results[0].ids(0) : 0);
  }
  return {known.begin() + prompt.size(), known.end()};
}

// What f32 may cost: 32 times what it costs the naive decoder, whose sums are no longer than the
// executor's, but at least 4e-5 of the logits' deviation (the bound of the goldens).
struct Expected {
  std::vector<std::vector<double>> logits;
  double bound = 0;

  Expected(const MemoryCheckpoint& checkpoint, const std::vector<int32_t>& ids) {
    logits = ReferenceDecoder<double>(checkpoint).Logits(ids);
    const auto f32 = ReferenceDecoder<float>(checkpoint).Logits(ids);
    double worst = 0;
    double sum = 0;
    double squares = 0;
    for (size_t row = 0; row < logits.size(); ++row) {
      for (size_t id = 0; id < logits[row].size(); ++id) {
        worst = std::max(worst, std::abs(logits[row][id] - static_cast<double>(f32[row][id])));
        sum += logits[row][id];
        squares += logits[row][id] * logits[row][id];
      }
    }
    const auto count = static_cast<double>(logits.size() * logits[0].size());
    bound = std::max(32 * worst, 4e-5 * std::sqrt(squares / count - sum / count * sum / count));
  }

  void Check(const std::vector<Row>& actual, double times = 1) const {
    ASSERT_EQ(actual.size(), logits.size());
    for (size_t row = 0; row < logits.size(); ++row) {
      ASSERT_EQ(actual[row].size(), logits[row].size());
      for (size_t id = 0; id < logits[row].size(); ++id) {
        // False for NaN.
        ASSERT_LE(std::abs(actual[row][id] - logits[row][id]), times * bound)
            << "row " << row << " id " << id;
      }
    }
  }
};

// A quantised matrix needs its inputs in multiples of 32; heads of 8 still cut its blocks apart.
inline void MakeQuantisable(ModelSpec* spec) {
  spec->heads = 12;
  spec->kv_heads = 4;
  spec->ffn = 160;
}

}  // namespace pergola
