// Sums over the ranks of a stage through memory that their GPUs reach directly (NVLink, or PCIe
// where it lets peers through): for the small messages of decode steps, where NCCL's time is its
// latency. What is behind these functions is chosen when a program is linked, as with
// cuda_stream.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/decoder_ops.h"
#include "kernels/stream.h"

namespace pergola {

struct PeerOptions {
  int rank = 0, size = 1;    // in the stage
  int first_rank = 0;        // the stage's first in the group: messages name ranks of the group
  int64_t most_bytes = 0;    // of a message; a multiple of 16
  int64_t wait_ms = 60'000;  // a rank that has not come by then is lost
  // Whether two processes may use one GPU: it gives them turns, and each wait takes some (tests).
  bool share_devices = false;
  // Whether a rank that does not come is the stream's error; else only status() tells.
  bool watched = true;
  // out[r * bytes ..] = rank r's `in`, on every rank.
  std::function<absl::Status(const void* in, int64_t bytes, void* out)> gather;
};

class PeerReducer {
 public:
  // Collective: the same verdict on every rank. FAILED_PRECONDITION, naming a rank and the reason,
  // where the GPUs do not reach each other's memory (another way must do the sums then);
  // `options.gather`'s errors. `stream` is borrowed, and outlives the object; one object per
  // stream.
  static absl::StatusOr<std::unique_ptr<PeerReducer>> Open(Stream& stream,
                                                           const PeerOptions& options);
  virtual ~PeerReducer() = default;
  PeerReducer(const PeerReducer&) = delete;
  PeerReducer& operator=(const PeerReducer&) = delete;

  // What Open allocates of the device's memory.
  static int64_t PlannedBytes(int ranks, int64_t most_bytes);

  // Of a message.
  int64_t most_bytes() const { return most_bytes_; }

  // Enqueue; every rank makes the same calls in the same order. Messages are at most most_bytes.
  // Sums are formed in rank order in f32 and rounded once to the message's dtype: the same bits on
  // every rank and for every size, those of StageCommunicator's sums in f32 that are rounded then.
  // A rank that does not come in time is named by status() from then on; sums do nothing then.
  virtual void AllReduce(const Tensor& x) = 0;
  // AllReduce of args.residual (of args.y for Add: this rank's part; left as it is), then the op.
  virtual void AllReduceNorm(const RmsNormArgs& args) = 0;
  virtual void AllReduceNorm(const LayerNormArgs& args) = 0;
  virtual void AllReduceAdd(const AddArgs& args) = 0;

  // UNAVAILABLE naming the rank that a sum has waited for in vain, once the stream is idle.
  virtual absl::Status status() const = 0;

  // Collective, before the object goes while the ranks go on: no rank frees memory that another
  // still has open. The stream is idle.
  virtual absl::Status Close() = 0;

 protected:
  explicit PeerReducer(int64_t most_bytes) : most_bytes_(most_bytes) {}

 private:
  const int64_t most_bytes_;
};

}  // namespace pergola
