// The pieces of the CPU version of sampling and the scratch they share. Private to sampling.
#pragma once

#include <cstdint>

#include "kernels/cpu/sample_cpu.h"
#include "kernels/sample.h"

namespace pergola {

// An id that the draw may still choose. Lists are ordered by (key, id), smallest first.
struct Candidate {
  double weight;
  double key;
  int32_t id;
  float logit;
};

// One row's scratch, cut from SampleWorkspaceBytes bytes.
struct SampleSpace {
  float* edited = nullptr;          // [vocabulary] the processed logits
  uint32_t* counts = nullptr;       // [vocabulary] occurrences in the history, then a bitmap
  int32_t* ids = nullptr;           // [vocabulary + kCollectPadding]
  Candidate* candidates = nullptr;  // [vocabulary]
  int32_t* borders = nullptr;       // [history] of the n-gram search

  static int64_t Bytes(int64_t vocabulary, int64_t history);
  static SampleSpace Cut(uint8_t* memory, int64_t vocabulary);
};

// Steps 1 to 6 of sample.h into space.edited; row.edits() is true.
void EditLogits(const SampleRow& row, int64_t vocabulary, const SampleSpace& space);

// The first `top_k` finite ids of the list sorted by (logit descending, id ascending) into `ids`,
// unsorted; their number.
int64_t CollectTopK(CpuTarget target, const float* logits, int64_t vocabulary, int64_t top_k,
                    int32_t* ids);

// Sum of SoftmaxWeight over all ids, and of weight * x if `weighted` is given, in the eight lanes.
double TotalWeight(CpuTarget target, const float* logits, int64_t vocabulary, float largest,
                   double inverse_temperature, double* weighted);

// One draw with temperature.
struct SampleDraw {
  const SampleRow* row = nullptr;
  CpuTarget target = CpuTarget::kPortable;
  const float* logits = nullptr;  // processed
  int64_t vocabulary = 0;
  float largest = 0;  // of them
  double inverse = 1;
  SampleSpace space;
  int64_t count = 0;  // of space.candidates

  // Whether any of steps 7 to 10 limits the choice.
  bool filters() const {
    return (row->top_k > 0 && row->top_k < vocabulary) || row->top_p < 1 || row->min_p > 0 ||
           (row->typical_p > 0 && row->typical_p < 1);
  }
};

// Steps 7 to 10: the survivors into the candidates, in no order; filters() is true.
void Filter(SampleDraw* draw);

}  // namespace pergola
