// What the machine at hand has left.
#pragma once

#include <cstdint>

namespace pergola {

// Bytes the operating system says a new process could use (MemAvailable of /proc/meminfo); 0: it
// does not say.
int64_t AvailableMemory();

}  // namespace pergola
