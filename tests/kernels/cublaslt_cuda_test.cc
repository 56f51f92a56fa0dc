// The emulator's cuBLASLt does what the library documents: the same test runs on a GPU against the
// library.
#include <cublasLt.h>

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr int kRows = 24, kColumns = 8, kDepth = 40;

// D [kRows, kColumns] = A [kDepth, kRows] transposed times B [kDepth, kColumns], all by columns.
class CublasLtCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
    ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
    if (handle_ != nullptr) cublasLtDestroy(handle_);
  }

  void Describe(cublasComputeType_t compute, cudaDataType_t input, cudaDataType_t output) {
    const bool integers = compute == CUBLAS_COMPUTE_32I;
    cublasLtMatmulDescCreate(&operation_, compute, integers ? CUDA_R_32I : CUDA_R_32F);
    Set(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(CUBLAS_OP_T));
    cublasLtMatrixLayoutCreate(&a_, input, kDepth, kRows, kDepth);
    cublasLtMatrixLayoutCreate(&b_, input, kDepth, kColumns, kDepth);
    cublasLtMatrixLayoutCreate(&d_, output, kRows, kColumns, kRows);
  }
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t Choose(cublasLtMatmulAlgo_t* algorithm) {
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, operation_, a_, b_, d_, d_, preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    *algorithm = result.algo;
    EXPECT_EQ(found, status == CUBLAS_STATUS_SUCCESS ? 1 : 0);
    return status;
  }
  template <typename S>
  void Multiply(const CudaContext& context, const void* a, const void* b, void* d, S alpha,
                S beta) {
    cublasLtMatmulAlgo_t algorithm;
    ASSERT_EQ(Choose(&algorithm), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatmul(handle_, operation_, &alpha, a, a_, b, b_, &beta, d, d_, d, d_,
                             &algorithm, nullptr, 0, context.stream),
              CUBLAS_STATUS_SUCCESS);
  }

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

TEST_F(CublasLtCudaTest, MultipliesAndAddsTheBiasOfEachRow) {
  const TestCudaContext context;
  std::vector<uint16_t> a, b;
  for (const float v : RandomValues(kDepth * kRows, 1)) a.push_back(F32ToBF16(v));
  for (const float v : RandomValues(kDepth * kColumns, 2)) b.push_back(F32ToBF16(v));
  const std::vector<float> bias = RandomValues(kRows, 3),
                           before = RandomValues(kRows * kColumns, 4);
  const DeviceArray<uint16_t> a_device(a), b_device(b);
  const DeviceArray<float> bias_device(bias), d_device(before);
  Describe(CUBLAS_COMPUTE_32F, CUDA_R_16BF, CUDA_R_32F);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
  Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_device.data());
  Multiply(context, a_device.data(), b_device.data(), d_device.data(), 2.0F, 0.5F);
  std::vector<float> want;
  std::vector<double> bounds;
  for (size_t column = 0; column < kColumns; ++column) {
    for (size_t row = 0; row < kRows; ++row) {
      const float old = before[column * kRows + row];
      double sum = 0.5 * old + bias[row], magnitude = std::abs(0.5 * old) + std::abs(bias[row]);
      for (size_t k = 0; k < kDepth; ++k) {
        const double product = static_cast<double>(BF16ToF32(a[row * kDepth + k])) *
                               static_cast<double>(BF16ToF32(b[column * kDepth + k]));
        sum += 2 * product;
        magnitude += 2 * std::abs(product);
      }
      want.push_back(static_cast<float>(sum));
      // kDepth products, the scaled old value and the bias; 2 units where sums are cut.
      bounds.push_back(2 * (kDepth + 4) * kUnit * magnitude);
    }
  }
  EXPECT_TRUE(CompareWith(d_device.Read(), want, [&](size_t i) { return bounds[i]; }));
}

