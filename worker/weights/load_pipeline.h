// Fills a rank's weights, whose memory is there, from a checkpoint. The threads of the rank's pool
// take portions of rows in the order in which they lie, and each reads, converts and packs what it
// took: while one waits for the disk the others compute, and of the rows to come the file is told
// in time.
//
//   CPU  rows are packed where they stay.
//   GPU  rows are packed into pinned memory, laid out as the device's; a layer (or a part of one,
//        LargestStagingBytes of model/memory_plan.h) is one copy. The copy of one layer runs while
//        the next is packed: three buffers, so that nobody waits for the last row of a layer.
//
// Not for what the weights are (loader.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/matmul.h"
#include "kernels/stream.h"
#include "model/checkpoint.h"
#include "model/memory_plan.h"
#include "worker/weights/row_packer.h"
#include "worker/weights/weight_item.h"

namespace pergola {

// Bytes read so far and in all.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

// A matrix or a vector of a rank's weights: memory that one object owns.
struct WeightPiece {
  struct Source {
    const WeightItem* item = nullptr;
    int64_t first_row = 0;  // of the piece: where the item's first row or value goes
  };
  std::vector<Source> sources;
  bool vector = false;  // of f32
  PackedShape shape;    // of a matrix
  uint8_t* memory = nullptr;
  int64_t bytes = 0;
  int64_t layer = -1;     // -1: of none
  bool plus_one = false;  // a norm that the file keeps less one
};

// All of a rank's weights, in the order in which they lie.
struct StagePieces {
  std::vector<WeightPiece> pieces;
  // Whether all were cut from one allocation, so that a copy may cover neighbours.
  bool together = false;
};

// What bounds the memory that loading takes beside the weights: three staging buffers, and of each
// thread what it reads and converts at once.
struct LoadLimits {
  PackLimits pack;
  int64_t staging_bytes = kStagingBytes;  // of a buffer
};

// Where the time went, in seconds; of the threads' work, the sum over the threads.
struct LoadTimes {
  double read = 0;     // in reads of the files
  double convert = 0;  // looking for NaN, converting, packing
  double copy = 0;     // of the main thread: giving copies to the device and waiting for them
  double wait = 0;     // for other threads' rows
  double total = 0;    // by the clock
  int threads = 1;
  int64_t read_bytes = 0;
  int64_t held_bytes = 0;
  int64_t copies = 0;  // to the device
  int64_t staging_bytes = 0;

  // "2.1 GiB in 1.20 s, 1.79 GB/s; of 2 threads' time read 38 %, convert 55 %, ..."
  std::string ToString() const;
};

// INVALID_ARGUMENT naming the tensor and the first value that is not finite or cannot be held, else
// what Checkpoint::Read returns, naming the tensor, or the stream's error, naming the layer. Of
// several errors it is that of the first row. No thread is at work when this returns. From the
// stream's owning thread; `progress` may be empty and is called on it.
absl::StatusOr<LoadTimes> LoadPieces(const Checkpoint& checkpoint, const StagePieces& stage,
                                     Stream& stream, const ByteProgress& progress,
                                     const LoadLimits& limits);

}  // namespace pergola
