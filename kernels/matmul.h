// y = x W^T + bias: the product of a decoder. Weights are packed once at load into tiles that one
// row and many rows share, so that an output element has one reduction order whatever the batch
// (DESIGN I4).
//
//   y[r, o] = bias[o] + sum over k ascending of x[r, k] * w[o, k]        (f32 accumulation, fused
//   multiply-add)
// int8 weights multiply int8 activations (kernels/int8.h). Of row r of x the outliers O(r), whose
// |x| is beyond the row's limit or no number, are taken out; the rest is int8 in steps of s_r, the
// weights in steps of t_o:
//
//   y[r, o] = bias[o] + t_o * (s_r * (sum over k not in O(r) of q[r, k] * p[o, k])
//                              + sum over k in O(r) ascending of x[r, k] * p[o, k])
//
// The first sum is an exact integer (int32: columns <= 2^17), the second a chain of f32 fused
// multiply-adds; a token's result depends on its own row alone. Against the reference the error is
// at most (|O| + 5) 2^-24 sum |s q t p| (outliers: |x t p|). Against x and w before they were
// rounded, each product of the first sum is off by at most (1/2 + 2^-15) (s |w| + t |x|) + (1/4 +
// 2^-14) s t.
//
// The order of the sum depends on K and the weight dtype alone: not on rows, threads, target or
// position in the batch. Error bound against the reference (double accumulation): K * 2^-24 * sum
// |x w| per element (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/model_spec.h"

namespace pergola {

// How a weight matrix [rows = outputs, columns = inputs] is packed, wherever its bytes are.
struct PackedShape {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int lead = 0;        // PackedMatrix::Allocate
  bool panels = true;  // the CPU's layout; a GPU wants the rows one after the other
                       // (kernels/cuda/matrix_layout.h)

  int64_t bytes() const;
};

// Packs `row_count` source rows (as in the file: dense values, or whole blocks that cover lead +
// columns, or of int8 and fp8 the f32 scale and then the values) as output rows first_row.. of the
// matrix into `image`: shape.bytes() of host memory, which were zeros. Rows may come in any order,
// each once, and different rows from different threads.
void PackRows(const PackedShape& shape, int64_t first_row, int64_t row_count, const void* source,
              int64_t source_row_bytes, uint8_t* image);

// Weights [rows = outputs, columns = inputs] in packed tiles. Movable, const after load. May hold
// several matrices stacked by output (q, k, v; gate, up), which is the same as one tall matrix.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // Allocates for `rows` x `columns` of any dtype but i32 and fp8; of int8 at most kMostInt8Columns
  // columns. A quantised matrix may be a cut of columns that does not begin on a block: `lead`
  // (below BlockValues) says how many values of the first block lie before the cut; a row then
  // holds the blocks that cover lead + columns values.
  static PackedMatrix Allocate(DType dtype, int64_t rows, int64_t columns, int lead = 0);
  // The same in the memory of `stream`, for ops on it: a GPU may hold fp8 too. Its bytes come from
  // the loader (worker/weights/load_pipeline.h).
  static PackedMatrix Allocate(Stream& stream, DType dtype, int64_t rows, int64_t columns,
                               int lead);
  // Of a CPU's matrix: PackRows above into its memory.
  void PackRows(int64_t first_row, int64_t row_count, const void* source, int64_t source_row_bytes);

  const PackedShape& shape() const { return shape_; }
  DType dtype() const { return shape_.dtype; }
  int64_t rows() const { return shape_.rows; }
  int64_t columns() const { return shape_.columns; }
  int lead() const { return shape_.lead; }
  int64_t bytes() const { return shape_.panels ? buffer_.size() : device_.size(); }
  // On the device that Allocate named.
  const uint8_t* data() const { return memory(); }
  uint8_t* memory() const { return shape_.panels ? buffer_.data() : device_.data(); }
  // Bytes Allocate would take: for the memory plan.
  static int64_t PackedBytes(DType dtype, int64_t rows, int64_t columns, int lead = 0);
  // Of a CPU's matrix: decodes one row to f32 [columns]: embedding lookup of a tied table, and
  // tests.
  void UnpackRow(int64_t row, float* out) const;
  // One row of an int8 matrix: returns its scale, writes its values to [columns].
  float Int8Row(int64_t row, int8_t* out) const;

 private:
  explicit PackedMatrix(const PackedShape& shape);

  PackedShape shape_;
  HostBuffer buffer_;    // a CPU's matrix
  DeviceBuffer device_;  // a GPU's matrix
};

struct MatmulArgs {
  Tensor x;  // [rows, w.columns] f32
  const PackedMatrix* w = nullptr;
  const float* bias = nullptr;  // [w.rows] f32 or nullptr
  bool accumulate =
      false;  // true: y += ..., the product (bias included) is added to y as one value
  // y = f of all that, for an MLP without gate: ActivateArgs of kernels/decoder_ops.h has f and its
  // error, which comes on top of the product's, at most 1.13 times: no f is steeper. Not with
  // `accumulate`.
  std::optional<Activation> activation;
  Tensor y;  // [rows, w.rows] f32; may not alias x
};
// Shapes are CHECKed. Rows may be 0.
void CheckMatmul(const MatmulArgs& args);
void Matmul(Stream& stream, const MatmulArgs& args);

// The scalar specification, double accumulation, rounded once to f32, before an activation.
void MatmulRef(const MatmulArgs& args);

}  // namespace pergola
