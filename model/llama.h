// The Llama family: Llama 1 to 3, SmolLM2, and Mistral, which is the same decoder with other
// defaults and a window.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kLlamaFamily;
extern const Family kMistralFamily;

}  // namespace pergola
