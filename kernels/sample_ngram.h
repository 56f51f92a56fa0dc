// Step 4 of sample.h. Private to sampling.
#pragma once

#include <cstdint>

#include "kernels/sample.h"

namespace pergola {

// Calls forbid(id) for what followed the last n - 1 ids wherever else they stand in the history; an
// id may come several times, and may lie outside the vocabulary. The search of Knuth, Morris and
// Pratt ("Fast pattern matching in strings", 1977), so that no history makes it slow. `borders`:
// scratch of history_count values; borders[i] is the length of the longest proper prefix of
// pattern[0..i] that is its suffix too.
template <typename Forbid>
void ForEachRepeatedNgramEnd(const SampleRow& row, int32_t* borders, const Forbid& forbid) {
  const int64_t length = static_cast<int64_t>(row.no_repeat_ngram_size) - 1;
  if (row.history_count <= length) return;
  const int32_t* pattern = row.history + row.history_count - length;
  int64_t matched = 0;
  for (int64_t i = 0; i < length; ++i) {
    while (matched > 0 && pattern[i] != pattern[matched]) matched = borders[matched - 1];
    if (i > 0 && pattern[i] == pattern[matched]) ++matched;
    borders[i] = static_cast<int32_t>(matched);
  }
  matched = 0;
  for (int64_t i = 0; i < row.history_count; ++i) {
    // history[i - length .. i) is the pattern: history[i] must not follow it again.
    if (matched == length) {
      forbid(row.history[i]);
      if (length == 0) continue;
      matched = borders[matched - 1];
    }
    while (matched > 0 && row.history[i] != pattern[matched]) matched = borders[matched - 1];
    if (row.history[i] == pattern[matched]) ++matched;
  }
}

}  // namespace pergola
