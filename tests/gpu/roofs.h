// What the machine can do at most, measured in the run whose results are judged by it.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/context.h"

namespace pergola {

struct Roofs {
  double copy_bytes = 0;  // per second, read and written
  double read_bytes = 0;  // per second
  double bf16_flops = 0;  // per second, cuBLASLt at 8192^3 of random numbers
};

// `tiny`: sizes for the emulator, whose times mean nothing.
Roofs MeasureRoofs(bool tiny);

// All of them, and cuBLASLt's rates of other types, as results of part "machine".
void ReportRoofs(bool tiny);

}  // namespace pergola
