// What the tests of kernels/cuda/matmul.h share: device memory, random weights for the reference
// and for the GPU, and a product with its reference and bound.
#pragma once

#include <cuda_runtime.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul.h"
#include "kernels/fp8.h"
#include "kernels/int8.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/op_device.h"

#ifdef PERGOLA_CUDA_EMULATOR  // of its cuda_runtime.h
#include "kernels/cuda/emulator/emulator.h"
#endif

namespace pergola {

inline constexpr DType kActivations[] = {DType::kF32, DType::kBF16, DType::kF16};
inline constexpr DType kAllWeights[] = {DType::kF32,  DType::kBF16, DType::kF16,  DType::kInt8,
                                        DType::kFp8,  DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                                        DType::kQ5_0, DType::kQ5_1, DType::kQ2_K, DType::kQ3_K,
                                        DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Device memory with a copy of host bytes.
class DeviceBytes {
 public:
  DeviceBytes(const void* from, size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes + 1), cudaSuccess);
    if (bytes == 0) return;
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  void* data() const { return data_; }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> host(bytes_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    if (bytes_ > 0) {
      EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    }
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Unit roundoff of a 16-bit type; f32 0: its roundings are counted where they happen.
inline double RoundoffOf(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0;
}

// The same weights for the reference and for the GPU.
struct Weights {
  std::vector<uint8_t> file;  // rows as they are in one
  int64_t row_bytes = 0;
  PackedMatrix packed;
  std::vector<uint8_t> image;
  std::vector<double> sizes;  // |s q| + |m| of each
  CudaMatrix matrix;          // data null
};

// Rows of int8 or e4m3, each with its scale before it.
inline std::vector<uint8_t> ScaledFileRows(DType dtype, int64_t outputs, int64_t columns) {
  const int64_t row_bytes = columns + 4;
  std::vector<uint8_t> file(static_cast<size_t>(outputs * row_bytes));
  for (int64_t o = 0; o < outputs; ++o) {
    const auto values = RandomValues(columns, static_cast<uint32_t>(100 + o));
    uint8_t* row = &file[o * row_bytes];
    const Int8Steps steps = StepsOfRow(values.data(), columns);
    const Fp8Steps fp8 = Fp8StepsOfRow(values.data(), columns);
    std::memcpy(row, dtype == DType::kFp8 ? &fp8.scale : &steps.scale, 4);
    if (dtype == DType::kFp8) {
      QuantizeFp8(values.data(), columns, fp8, row + 4);
    } else {
      QuantizeInt8(values.data(), columns, steps, reinterpret_cast<int8_t*>(row + 4));
    }
  }
  return file;
}

// Of fp8, which the reference does not hold: f32 of the same values.
inline PackedMatrix ValuesOf(const CudaMatrix& matrix, const uint8_t* image) {
  CudaMatrix there = matrix;
  there.data = image;
  PackedMatrix values = PackedMatrix::Allocate(DType::kF32, matrix.rows, matrix.columns);
  std::vector<float> row(static_cast<size_t>(matrix.columns));
  for (int64_t o = 0; o < matrix.rows; ++o) {
    UnpackCudaRow(there, o, row.data());
    values.PackRows(o, 1, row.data(), matrix.columns * 4);
  }
  return values;
}

inline Weights MakeWeights(DType dtype, int64_t outputs, int64_t columns, int lead) {
  Weights w;
  w.matrix = {dtype, outputs, columns, lead, nullptr};
  w.image.resize(static_cast<size_t>(CudaMatrixBytes(dtype, outputs, columns, lead)));
  const int64_t block = BlockValues(dtype);
  const int64_t covered = (lead + columns + block - 1) / block * block;
  int64_t& row_bytes = w.row_bytes;
  row_bytes = DTypeBytes(dtype, covered);
  std::vector<uint8_t>& file = w.file;
  if (HasRowScale(dtype)) {
    row_bytes += 4;
    file = ScaledFileRows(dtype, outputs, columns);
  } else {
    file = RandomFileRows(dtype, outputs, covered, 7);
  }
  PackCudaRows(w.matrix, 0, outputs, file.data(), row_bytes, w.image.data());
  if (dtype == DType::kFp8) {
    w.packed = ValuesOf(w.matrix, w.image.data());
    std::vector<float> value(static_cast<size_t>(columns));
    for (int64_t o = 0; o < outputs; ++o) {
      w.packed.UnpackRow(o, value.data());
      for (const float v : value) w.sizes.push_back(std::abs(static_cast<double>(v)));
    }
    return w;
  }
  w.packed = PackedMatrix::Allocate(dtype, outputs, columns, lead);
  w.packed.PackRows(0, outputs, file.data(), row_bytes);
  // Without minima the format's values are s q alone.
  PackedMatrix plain = PackedMatrix::Allocate(dtype, outputs, columns, lead);
  std::vector<uint8_t> without = file;
  const BlockHalves halves = HalvesOf(dtype);
  if (halves.count == 2) {
    const auto second = static_cast<size_t>(halves.offset + 2);
    for (size_t at = 0; at < file.size(); at += static_cast<size_t>(BlockBytes(dtype))) {
      without[at + second] = without[at + second + 1] = 0;
    }
  }
  plain.PackRows(0, outputs, without.data(), row_bytes);
  std::vector<float> value(static_cast<size_t>(columns)), product(value.size());
  for (int64_t o = 0; o < outputs; ++o) {
    w.packed.UnpackRow(o, value.data());
    plain.UnpackRow(o, product.data());
    for (int64_t k = 0; k < columns; ++k) {
      w.sizes.push_back(std::abs(static_cast<double>(product[k])) +
                        std::abs(static_cast<double>(value[k]) - product[k]));
    }
  }
  return w;
}

struct Case {
  DType x_dtype = DType::kBF16, y_dtype = DType::kF32;
  int64_t rows = 1, columns = 32, outputs = 8;
  int lead = 0;
  bool bias = false, accumulate = false;
  std::optional<Activation> activation;  // of Compute GELU's tanh form alone
  int64_t y_gap = 0;                     // y_stride - outputs
  CudaTokens tokens = CudaTokens::kAsTheyAre;
  int64_t workspace_bytes = int64_t{4} << 20;
  int multiprocessors = 132;
};

class Gpu {
 public:
  explicit Gpu(int64_t workspace_bytes = int64_t{1} << 20)
      : workspace_(std::vector<uint8_t>(static_cast<size_t>(workspace_bytes)).data(),
                   static_cast<size_t>(workspace_bytes)) {
    context.compute_capability = 90;
    context.multiprocessors = 132;
    context.workspace = static_cast<uint8_t*>(workspace_.data());
    context.workspace_bytes = workspace_bytes;
    auto made = DenseProduct::Create();
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) dense_ = *std::move(made);
    context.dense = dense_.get();
  }
  static bool Exists() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }
  CudaContext context;

 private:
  DeviceBytes workspace_;
  std::unique_ptr<DenseProduct> dense_;
};

// A product with its reference.
struct Product {
  Case c;
  Weights w;
  std::vector<float> x, bias, y;    // y: [rows, outputs + gap], old contents
  mutable bool eight_bits = false;  // what Compute's tokens were multiplied as

