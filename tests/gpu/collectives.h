// NCCL itself, through DeviceGroup, with ranks that are processes on one GPU.
#pragma once

namespace pergola {

// Results of part "collectives": whether sums, gathers and hops are right, and how long they take.
// False if something is wrong. Must run before this process touches CUDA.
bool CheckCollectives(bool tiny);

}  // namespace pergola
