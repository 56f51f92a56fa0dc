// The Qwen family: Qwen2 (biases of q, k and v; Yang et al., arXiv:2407.10671) and Qwen3 (norms of
// q and k instead; arXiv:2505.09388), dense models only.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kQwen2Family;
extern const Family kQwen3Family;

}  // namespace pergola
