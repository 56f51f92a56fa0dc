// What NCCL must be told so that ranks which are processes on one GPU can be a group: it refuses
// two ranks on one GPU of one host, so each is a host of its own, and they reach each other over
// the loopback.
#pragma once

#include <cstdlib>
#include <string>

namespace pergola {

// Once in each rank's process, before it makes a group.
inline void SetNcclEnvironment(int rank) {
  setenv("NCCL_HOSTID", ("pergola-rank-" + std::to_string(rank)).c_str(), 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  setenv("NCCL_IB_DISABLE", "1", 1);
}

}  // namespace pergola
