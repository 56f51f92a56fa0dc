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
#include <string>

#include "absl/status/statusor.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace pergola {

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
  // The same for ops on `stream`: a GPU, which may hold fp8 too, wants the rows one after the other
  // (kernels/cuda/matrix_layout.h). They are packed on the host; Upload brings them to the device.
  static PackedMatrix Allocate(Stream& stream, DType dtype, int64_t rows, int64_t columns,
                               int lead);
  // Once all rows are packed. Nothing to do on the CPU.
  void Upload(Stream& stream);
  // Packs `row_count` source rows (as in the file: dense values, or whole blocks that cover lead +
  // columns, or of int8 and fp8 the f32 scale and then the values) as output rows first_row.. of
  // this matrix. Rows may come in any order, each once.
  void PackRows(int64_t first_row, int64_t row_count, const void* source, int64_t source_row_bytes);

  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int lead() const { return lead_; }
  int64_t bytes() const { return panels_ ? buffer_.size() : device_.size(); }
  // On the device that Allocate named.
  const uint8_t* data() const { return panels_ ? buffer_.data() : device_.data(); }
  // Bytes Allocate would take: for the memory plan.
  static int64_t PackedBytes(DType dtype, int64_t rows, int64_t columns, int lead = 0);
  // Of a CPU's matrix: decodes one row to f32 [columns]: embedding lookup of a tied table, and
  // tests.
  void UnpackRow(int64_t row, float* out) const;
  // One row of an int8 matrix: returns its scale, writes its values to [columns].
  float Int8Row(int64_t row, int8_t* out) const;

 private:
  PackedMatrix(DType dtype, int64_t rows, int64_t columns, int lead, bool panels);

  DType dtype_ = DType::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int lead_ = 0;
  bool panels_ = true;   // the CPU's layout
  HostBuffer buffer_;    // the CPU's matrix, or what a GPU is given
  DeviceBuffer device_;  // a GPU's matrix
};

struct MatmulArgs {
  Tensor x;  // [rows, w.columns] f32
  const PackedMatrix* w = nullptr;
  const float* bias = nullptr;  // [w.rows] f32 or nullptr
  bool accumulate =
      false;  // true: y += ..., the product (bias included) is added to y as one value
  Tensor y;   // [rows, w.rows] f32; may not alias x
};
// Shapes are CHECKed. Rows may be 0.
void Matmul(Stream& stream, const MatmulArgs& args);

// The scalar specification, double accumulation, rounded once to f32.
void MatmulRef(const MatmulArgs& args);

}  // namespace pergola
