#include "tests/gpu/roofs.h"

#include <cublasLt.h>

#include <algorithm>
#include <vector>

#include "tests/gpu/report.h"
#include "tests/gpu/timing.h"
#include "tests/kernels/cuda/read_memory.h"

namespace pergola {
namespace {

// Of library_types.h, which the emulator has without it; cuBLASLt may refuse it.
constexpr auto kE4m3 = static_cast<cudaDataType_t>(28);

struct Rate {
  const char* name;
  cudaDataType_t type, out;
  cublasComputeType_t compute;
  cudaDataType_t scale;
};
constexpr Rate kRates[] = {{"bf16", CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F},
                           {"f16", CUDA_R_16F, CUDA_R_16F, CUBLAS_COMPUTE_32F, CUDA_R_32F},
                           {"int8", CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I},
                           {"fp8", kE4m3, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F}};

int64_t BytesOf(cudaDataType_t type) {
  return type == CUDA_R_32I ? 4 : type == CUDA_R_8I || type == kE4m3 ? 1 : 2;
}

// Random numbers of magnitude 1/4 to 2, or any int8; no NaN. Repeated after some millions.
std::vector<uint8_t> RandomBytes(cudaDataType_t type, int64_t count) {
  constexpr int64_t kDistinct = 5000011;
  if (count > kDistinct) {
    std::vector<uint8_t> all(static_cast<size_t>(count * BytesOf(type)));
    const std::vector<uint8_t> some = RandomBytes(type, kDistinct);
    for (size_t done = 0; done < all.size(); done += some.size()) {
      std::copy_n(some.begin(), std::min(some.size(), all.size() - done), all.begin() + done);
    }
    return all;
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(count * BytesOf(type)));
  uint32_t state = 1;
  for (size_t i = 0; i < bytes.size(); i += static_cast<size_t>(BytesOf(type))) {
    state = state * 1664525 + 1013904223;
    const uint32_t high = state >> 16;
    if (type == CUDA_R_8I) {
      bytes[i] = static_cast<uint8_t>(high);
    } else if (type == kE4m3) {
      bytes[i] = static_cast<uint8_t>((high & 0x80) | (0x28 + (high & 0x17)));
    } else {
      const uint32_t bits = type == CUDA_R_16BF ? (high & 0x8000) | (0x3e80 + (high & 0x17f))
                                                : (high & 0x8000) | (0x3400 + (high & 0xbff));
      bytes[i] = static_cast<uint8_t>(bits);
      bytes[i + 1] = static_cast<uint8_t>(bits >> 8);
    }
  }
  return bytes;
}

// One product y[n, n] = x w^T as cuBLASLt takes it.
class Product {
 public:
  Product(const Rate& rate, int64_t n, int64_t workspace_bytes) {
    cublasLtCreate(&handle_);
    const auto size = static_cast<uint64_t>(n);
    cublasLtMatmulDescCreate(&operation_, rate.compute, rate.scale);
    const int32_t transposed = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                   sizeof(transposed));
    cublasLtMatrixLayoutCreate(&in_, rate.type, size, size, n);
    cublasLtMatrixLayoutCreate(&out_, rate.out, size, size, n);
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulPreferenceCreate(&preference);
    const auto workspace = static_cast<uint64_t>(workspace_bytes);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace, sizeof(workspace));
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, operation_, in_, in_, out_, out_, preference, 1, &result, &found);
    exists_ = status == CUBLAS_STATUS_SUCCESS && found == 1;
    algorithm_ = result.algo;
    cublasLtMatmulPreferenceDestroy(preference);
  }
  ~Product() {
    cublasLtMatrixLayoutDestroy(in_);
    cublasLtMatrixLayoutDestroy(out_);
    cublasLtMatmulDescDestroy(operation_);
    cublasLtDestroy(handle_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  bool exists() const { return exists_; }
  // False if the library refuses.
  bool Run(const CudaContext& context, const Rate& rate, const void* x, const void* w, void* y) {
    const float one = 1, zero = 0;
    const int32_t one_i = 1, zero_i = 0;
    const bool whole = rate.scale == CUDA_R_32I;
    return cublasLtMatmul(handle_, operation_, whole ? static_cast<const void*>(&one_i) : &one, w,
                          in_, x, in_, whole ? static_cast<const void*>(&zero_i) : &zero, y, out_,
                          y, out_, &algorithm_, context.workspace,
                          static_cast<size_t>(context.workspace_bytes),
                          context.stream) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t in_ = nullptr, out_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
  bool exists_ = false;
};

// Operations per second; 0 where the library has no such product.
double MeasureRate(const CudaContext& context, const Rate& rate, int64_t n, int repeats) {
  Product product(rate, n, context.workspace_bytes);
  if (!product.exists()) return 0;
  const DeviceArray<uint8_t> x(RandomBytes(rate.type, n * n)), w(RandomBytes(rate.type, n * n)),
      y(n * n * BytesOf(rate.out));
  bool refused = false;
  const double s = Seconds(context, repeats, [&] {
    refused |= !product.Run(context, rate, x.data(), w.data(), y.data());
  });
  const auto size = static_cast<double>(n);
  return refused ? 0 : 2 * size * size * size / s;
}

double MeasureCopy(const CudaContext& context, int64_t bytes, int repeats) {
  const DeviceArray<uint8_t> from(RandomBytes(CUDA_R_8I, bytes)), to(bytes);
  const double s = Seconds(context, repeats, [&] {
    PERGOLA_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(bytes),
                                       cudaMemcpyDeviceToDevice, context.stream));
  });
  return 2 * static_cast<double>(bytes) / s;
}

