// Rows for tests of sampling that nobody chose by hand.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/sample.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {

// A row of everything, random but repeatable.
struct RandomSampleRow {
  RandomSampleRow(int64_t vocabulary, uint32_t seed) : random(seed) {
    const int shape = Pick(5);
    logits = RandomValues(vocabulary, seed, shape == 0 ? 0.01F : shape == 1 ? 8.0F : 2.0F);
    if (shape == 2) std::fill(logits.begin(), logits.end(), 1.25F);
    if (shape == 3) {
      for (float& x : logits) x = std::round(x);
    }
    if (shape == 4) {
      for (float& x : logits) x = Pick(3) == 0 ? -std::numeric_limits<float>::infinity() : x;
    }
    row.logits = logits.data();
    const float temperatures[] = {0, 1e-6F, 0.7F, 1, 40};
    row.temperature = temperatures[Pick(5)];
    row.seed = seed;
    row.index = 2;
    row.top_k = Pick(2) == 0 ? 0 : 1 + Pick(static_cast<int>(std::min<int64_t>(vocabulary, 700)));
    row.top_p = Pick(2) == 0 ? 1 : Unit();
    row.min_p = Pick(3) == 0 ? Unit() * Unit() : 0;
    row.typical_p = Pick(2) == 0 ? 1 : Unit();
    if (Pick(2) == 0) AddHistory(vocabulary);
    if (Pick(3) == 0) {
      for (int i = 0; i < 5; ++i) ids.push_back(Id(vocabulary));
      std::sort(ids.begin(), ids.end());
      ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
      for (size_t i = 0; i < ids.size(); ++i) biases.push_back(8 * Unit() - 4);
      row.bias_ids = ids.data();
      row.biases = biases.data();
      row.bias_count = static_cast<int64_t>(ids.size());
      row.suppressed = ids.data();
      row.suppressed_count = static_cast<int64_t>(ids.size()) / 2;
      row.min_new_tokens = Pick(2) * 1000;
    }
    if (Pick(4) == 0) {
      mask.resize(static_cast<size_t>(vocabulary / 8 + 1));
      for (uint8_t& byte : mask) byte = static_cast<uint8_t>(random());
      row.mask = mask.data();
    }
  }
  RandomSampleRow(const RandomSampleRow&) = delete;
  RandomSampleRow& operator=(const RandomSampleRow&) = delete;

  int Pick(int count) { return static_cast<int>(random() % static_cast<uint32_t>(count)); }
  float Unit() { return static_cast<float>(1 + Pick(999)) / 1000; }
  int32_t Id(int64_t vocabulary) {
    return Pick(static_cast<int>(std::min<int64_t>(vocabulary, 40)));
  }
  void AddHistory(int64_t vocabulary) {
    for (int i = Pick(80); i > 0; --i) history.push_back(Id(vocabulary));
    row.history = history.data();
    row.history_count = static_cast<int64_t>(history.size());
    row.position = static_cast<uint32_t>(history.size());
    row.prompt_tokens = row.history_count / 3;
    row.repetition_penalty = Pick(2) == 0 ? 1 : 2 * Unit();
    row.presence_penalty = Pick(2) == 0 ? 0 : 2 * Unit() - 1;
    row.frequency_penalty = Pick(2) == 0 ? 0 : 2 * Unit() - 1;
    row.no_repeat_ngram_size = static_cast<uint32_t>(Pick(5));
  }

  std::mt19937 random;
  std::vector<float> logits, biases;
  std::vector<int32_t> history, ids;
  std::vector<uint8_t> mask;
  SampleRow row;
};

}  // namespace pergola
