// What a bench run measured, as text and JSON. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pergola {

struct BenchResult {
  // What was asked.
  std::string address;
  std::string model;
  uint32_t streams = 0;
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
  uint32_t requests = 0;
  // What happened.
  uint32_t failed = 0;
  std::string first_error;  // empty if none failed
  double wall_s = 0;
  uint64_t tokens = 0;                 // new tokens of all requests, failed ones included
  std::vector<double> first_token_ms;  // per request: call to first token
  std::vector<double>
      inter_token_ms;  // per token after a request's first message: its share of the gap
};

// A message that carries k tokens after a gap of g ms gives k samples of g / k: what a reader sees
// on average.
void AddGap(double gap_ms, int tokens, std::vector<double>& samples);

// A table of a few lines. Sorts the samples.
std::string BenchText(BenchResult& result);
// One JSON object; times in ms, rates in tokens/s. Sorts the samples.
std::string BenchJson(BenchResult& result);

}  // namespace pergola
