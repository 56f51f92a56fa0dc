// The text models of Gemma 3 (Gemma Team, arXiv:2503.19786).
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kGemma3Family;

}  // namespace pergola
