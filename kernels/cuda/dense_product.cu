// DenseProduct by cuBLASLt (NVIDIA, "cuBLAS library user guide", cublasLtMatmul). The library reads
// matrices by columns: y row-major [rows, outputs] is its D [outputs, rows] with leading dimension
// y_stride, w is its A [columns, outputs], transposed, x its B [columns, rows]. So the bias, one
// value per row of D, fits its epilogue, as does GELU, whose tanh form is the library's (PyTorch
// calls it so: pull request 104061). Where y is f32, for which a tanh of the hardware's would be
// too coarse, or the library does not have it beside the rest, a kernel here follows. A plan (the
// heuristic's first choice) is kept per shape, strides and alignment of the pointers; of a
// transformer these are few.
//
// Roof: the tensor cores' rate (f32: the vector units'), or the bytes of x, w and y, whichever is
// later; both are the library's to reach.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kInt8:
      return CUDA_R_8I;
    case DType::kI32:
      return CUDA_R_32I;
    case DType::kFp8:
      return CUDA_R_8F_E4M3;
    default:
      PERGOLA_CHECK(dtype == DType::kF32);
      return CUDA_R_32F;
  }
}

// The largest power of two up to 256 that divides the address.
uint32_t AlignmentOf(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(address & -address);
}

// Prompts have any number of rows: a bound on host memory (about a KiB each). Plans are on the host
// alone, so that work on the device outlives them.
constexpr size_t kMostPlans = 4096;

// Everything a plan depends on.
using Key = std::array<int64_t, 15>;
Key KeyOf(const DenseProductArgs& args, int64_t workspace_bytes) {
  return {static_cast<int64_t>(args.dtype),
          static_cast<int64_t>(args.y_dtype),
          args.rows,
          args.columns,
          args.outputs,
          args.x_stride,
          args.w_stride,
          args.y_stride,
          args.bias != nullptr ? 1 : 0,
          AlignmentOf(args.x),
          AlignmentOf(args.w),
          AlignmentOf(args.y),
          args.accumulate ? 1 : 0,
          args.gelu ? 1 : 0,
          workspace_bytes};
}

constexpr int kGeluThreads = 256;

// y = GELU of itself; a block takes a share of a row.
template <int kStep, typename Y>
__global__ void __launch_bounds__(kGeluThreads) GeluKernel(Y* y, int64_t stride, int64_t outputs) {
  BeginKernel();
  Y* row = y + blockIdx.x * stride;
  const int64_t first = (int64_t{blockIdx.y} * kGeluThreads + threadIdx.x) * kStep;
  for (int64_t i = first; i < outputs; i += int64_t{gridDim.y} * kGeluThreads * kStep) {
    float values[kStep];
    LoadFloats(row + i, values);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = Activated<Activation::kGeluTanh>(values[k]);
    StoreFloats(values, row + i);
  }
}

void Gelu(const CudaContext& context, const DenseProductArgs& args) {
  constexpr int64_t kShare = kGeluThreads * 4, kMostShares = 64;
  const int64_t shares = std::min((args.outputs + kShare - 1) / kShare, kMostShares);
  const dim3 grid(static_cast<unsigned>(args.rows), static_cast<unsigned>(shares));
  const bool fours = InFours(args.y, args.y_stride) && args.outputs % 4 == 0;
  WithFloatType(args.y_dtype, [&](auto type) {
    using Y = decltype(type);
    Launch(fours ? GeluKernel<4, Y> : GeluKernel<1, Y>, grid, kGeluThreads, 0, context,
           static_cast<Y*>(args.y), args.y_stride, args.outputs);
  });
}

