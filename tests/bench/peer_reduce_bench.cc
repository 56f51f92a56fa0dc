// Time of a sum over the GPUs of a node with the residual and an RMS norm behind it, for messages
// of 4 KiB to 4 MiB: through peer memory in one shot and in two, and through NCCL with the norm as
// a second launch. A thread per GPU. Where the two shots and NCCL become faster than the one are
// the limits that peer_reduce.cu (kSignalBytes) and --peer-sum-bytes guess. `--tiny` runs small
// messages, also under the emulator, where times mean nothing.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/peer_reduce.h"
#include "tests/kernels/cuda/peer_ranks.h"

namespace pergola {
namespace {

constexpr int64_t kHidden = 8192;
constexpr int kLaunches = 20;  // between two marks of the clock
