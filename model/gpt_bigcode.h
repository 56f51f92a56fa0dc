// The GPTBigCode family: SantaCoder and StarCoder (Li et al., arXiv:2305.06161), with one KV head
// or as many as heads.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kGptBigCodeFamily;

}  // namespace pergola