  Product(DType dtype, const Case& from)
      : c(from), w(MakeWeights(dtype, c.outputs, c.columns, c.lead)) {
    x = Rounded(c.x_dtype, RandomValues(c.rows * c.columns, 8));
    if (c.bias) bias = RandomValues(c.outputs, 10);
    y = Rounded(c.y_dtype, RandomValues(c.rows * (c.outputs + c.y_gap), 9));
  }
  DType dtype() const { return w.matrix.dtype; }

  std::vector<float> Compute() const {
    Gpu gpu(c.workspace_bytes);
    gpu.context.multiprocessors = c.multiprocessors;
    const auto x_bytes = ToBytes(c.x_dtype, x), y_bytes = ToBytes(c.y_dtype, y);
    const DeviceBytes x_device(x_bytes.data(), x_bytes.size());
    const DeviceBytes y_device(y_bytes.data(), y_bytes.size());
    const DeviceBytes w_device(w.image.data(), w.image.size());
    const DeviceBytes bias_device(bias.data(), bias.size() * 4);
    CudaMatmulArgs args;
    args.x = Tensor(x_device.data(), c.x_dtype, {c.rows, c.columns});
    args.w = w.matrix;
    args.w.data = static_cast<const uint8_t*>(w_device.data());
    args.bias = c.bias ? static_cast<const float*>(bias_device.data()) : nullptr;
    args.accumulate = c.accumulate;
    args.gelu = c.activation == Activation::kGeluTanh;
    args.y = Tensor(y_device.data(), c.y_dtype, {c.rows, c.outputs});
    args.y_stride = c.outputs + c.y_gap;
    args.tokens = c.tokens;
    eight_bits = MultipliesEightBitTokens(gpu.context, args);
    MatmulCuda(gpu.context, args);
    return ToFloats(c.y_dtype, y_device.Read());
  }