// GELU in its tanh form, after the bias, before D is rounded.
TEST_F(CublasLtCudaTest, AppliesGeluToTheSumWithTheBias) {
  const TestCudaContext context;
  std::vector<uint16_t> a, b, bias;
  for (const float v : RandomValues(kDepth * kRows, 1)) a.push_back(F32ToBF16(v));
  for (const float v : RandomValues(kDepth * kColumns, 2)) b.push_back(F32ToBF16(v));
  for (const float v : RandomValues(kRows, 3)) bias.push_back(F32ToBF16(v));
  const DeviceArray<uint16_t> a_device(a), b_device(b), bias_device(bias);
  const DeviceArray<uint16_t> d_device(kRows * kColumns);
  Describe(CUBLAS_COMPUTE_32F, CUDA_R_16BF, CUDA_R_16BF);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_GELU_BIAS));
  Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_device.data());
  // Sums have a deviation of some six; a fifth of that shows all of GELU.
  Multiply(context, a_device.data(), b_device.data(), d_device.data(), 0.2F, 0.0F);
  std::vector<float> want, got;
  std::vector<double> bounds;
  for (const uint16_t bits : d_device.Read()) got.push_back(BF16ToF32(bits));
  for (size_t column = 0; column < kColumns; ++column) {
    for (size_t row = 0; row < kRows; ++row) {
      double x = BF16ToF32(bias[row]), magnitude = std::abs(x);
      for (size_t k = 0; k < kDepth; ++k) {
        const double product = 0.2F * static_cast<double>(BF16ToF32(a[row * kDepth + k])) *
                               static_cast<double>(BF16ToF32(b[column * kDepth + k]));
        x += product;
        magnitude += std::abs(product);
      }
      const double y = x / (1 + std::exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)));
      want.push_back(static_cast<float>(y));
      // The sum's error as above, 1.13 times as steep; the hardware's tanh; bf16.
      bounds.push_back(1.13 * 2 * (kDepth + 4) * kUnit * magnitude + 0x1p-11 * std::abs(x) +
                       0x1.1p-8 * std::abs(y));
    }
  }
  EXPECT_TRUE(CompareWith(got, want, [&](size_t i) { return bounds[i]; }));
}

TEST_F(CublasLtCudaTest, MultipliesInt8Exactly) {
  const TestCudaContext context;
  std::mt19937 generator(5);
  std::vector<int8_t> a(kDepth * kRows), b(kDepth * kColumns);
  for (int8_t& v : a) v = static_cast<int8_t>(generator());
  for (int8_t& v : b) v = static_cast<int8_t>(generator());
  const DeviceArray<int8_t> a_device(a), b_device(b);
  const DeviceArray<int32_t> d_device(kRows * kColumns);
  Describe(CUBLAS_COMPUTE_32I, CUDA_R_8I, CUDA_R_32I);
  Multiply<int32_t>(context, a_device.data(), b_device.data(), d_device.data(), 1, 0);
  std::vector<int32_t> want;
  for (size_t column = 0; column < kColumns; ++column) {
    for (size_t row = 0; row < kRows; ++row) {
      int32_t sum = 0;
      for (size_t k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[column * kDepth + k];
      want.push_back(sum);
    }
  }
  EXPECT_EQ(d_device.Read(), want);
}

// Bits that are numbers of e4m3.
std::vector<uint8_t> RandomE4M3(int count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (uint8_t& v : values) {
    do v = static_cast<uint8_t>(generator());
    while ((v & 0x7f) == 0x7f);
  }
  return values;
}

// Of fp8 the library has only what is 16 bytes long, and a scale per row and column on Hopper
// alone.
TEST_F(CublasLtCudaTest, MultipliesE4M3WithAScalePerRowAndColumn) {
  const TestCudaContext context;
  constexpr size_t kLong = 64, kOutputs = 32;
  const std::vector<uint8_t> a = RandomE4M3(kLong * kOutputs, 6),
                             b = RandomE4M3(kLong * kColumns, 7);
  const std::vector<float> rows = RandomValues(kOutputs, 8), columns = RandomValues(kColumns, 9);
  std::vector<uint16_t> bias;
  for (const float v : RandomValues(kOutputs, 10)) bias.push_back(F32ToBF16(v));
  const DeviceArray<uint8_t> a_device(a), b_device(b);
  const DeviceArray<float> rows_device(rows), columns_device(columns);
  const DeviceArray<uint16_t> bias_device(bias), d_device(kOutputs * kColumns);
  cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  Set(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(CUBLAS_OP_T));
  Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
      static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
  Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
      static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
  Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, rows_device.data());
  Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, columns_device.data());
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
  Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_device.data());
  cublasLtMatrixLayoutCreate(&a_, CUDA_R_8F_E4M3, kLong, kOutputs, kLong);
  cublasLtMatrixLayoutCreate(&b_, CUDA_R_8F_E4M3, kLong, kColumns, kLong);
  cublasLtMatrixLayoutCreate(&d_, CUDA_R_16BF, kOutputs, kColumns, kOutputs);
  cublasLtMatmulAlgo_t algorithm;
  if (Choose(&algorithm) != CUBLAS_STATUS_SUCCESS) GTEST_SKIP() << "this GPU has no such product";
  Multiply(context, a_device.data(), b_device.data(), d_device.data(), 1.0F, 0.0F);
  std::vector<float> want, got;
  std::vector<double> bounds;
  for (const uint16_t bits : d_device.Read()) got.push_back(BF16ToF32(bits));
  for (size_t column = 0; column < kColumns; ++column) {
    for (size_t row = 0; row < kOutputs; ++row) {
      double sum = 0, magnitude = 0;
      for (size_t k = 0; k < kLong; ++k) {
        const double product = static_cast<double>(E4M3ToF32(a[row * kLong + k])) *
                               static_cast<double>(E4M3ToF32(b[column * kLong + k]));
        sum += product;
        magnitude += std::abs(product);
      }
      const double scale = static_cast<double>(rows[row]) * static_cast<double>(columns[column]);
      const auto added = static_cast<double>(BF16ToF32(bias[row]));
      want.push_back(static_cast<float>(sum * scale + added));
      // 33 values an instruction, cut at 13 places; bf16.
      bounds.push_back((33.0 / 32 * kLong + 16) * 0x1p-13 * magnitude * std::abs(scale) +
                       0x1.1p-8 * std::abs(sum * scale + added) + 0x1p-20 * std::abs(added));
    }
  }
  EXPECT_TRUE(CompareWith(got, want, [&](size_t i) { return bounds[i]; }));
}

