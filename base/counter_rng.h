// The counter-based random number generator behind every draw (DESIGN I4): a value depends on its
// key and counter alone, so any rank may compute it, in any order, again and again. Philox4x32-10
// of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace pergola {

// The ten-round Philox4x32 block function.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in the open interval (0, 1) for candidate `token_id` of the token at `position` of
// sequence `index` of a request with `seed`. Never 0 or 1, so that -log(-log(u)) is finite.
double UniformDraw(uint64_t seed, uint32_t index, uint32_t position, uint32_t token_id);

}  // namespace pergola
