// What this machine's CPU and operating system can run of the targets that were compiled.
#pragma once

namespace pergola {

bool CpuHasAvx2();
bool CpuHasAvx512();

}  // namespace pergola