uint32_t EpilogueOf(bool bias, bool gelu) {
  if (gelu) return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

// One shape's descriptors and algorithm.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const DenseProductArgs& args, int64_t workspace_bytes) {
    const bool integers = args.dtype == DType::kInt8;
    Call("cublasLtMatmulDescCreate", [&] {
      return cublasLtMatmulDescCreate(&operation_,
                                      integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                      integers ? CUDA_R_32I : CUDA_R_32F);
    });
    Set(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(CUBLAS_OP_T));
    Set(CUBLASLT_MATMUL_DESC_TRANSB, static_cast<int32_t>(CUBLAS_OP_N));
    if (args.bias != nullptr) {
      Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(TypeOf(args.y_dtype)));
    }
    if (args.dtype == DType::kFp8) {
      constexpr int32_t kPerRow = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kPerRow);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kPerRow);
    }
    SetPointers(args);
    const cudaDataType_t type = TypeOf(args.dtype);
    Layout(&w_, type, args.columns, args.outputs, args.w_stride);
    Layout(&x_, type, args.columns, args.rows, args.x_stride);
    Layout(&y_, TypeOf(args.y_dtype), args.outputs, args.rows, args.y_stride);
    ChooseWithEpilogue(handle, args, workspace_bytes);
  }
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {y_, x_, w_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Whether the library has it.
  bool found() const { return found_; }
  // What the library has refused, in its words; empty: nothing.
  const std::string& failure() const { return failure_; }

  void Run(cublasLtHandle_t handle, const CudaContext& context, const DenseProductArgs& args) {
    SetPointers(args);
    const float alpha = 1, beta = args.accumulate ? 1 : 0;
    const int32_t one = 1, added = args.accumulate ? 1 : 0;
    const bool integers = args.dtype == DType::kInt8;
    const void* times = integers ? static_cast<const void*>(&one) : &alpha;
    const void* plus = integers ? static_cast<const void*>(&added) : &beta;
    Call("cublasLtMatmul", [&] {
      return cublasLtMatmul(handle, operation_, times, args.w, w_, args.x, x_, plus, args.y, y_,
                            args.y, y_, &algorithm_, context.workspace,
                            static_cast<size_t>(context.workspace_bytes), context.stream);
    });
    EndOverlap(context);
    if (args.gelu && !gelu_ && failure_.empty()) Gelu(context, args);
  }

 private:
  // Nothing after a failure.
  template <typename Function>
  void Call(const char* what, Function call) {
    if (!failure_.empty()) return;
    const cublasStatus_t status = call();
    if (status == CUBLAS_STATUS_SUCCESS) return;
    failure_ = std::string(what) + ": " + cublasLtGetStatusString(status);
  }

  void ChooseWithEpilogue(cublasLtHandle_t handle, const DenseProductArgs& args,
                          int64_t workspace_bytes) {
    gelu_ = args.gelu && args.y_dtype != DType::kF32;
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, EpilogueOf(args.bias != nullptr, gelu_));
    cublasStatus_t status = Choose(handle, args, workspace_bytes);
    if (!found_ && gelu_) {
      gelu_ = false;
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, EpilogueOf(args.bias != nullptr, false));
      status = Choose(handle, args, workspace_bytes);
    }
    // Of eight bits it has what the device has.
    const bool lacks = status == CUBLAS_STATUS_SUCCESS || status == CUBLAS_STATUS_NOT_SUPPORTED ||
                       status == CUBLAS_STATUS_INVALID_VALUE ||
                       status == CUBLAS_STATUS_ARCH_MISMATCH;
    if (found_ || (HasRowScale(args.dtype) && lacks)) return;
    Call("cublasLtMatmulAlgoGetHeuristic", [&] { return status; });
    if (!failure_.empty()) return;
    failure_ = "cuBLASLt has no algorithm for " + std::to_string(args.rows) + " x " +
               std::to_string(args.columns) + " by " + std::to_string(args.outputs);
  }

  void SetPointers(const DenseProductArgs& args) {
    if (args.bias != nullptr) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
    if (args.dtype != DType::kFp8) return;
    Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(args.w_scales));
    Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(args.x_scales));
  }

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    Call("cublasLtMatmulDescSetAttribute", [&] {
      return cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value));
    });
  }

  void Layout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int64_t rows, int64_t columns,
              int64_t stride) {
    Call("cublasLtMatrixLayoutCreate", [&] {
      return cublasLtMatrixLayoutCreate(layout, type, static_cast<uint64_t>(rows),
                                        static_cast<uint64_t>(columns), stride);
    });
  }

  // The library's answer; OK where it was not asked after a failure.
  cublasStatus_t Choose(cublasLtHandle_t handle, const DenseProductArgs& args,
                        int64_t workspace_bytes) {
    cublasLtMatmulPreference_t preference = nullptr;
    Call("cublasLtMatmulPreferenceCreate",
         [&] { return cublasLtMatmulPreferenceCreate(&preference); });
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      Call("cublasLtMatmulPreferenceSetAttribute", [&] {
        return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
      });
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(args.w));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(args.x));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(args.y));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(args.y));
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (failure_.empty()) {
      status = cublasLtMatmulAlgoGetHeuristic(handle, operation_, w_, x_, y_, y_, preference, 1,
                                              &result, &count);
    }
    found_ = status == CUBLAS_STATUS_SUCCESS && count == 1;
    if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
    algorithm_ = result.algo;
    return status;
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
  bool found_ = false;
  bool gelu_ = false;  // the library applies it
  std::string failure_;
};

class CublasProduct : public DenseProduct {
 public:
  explicit CublasProduct(cublasLtHandle_t handle) : handle_(handle) {}
  ~CublasProduct() override {
    plans_.clear();
    cublasLtDestroy(handle_);
  }
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;

  bool Has(const CudaContext& context, const DenseProductArgs& args) override {
    if (args.rows == 0 || args.outputs == 0) return true;
    const Plan* plan = PlanOf(Limited(context), args);
    return plan != nullptr && plan->found();
  }
  void Multiply(const CudaContext& context, const DenseProductArgs& args) override {
    if (args.rows == 0 || args.outputs == 0) return;
    const CudaContext limited = Limited(context);
    Plan* plan = PlanOf(limited, args);
    if (plan == nullptr) return;
    plan->Run(handle_, limited, args);
    if (!plan->failure().empty()) KeepRefusal(context, plan->failure());
  }

 private:
  static CudaContext Limited(CudaContext context) {
    context.workspace_bytes = std::min(context.workspace_bytes, kDenseWorkspaceBytes);
    return context;
  }
  // nullptr where the library refuses to make one.
  Plan* PlanOf(const CudaContext& context, const DenseProductArgs& args) {
    if (plans_.size() >= kMostPlans) plans_.clear();
    std::unique_ptr<Plan>& plan = plans_[KeyOf(args, context.workspace_bytes)];
    if (plan == nullptr) plan = std::make_unique<Plan>(handle_, args, context.workspace_bytes);
    if (plan->failure().empty()) return plan.get();
    KeepRefusal(context, plan->failure());
    plans_.erase(KeyOf(args, context.workspace_bytes));
    return nullptr;
  }

  cublasLtHandle_t handle_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DenseProduct>> DenseProduct::Create() {
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return absl::UnavailableError(
        ToAbsl(std::string("cublasLtCreate: ") + cublasLtGetStatusString(status)));
  }
  return std::make_unique<CublasProduct>(handle);
}

}  // namespace pergola
