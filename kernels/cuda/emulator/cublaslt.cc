// The emulated cuBLASLt: see include/cublasLt.h. Sums run in ascending k, each product and each sum
// rounded by itself.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/stream.h"
#include "model/dtype.h"

struct cublasLtContext {
  int unused = 0;
};

struct cublasLtMatmulDescEmulated {
  int32_t compute = CUBLAS_COMPUTE_32F;
  int32_t scale = CUDA_R_32F;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N;
  int32_t transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int32_t bias_type = -1;  // -1: D's
  int32_t a_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int32_t b_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const float* a_scales = nullptr;
  const float* b_scales = nullptr;
  int32_t multiprocessors = 0;
};

struct cublasLtMatrixLayoutEmulated {
  uint32_t type = CUDA_R_32F;
  int32_t order = CUBLASLT_ORDER_COL;
  uint64_t rows = 0;
  uint64_t columns = 0;
  int64_t stride = 0;
  int32_t batch_count = 1;
  int64_t batch_stride = 0;
};

struct cublasLtMatmulPreferenceEmulated {
  uint64_t workspace_bytes = 0;
};

namespace pergola::emulator {
namespace {

using Layout = cublasLtMatrixLayoutEmulated;
using Operation = cublasLtMatmulDescEmulated;

template <typename T>
cublasStatus_t Assign(T* field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

int64_t Index(const Layout& layout, int64_t row, int64_t column, int64_t batch) {
  return batch * layout.batch_stride + (layout.order == CUBLASLT_ORDER_COL
                                            ? column * layout.stride + row
                                            : row * layout.stride + column);
}

float Load(uint32_t type, const void* data, int64_t i) {
  switch (type) {
    case CUDA_R_16F:
      return static_cast<const __half*>(data)[i];
    case CUDA_R_16BF:
      return static_cast<const __nv_bfloat16*>(data)[i];
    case CUDA_R_8F_E4M3:
      return E4M3ToF32(static_cast<const uint8_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

void Store(uint32_t type, float value, void* data, int64_t i) {
  switch (type) {
    case CUDA_R_16F:
      static_cast<__half*>(data)[i] = value;
      break;
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(data)[i] = value;
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

// GELU's tanh form (Hendrycks and Gimpel, arXiv:1606.08415), which cuBLASLt documents.
float Gelu(float x) {
  return 0.5F * x * (1.0F + std::tanh(0.7978845608F * (x + 0.044715F * x * x * x)));
}

struct Product {
  Operation operation;
  Layout a_layout, b_layout, c_layout, d_layout;
  const void *a, *b, *c;
  void* d;
  float alpha, beta;
  int32_t alpha_int, beta_int;

  int64_t rows() const { return static_cast<int64_t>(d_layout.rows); }
  int64_t columns() const { return static_cast<int64_t>(d_layout.columns); }
  int64_t depth() const {
    return static_cast<int64_t>(operation.transpose_a == CUBLAS_OP_N ? a_layout.columns
                                                                     : a_layout.rows);
  }
  int64_t IndexA(int64_t row, int64_t k, int64_t batch) const {
    return operation.transpose_a == CUBLAS_OP_N ? Index(a_layout, row, k, batch)
                                                : Index(a_layout, k, row, batch);
  }
  int64_t IndexB(int64_t k, int64_t column, int64_t batch) const {
    return operation.transpose_b == CUBLAS_OP_N ? Index(b_layout, k, column, batch)
                                                : Index(b_layout, column, k, batch);
  }

  void Element(int64_t batch, int64_t row, int64_t column) const {
    float sum = 0;
    for (int64_t k = 0; k < depth(); ++k) {
      sum += Load(a_layout.type, a, IndexA(row, k, batch)) *
             Load(b_layout.type, b, IndexB(k, column, batch));
    }
    float value = alpha * sum;
    if (operation.a_scales != nullptr) value *= operation.a_scales[row];
    if (operation.b_scales != nullptr) value *= operation.b_scales[column];
    if (beta != 0) value += beta * Load(c_layout.type, c, Index(c_layout, row, column, batch));
    if ((operation.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0) {
      value += Load(d_layout.type, operation.bias, row);
    }
    if ((operation.epilogue & CUBLASLT_EPILOGUE_RELU) != 0) value = std::fmax(value, 0.0F);
    if ((operation.epilogue & CUBLASLT_EPILOGUE_GELU) != 0) value = Gelu(value);
    Store(d_layout.type, value, d, Index(d_layout, row, column, batch));
  }

  void ElementInt(int64_t batch, int64_t row, int64_t column) const {
    int32_t sum = 0;
    for (int64_t k = 0; k < depth(); ++k) {
      sum += static_cast<const int8_t*>(a)[IndexA(row, k, batch)] *
             static_cast<const int8_t*>(b)[IndexB(k, column, batch)];
    }
    int32_t value = alpha_int * sum;
    const int64_t c_index = Index(c_layout, row, column, batch);
    if (beta_int != 0) value += beta_int * static_cast<const int32_t*>(c)[c_index];
    static_cast<int32_t*>(d)[Index(d_layout, row, column, batch)] = value;
  }

  void Run() const {
    for (int64_t batch = 0; batch < d_layout.batch_count; ++batch) {
      for (int64_t column = 0; column < columns(); ++column) {
        for (int64_t row = 0; row < rows(); ++row) {
          if (operation.compute == CUBLAS_COMPUTE_32I) {
            ElementInt(batch, row, column);
          } else {
            Element(batch, row, column);
          }
        }
      }
    }
  }
};

bool IsFloat(uint32_t type) {
  return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

// GELU and ReLU come after the bias ("added before applying the final postprocessing").
bool IsEpilogue(uint32_t epilogue) {
  switch (epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
      return true;
    default:
      return false;
  }
}

// The library wants a Hopper, e4m3 by columns of whole 16 bytes, and 16-bit results; the scales of
// whole matrices are not here. Whether it has GELU beside scales per row is not written: here not,
// so that callers do without.
bool SupportsE4M3(const Operation& o, const Layout& a, const Layout& b, const Layout& d) {
  constexpr int32_t kVector = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  const bool halves = d.type == CUDA_R_16F || d.type == CUDA_R_16BF;
  if ((o.epilogue & CUBLASLT_EPILOGUE_GELU) != 0) return false;
  return GetDeviceModel().major == 9 && b.type == CUDA_R_8F_E4M3 && halves &&
         o.transpose_a == CUBLAS_OP_T && o.transpose_b == CUBLAS_OP_N &&
         o.a_scale_mode == kVector && o.b_scale_mode == kVector && o.a_scales != nullptr &&
         o.b_scales != nullptr && a.rows % 16 == 0 && a.columns % 16 == 0 && a.stride % 16 == 0 &&
         b.stride % 16 == 0 && d.stride % 8 == 0;
}

bool StrideFits(const Layout& layout) {
  const uint64_t least = layout.order == CUBLASLT_ORDER_COL ? layout.rows : layout.columns;
  return layout.stride >= static_cast<int64_t>(least);
}

cublasStatus_t CheckTypes(const Operation& o, const Layout& a, const Layout& b, const Layout& c,
                          const Layout& d) {
  if (o.pointer_mode != CUBLASLT_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
  // The bias has D's type (CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE; what is excepted is not here).
  const bool own_bias = o.bias_type < 0 || static_cast<uint32_t>(o.bias_type) == d.type;
  if (!IsEpilogue(o.epilogue) || !own_bias) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (o.compute == CUBLAS_COMPUTE_32I) {
    // The library wants the depth contiguous in both, and multiples of 4, as are rows of D.
    const bool supported =
        a.type == CUDA_R_8I && b.type == CUDA_R_8I && c.type == CUDA_R_32I &&
        d.type == CUDA_R_32I && o.scale == CUDA_R_32I && o.epilogue == CUBLASLT_EPILOGUE_DEFAULT &&
        o.transpose_a == CUBLAS_OP_T && o.transpose_b == CUBLAS_OP_N && a.rows % 4 == 0 &&
        a.columns % 4 == 0 && a.stride % 4 == 0 && b.stride % 4 == 0 && d.stride % 4 == 0;
    return supported ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const bool f32 = o.compute == CUBLAS_COMPUTE_32F || o.compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                   o.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  if (a.type == CUDA_R_8F_E4M3) {
    const bool plain = o.compute == CUBLAS_COMPUTE_32F && o.scale == CUDA_R_32F;
    return plain && c.type == d.type && SupportsE4M3(o, a, b, d) ? CUBLAS_STATUS_SUCCESS
                                                                 : CUBLAS_STATUS_NOT_SUPPORTED;
  }
  // Scales are of eight-bit floats alone.
  if (o.a_scales != nullptr || o.b_scales != nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const bool supported = f32 && o.scale == CUDA_R_32F && IsFloat(a.type) && a.type == b.type &&
                         c.type == d.type && (d.type == a.type || d.type == CUDA_R_32F);
  return supported ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t Check(const Operation& o, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d) {
  const bool plain_a = o.transpose_a == CUBLAS_OP_N, plain_b = o.transpose_b == CUBLAS_OP_N;
  const bool fits = (plain_a ? a.rows : a.columns) == d.rows &&
                    (plain_b ? b.columns : b.rows) == d.columns &&
                    (plain_a ? a.columns : a.rows) == (plain_b ? b.rows : b.columns) &&
                    c.rows == d.rows && c.columns == d.columns && a.batch_count == d.batch_count &&
                    b.batch_count == d.batch_count && c.batch_count == d.batch_count &&
                    StrideFits(a) && StrideFits(b) && StrideFits(c) && StrideFits(d);
  return fits ? CheckTypes(o, a, b, c, d) : CUBLAS_STATUS_INVALID_VALUE;
}

}  // namespace
}  // namespace pergola::emulator

using pergola::emulator::Assign;
using pergola::emulator::FailingCall;

namespace {

// What a call must give now because a test wants it (emulator.h, FailCall).
cublasStatus_t FailureOf(FailingCall call) {
  return static_cast<cublasStatus_t>(pergola::emulator::TakeFailure(call));
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "a cuBLAS error";
  }
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return cublasLtGetStatusName(status);
}

size_t cublasLtGetVersion() {
  return 130000;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  *handle = new cublasLtContext();
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation,
                                        cublasComputeType_t compute, cudaDataType_t scale) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  *operation = new cublasLtMatmulDescEmulated();
  (*operation)->compute = compute;
  (*operation)->scale = scale;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  delete operation;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return Assign(&operation->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return Assign(&operation->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return Assign(&operation->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Assign(&operation->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return Assign(&operation->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return Assign(&operation->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return Assign(&operation->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return Assign(&operation->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return Assign(&operation->a_scales, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return Assign(&operation->b_scales, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return Assign(&operation->a_scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return Assign(&operation->b_scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return Assign(&operation->multiprocessors, value, bytes);
  }
  return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  *layout = new cublasLtMatrixLayoutEmulated();
  (*layout)->type = type;
  (*layout)->rows = rows;
  (*layout)->columns = columns;
  (*layout)->stride = stride;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return Assign(&layout->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return Assign(&layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return Assign(&layout->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return Assign(&layout->columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return Assign(&layout->stride, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return Assign(&layout->batch_count, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return Assign(&layout->batch_stride, value, bytes);
  }
  return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  *preference = new cublasLtMatmulPreferenceEmulated();
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    return Assign(&preference->workspace_bytes, value, bytes);
  }
  return CUBLAS_STATUS_SUCCESS;  // advice that plain loops do not need
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  if (handle == nullptr || preference == nullptr || wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t failure = FailureOf(FailingCall::kPlan);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  const cublasStatus_t status = pergola::emulator::Check(*operation, *a, *b, *c, *d);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  results[0] = {};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* /*algo*/,
                              void* /*workspace*/, size_t /*workspace_bytes*/,
                              cudaStream_t stream) {
  if (handle == nullptr || alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t failure = FailureOf(FailingCall::kProduct);
  if (failure != CUBLAS_STATUS_SUCCESS) return failure;
  const cublasStatus_t status =
      pergola::emulator::Check(*operation, *a_layout, *b_layout, *c_layout, *d_layout);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const bool biased = (operation->epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
  if (biased && operation->bias == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  // What eight-bit loads want.
  if (a_layout->type == CUDA_R_8F_E4M3 || a_layout->type == CUDA_R_8I) {
    const uintptr_t unit = a_layout->type == CUDA_R_8I ? 4 : 16;
    const auto at = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
    if (((at(a) | at(b) | at(d) | at(operation->a_scales) | at(operation->b_scales)) % unit) != 0) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
  }
  pergola::emulator::Product product = {
      *operation, *a_layout, *b_layout, *c_layout, *d_layout, a, b, c, d, 0, 0, 0, 0};
  if (operation->scale == CUDA_R_32I) {
    std::memcpy(&product.alpha_int, alpha, sizeof(int32_t));
    std::memcpy(&product.beta_int, beta, sizeof(int32_t));
  } else {
    std::memcpy(&product.alpha, alpha, sizeof(float));
    std::memcpy(&product.beta, beta, sizeof(float));
  }
  const cudaError_t error = pergola::emulator::Enqueue(stream, [product] { product.Run(); });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