#ifdef PERGOLA_CUDA_EMULATOR  // what the library says to these is not all documented
TEST_F(CublasLtCudaTest, IntegersHaveNoEpilogue) {
  Describe(CUBLAS_COMPUTE_32I, CUDA_R_8I, CUDA_R_32I);
  cublasLtMatmulAlgo_t algorithm;
  EXPECT_EQ(Choose(&algorithm), CUBLAS_STATUS_SUCCESS);
  for (const auto epilogue : {CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_BIAS}) {
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue));
    EXPECT_EQ(Choose(&algorithm), CUBLAS_STATUS_NOT_SUPPORTED);
  }
}

TEST_F(CublasLtCudaTest, ABiasHasTheTypeOfD) {
  Describe(CUBLAS_COMPUTE_32F, CUDA_R_16BF, CUDA_R_16BF);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_GELU_BIAS));
  cublasLtMatmulAlgo_t algorithm;
  Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(CUDA_R_32F));
  EXPECT_EQ(Choose(&algorithm), CUBLAS_STATUS_NOT_SUPPORTED);
  Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(CUDA_R_16BF));
  EXPECT_EQ(Choose(&algorithm), CUBLAS_STATUS_SUCCESS);
  // Asking is well without a pointer, multiplying is not.
  const TestCudaContext context;
  const std::vector<uint16_t> zeros(kDepth * kRows);
  const DeviceArray<uint16_t> a(zeros), b(zeros), d(zeros);
  const float one = 1, zero = 0;
  EXPECT_EQ(cublasLtMatmul(handle_, operation_, &one, a.data(), a_, b.data(), b_, &zero, d.data(),
                           d_, d.data(), d_, &algorithm, nullptr, 0, context.stream()),
            CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLtCudaTest, RefusesEpiloguesThatAreNone) {
  Describe(CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_GELU} | CUBLASLT_EPILOGUE_RELU);
  cublasLtMatmulAlgo_t algorithm;
  EXPECT_EQ(Choose(&algorithm), CUBLAS_STATUS_NOT_SUPPORTED);
}
#endif

TEST_F(CublasLtCudaTest, RefusesShapesThatDoNotFit) {
  Describe(CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F);
  Set(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(CUBLAS_OP_N));
  cublasLtMatmulAlgo_t algorithm;
  EXPECT_NE(Choose(&algorithm), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace pergola
