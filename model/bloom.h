// The BLOOM family (Le Scao et al., arXiv:2211.05100), BLOOMZ included.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kBloomFamily;

// The slopes of ALiBi for `heads` heads (Press et al., arXiv:2108.12409, section 3, and its
// reference code for counts that are no power of two): with n the largest power of two in `heads`,
// 2^(-8 i / n) for i = 1 to n, then every other one of the series of 2n.
std::vector<float> AlibiSlopes(int64_t heads);

}  // namespace pergola
