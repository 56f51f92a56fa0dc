// Some rows of a weight from the file into packed memory: reads them in bounded chunks, refuses
// what is not finite, converts, undoes GGUF's permuted rope rows and transposed tensors. One per
// thread that loads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/matmul.h"
#include "model/checkpoint.h"
#include "worker/weights/weight_item.h"

namespace pergola {

struct PackLimits {
  // Bytes that are read at once, but at least a row: many enough that a read costs its bytes and
  // not its call, few enough that they are still in the core's cache when they are packed.
  int64_t read_bytes = 1 << 20;
  // What a thread holds of a transposed tensor, but at least a row: enough that the stripes it
  // reads of each row are not too short.
  int64_t turned_bytes = 16 << 20;
};

// Where rows go.
struct PackTarget {
  PackedShape shape;         // of `image`
  uint8_t* image = nullptr;  // host memory
  int64_t first_row = 0;     // of the image: where row 0 of the weight goes
  bool cleared = false;      // whether the image is zeros, or what it was used for before
};

// What a thread did, in seconds.
struct PackTimes {
  double read = 0;
  double convert = 0;
};

class RowPacker {
 public:
  RowPacker(const Checkpoint& checkpoint, const PackLimits& limits)
      : checkpoint_(checkpoint), head_dim_(checkpoint.spec().head_dim), limits_(limits) {}

  // How many rows one call of Pack should do, from `row` on and at most `most`: a multiple of
  // item.RowUnit.
  int64_t Step(const WeightItem& item, int64_t row, int64_t most) const;

  // Rows [begin, begin + count) of the cut of a matrix; count is what Step gave.
  absl::Status PackRows(const WeightItem& item, int64_t begin, int64_t count,
                        const PackTarget& target);
  // A whole vector, as f32, plus one where the model keeps its norms less one.
  absl::Status PackVector(const WeightItem& item, bool plus_one, float* to);

  const PackTimes& times() const { return times_; }

 private:
  // Source rows in the order in which they were read, as runs that PackRows takes: `count` rows of
  // the cut from `first_row` on, the source of each `stride_rows` file rows after the one before,
  // beginning with file row `source`.
  struct Run {
    int64_t first_row, count, source, stride_rows;
  };
  // Rows in memory, as runs count them: row `first` of the cut and those after it, each from column
  // `first_column` of the weight on.
  struct Chunk {
    const uint8_t* data = nullptr;
    int64_t row_bytes = 0;
    int64_t first = 0;
    int64_t first_column = 0;
  };

  std::vector<Run> RunsOf(RowOrder order, int64_t begin, int64_t count) const;
  absl::Status Read(const WeightItem& item, int64_t offset, absl::Span<uint8_t> out);
  absl::Status PackTransposed(const WeightItem& item, int64_t begin, int64_t count,
                              const PackTarget& target);
  absl::Status PackRun(const WeightItem& item, const Run& run, const Chunk& chunk,
                       const PackTarget& target);

  const Checkpoint& checkpoint_;
  const int64_t head_dim_;
  const PackLimits limits_;
  PackTimes times_;
  std::vector<uint8_t> chunk_;
  std::vector<uint8_t> turned_;
  std::vector<uint8_t> converted_;  // rows of a chunk, in the held dtype
  std::vector<float> row_;
};

}  // namespace pergola