double MeasureRead(const CudaContext& context, int64_t bytes, int repeats) {
  const DeviceArray<uint8_t> from(RandomBytes(CUDA_R_8I, bytes));
  const DeviceArray<uint32_t> out(1);
  const double s =
      Seconds(context, repeats, [&] { ReadMemoryCuda(context, from.data(), bytes, out.data()); });
  return static_cast<double>(bytes) / s;
}

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // as dense_product.h has
int64_t BandwidthBytes(bool tiny) {
  return tiny ? 1 << 16 : int64_t{1} << 30;
}
int64_t ProductSize(bool tiny) {
  return tiny ? 32 : 8192;
}

}  // namespace

Roofs MeasureRoofs(bool tiny) {
  const TestCudaContext context(kWorkspaceBytes);
  const int repeats = tiny ? 1 : 20;
  Roofs roofs;
  roofs.copy_bytes = MeasureCopy(context, BandwidthBytes(tiny), repeats);
  roofs.read_bytes = MeasureRead(context, BandwidthBytes(tiny), repeats);
  roofs.bf16_flops = MeasureRate(context, kRates[0], ProductSize(tiny), repeats);
  return roofs;
}

void ReportRoofs(bool tiny) {
  cudaDeviceProp properties;
  PERGOLA_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  int runtime = 0, driver = 0;
  PERGOLA_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  PERGOLA_CUDA_CHECK(cudaDriverGetVersion(&driver));
  Report("machine", "device",
         Text("%s, sm_%d%d, %d multiprocessors, %.0f GiB", properties.name, properties.major,
              properties.minor, properties.multiProcessorCount,
              static_cast<double>(properties.totalGlobalMem) * 0x1p-30),
         "", Verdict::kInfo);
  Report("machine", "versions",
         Text("CUDA %d.%d, the driver has %d.%d, cuBLASLt %zu", runtime / 1000, runtime % 1000 / 10,
              driver / 1000, driver % 1000 / 10, cublasLtGetVersion()),
         "", Verdict::kInfo);
  const TestCudaContext context(kWorkspaceBytes);
  const int repeats = tiny ? 1 : 20;
  const int64_t bytes = BandwidthBytes(tiny);
  Report("machine", "copy bandwidth, read + written",
         Text("%.0f GB/s", MeasureCopy(context, bytes, repeats) * 1e-9), "", Verdict::kInfo);
  Report("machine", "read bandwidth",
         Text("%.0f GB/s", MeasureRead(context, bytes, repeats) * 1e-9), "", Verdict::kInfo);
  for (const Rate& rate : kRates) {
    const double flops = MeasureRate(context, rate, ProductSize(tiny), repeats);
    const std::string what =
        Text("cuBLASLt %s, %lld^3", rate.name, static_cast<long long>(ProductSize(tiny)));
    if (flops > 0) {
      Report("machine", what, Text("%.0f T/s", flops * 1e-12), "", Verdict::kInfo);
    } else {
      Report("machine", what, "cuBLASLt has no such product here", "", Verdict::kSkipped);
    }
  }
}

}  // namespace pergola