  // The same through a stream, as the decoder does; y has no gaps.
  std::vector<float> ComputeOn(OpDevice& device) const {
    PackedMatrix matrix =
        PackedMatrix::Allocate(device.stream(), dtype(), c.outputs, c.columns, c.lead);
    PackWhole(device.stream(), w.file.data(), w.row_bytes, &matrix);
    const OpTensor from(device, c.x_dtype, c.rows, c.columns, x);
    const OpTensor to(device, c.y_dtype, c.rows, c.outputs, y);
    const OnDevice<float> add(device, bias);
    MatmulArgs args;
    args.x = from.tensor();
    args.w = &matrix;
    args.bias = c.bias ? add.data() : nullptr;
    args.accumulate = c.accumulate;
    args.activation = c.activation;
    args.y = to.tensor();
    Matmul(device.stream(), args);
    return to.Read();
  }

  // MatmulRef's result, in y's place, for what Compute's tokens were multiplied as. Of int8 by
  // tokens as they are: by its values in f32. Or what it is before the activation.
  std::vector<float> Want(bool activated = true) const {
    PackedMatrix values;
    const PackedMatrix* matrix = &w.packed;
    if (dtype() == DType::kInt8 && !eight_bits) {
      values = ValuesOf(w.matrix, w.image.data());
      matrix = &values;
    }
    std::vector<float> dense(static_cast<size_t>(c.rows * c.outputs)), in = Tokens(), add = bias;
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) dense[i] = y[At(i)];
    MatmulArgs args;
    args.x = Tensor(in.data(), DType::kF32, {c.rows, c.columns});
    args.w = matrix;
    args.bias = c.bias ? add.data() : nullptr;
    args.accumulate = c.accumulate;
    if (activated) args.activation = c.activation;
    args.y = Tensor(dense.data(), DType::kF32, {c.rows, c.outputs});
    MatmulRef(args);
    std::vector<float> want = y;
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) want[At(i)] = dense[i];
    return want;
  }

  // x as it is multiplied, but for int8, of which the reference knows.
  std::vector<float> Tokens() const {
    std::vector<float> tokens = x;
    if (!eight_bits || dtype() != DType::kFp8) return tokens;
    std::vector<uint8_t> q(static_cast<size_t>(c.columns));
    for (int64_t r = 0; r < c.rows; ++r) {
      float* row = tokens.data() + r * c.columns;
      const Fp8Steps steps = Fp8StepsOfRow(row, c.columns);
      QuantizeFp8(row, c.columns, steps, q.data());
      for (int64_t k = 0; k < c.columns; ++k) row[k] = steps.scale * E4M3ToF32(q[k]);
    }
    return tokens;
  }

  // Bounds after the activation, of the sums' bounds: no activation is steeper than 1.13, and each
  // has its own error (kernels/decoder_ops.h). What is rounded to 16 bits may have gone through the
  // library's tanh.
  std::vector<double> Activated(std::vector<double> bounds, const std::vector<float>& want) const {
    if (!c.activation.has_value()) return bounds;
    const std::vector<float> before = Want(/*activated=*/false);
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) {
      const size_t at = static_cast<size_t>(At(i));
      const double sum = before[at], size = std::abs(static_cast<double>(want[at]));
      double units = 7 * size;
      if (*c.activation == Activation::kGeluErf) units = 8 * std::abs(sum);
      if (*c.activation == Activation::kGeluTanh) {
        units = (8 + 4 * std::min(1.6 * std::abs(sum + 0.044715 * sum * sum * sum), 90.0)) * size;
      }
      bounds[at] = 1.13 * bounds[at] + kUnit * units + 1e-33;
      bounds[at] += 1.01 * RoundoffOf(c.y_dtype) * size;
      if (c.y_dtype == DType::kF16) bounds[at] += 0x1p-25;
#ifndef PERGOLA_CUDA_EMULATOR
      if (c.y_dtype != DType::kF32) bounds[at] += 0x1p-11 * std::abs(sum);
#endif
    }
    return bounds;
  }

  // Of products in f32 on the CPU: Higham's bound K u sum |x w|, with one more rounding for the
  // bias, the sum with y, and the reference's own result.
  std::vector<double> CpuBounds() const {
    std::vector<double> bounds(y.size());
    std::vector<float> value(static_cast<size_t>(c.columns));
    for (int64_t o = 0; o < c.outputs; ++o) {
      w.packed.UnpackRow(o, value.data());
      for (int64_t r = 0; r < c.rows; ++r) {
        double sum = c.bias ? std::abs(static_cast<double>(bias[o])) : 0;
        for (int64_t k = 0; k < c.columns; ++k) {
          sum +=
              std::abs(static_cast<double>(x[r * c.columns + k]) * static_cast<double>(value[k]));
        }
        if (c.accumulate) sum += std::abs(static_cast<double>(y[r * c.outputs + o]));
        bounds[r * c.outputs + o] = static_cast<double>(c.columns + 3) * kUnit * sum;
      }
    }
    return Activated(std::move(bounds), Want());
  }

  // The bound of kernels/cuda/matmul.h with the rounding of y, of the reference and of a 16-bit
  // bias; 0 between the rows.
  std::vector<double> Bounds(const std::vector<float>& want) const {
    if (!c.activation.has_value()) return SumBounds(want);
    return Activated(SumBounds(Want(/*activated=*/false)), want);
  }
  std::vector<double> SumBounds(const std::vector<float>& want) const {
    const bool rounded = !eight_bits && dtype() != c.x_dtype;  // if weights are decoded to 16 bits
    const std::vector<float> tokens = Tokens();
    std::vector<double> bounds(y.size());
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) {
      const int64_t r = i / c.outputs, o = i % c.outputs;
      double sum = 0;
      for (int64_t k = 0; k < c.columns; ++k) {
        const double value = std::abs(static_cast<double>(tokens[r * c.columns + k]));
        sum += value * w.sizes[o * c.columns + k];
      }
      const double add = (c.bias ? std::abs(static_cast<double>(bias[o])) : 0) +
                         (c.accumulate ? std::abs(static_cast<double>(y[At(i)])) : 0);
      const double terms = static_cast<double>(c.columns) * 17 / 16 + 16;
      bounds[At(i)] =
          terms * SumUnit() * (sum + add) + RoundoffOf(c.y_dtype) * std::abs(want[At(i)]);
      if (c.y_dtype == DType::kF16) bounds[At(i)] += 0x1p-25;  // of subnormal numbers
      if (c.bias) bounds[At(i)] += RoundoffOf(c.y_dtype) * std::abs(static_cast<double>(bias[o]));
      if (rounded && DecodesWeights()) bounds[At(i)] += RoundoffOf(c.x_dtype) * sum;
      // The last rounding may be of a value that the other errors have moved.
      bounds[At(i)] *= 1 + 2 * RoundoffOf(c.y_dtype);
    }
    return bounds;
  }
  bool DecodesWeights() const {
    const bool dense = BlockValues(dtype()) == 1 && !HasRowScale(dtype());
    return dense || c.rows > 128;
  }
  // Where element i of [rows, outputs] lies in y.
  int64_t At(int64_t i) const {
    return i / c.outputs * (c.outputs + c.y_gap) + i % c.outputs;
  }

  // Of a sum of products, relative to the largest of them.
  double SumUnit() const {
#ifndef PERGOLA_CUDA_EMULATOR
    if (eight_bits && dtype() == DType::kFp8) return 0x1p-13;
#endif
    return 0x1p-23;
  }
  testing::AssertionResult Agrees() const {
    const std::vector<float> got = Compute(), want = Want();
    const std::vector<double> bounds = Bounds(want);
    return CompareWith(got, want, [&](size_t i) { return bounds[i]; });
  }
};

// The same bits whatever the order of blocks, warps and lanes; where only the GPU knows the order,
// in three runs.
inline testing::AssertionResult SameInEveryOrder(const Product& product) {
  std::vector<std::vector<float>> results;
#ifdef PERGOLA_CUDA_EMULATOR
  for (const auto order :
       {emulator::Order::kAscending, emulator::Order::kDescending, emulator::Order::kShuffled}) {
    emulator::SetOrder(order, 3);
    results.push_back(product.Compute());
  }
  emulator::SetOrder(emulator::Order::kAscending);
#else
  for (int run = 0; run < 3; ++run) results.push_back(product.Compute());
#endif
  for (const auto& result : results) {
    const auto same = CompareBits(result, results[0]);
    if (!same) return same;
  }
  return testing::AssertionSuccess();
}

#define SKIP_WITHOUT_GPU() \
  if (!Gpu::Exists()) GTEST_SKIP() << "no CUDA device"

inline std::string TypeName(const testing::TestParamInfo<DType>& info) {
  return std::string(DTypeName(info.param));
}

}  // namespace pergola
