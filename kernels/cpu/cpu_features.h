// What this machine's CPU and operating system can run of the targets that were compiled.
#pragma once

namespace pergola {

bool CpuHasAvx2();
bool CpuHasAvx512();
// Of an AVX-512 machine: products of bytes (VPDPBUSD).
bool CpuHasAvx512Vnni();

}  // namespace pergola
