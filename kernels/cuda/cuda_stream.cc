#include "kernels/cuda/cuda_stream.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul.h"
#include "kernels/decoder_ops.h"

namespace pergola {
namespace {

// Turing: the oldest that CUDA 13 compiles for.
constexpr int kOldestCapability = 75;
constexpr int kFirstWithBf16 = 80;
constexpr int kFirstWithOverlap = 90;  // of kernels: programmatic dependent launch

// Eight-bit weights multiply the activations as they are: the bytes are the same, the numbers
// better, and prompts go through a dense product of decoded tiles.
constexpr CudaInt8Product kInt8 = CudaInt8Product::kActivations;
// Products change their way about here, and with it their scratch.
constexpr int64_t kMostStreamedRows = 32;

CudaMatrix MatrixOf(const PackedMatrix& matrix) {
  return {matrix.dtype(), matrix.rows(), matrix.columns(), matrix.lead(), matrix.data()};
}

// 12040 is 12.4.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

class CudaRecording final : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph_(graph) {}
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;
  ~CudaRecording() override { static_cast<void>(cudaGraphExecDestroy(graph_)); }
  cudaGraphExec_t graph() const { return graph_; }

 private:
  const cudaGraphExec_t graph_;
};

class CudaStream final : public Stream {
 public:
  CudaStream(int device, CpuStream& host) : device_(device), host_(host) {}
  ~CudaStream() override;

  // Called once, before anything else.
  absl::Status Open();

  Device device() const override { return Device::kCuda; }
  std::string name() const override {
    return absl::StrCat("cuda sm_", context_.compute_capability);
  }
  DType ActivationFor(DType weights) const override {
    const bool has = weights != DType::kBF16 || context_.compute_capability >= kFirstWithBf16;
    return has ? weights : DType::kF16;
  }
  CpuStream& host() override { return host_; }
  void Run(const char* op, const std::function<void(const CudaContext&)>& launch) {
    if (!status_.ok()) return;
    launch(context_);
    CheckRefusal(op);
  }
  void Watch(std::function<absl::Status()> watch) { watch_ = std::move(watch); }
  CudaHandle handle() const { return {context_.stream, device_}; }

  int64_t TotalBytes() const override { return total_bytes_; }
  int64_t WorkspaceBytes(const WorkspaceShape& shape) const override;
  void UseWorkspace(uint8_t* memory, int64_t bytes) override {
    context_.workspace = memory;
    context_.workspace_bytes = bytes;
  }
  uint8_t* Allocate(int64_t bytes, Place place) override;
  void Free(uint8_t* memory, Place place) override;
  int64_t AvailableBytes() const override;
  void CopyToDevice(void* to, const void* from, int64_t bytes) override;
  void CopyToHost(void* to, const void* from, int64_t bytes) override;
  bool Idle() override;
  absl::Status Synchronize() override;
  bool records() const override { return true; }
  void BeginRecording() override;
  std::unique_ptr<Recording> EndRecording() override;
  void Replay(const Recording& recording) override;

  void Run(const EmbeddingArgs& args) override;
  void Run(const RmsNormArgs& args) override { Enqueue("RMS norm", RmsNormCuda, args); }
  void Run(const LayerNormArgs& args) override { Enqueue("layer norm", LayerNormCuda, args); }
  void Run(const HeadNormArgs& args) override { Enqueue("norm of the heads", HeadNormCuda, args); }
  void Run(const RopeAndStoreArgs& args) override {
    Enqueue("rotation and KV store", RopeAndStoreCuda, args);
  }
  void Run(const AttentionArgs& args) override { Enqueue("attention", PagedAttentionCuda, args); }
  void Run(const ActivateArgs& args) override { Enqueue("activation", ActivateCuda, args); }
  void Run(const SoftCapArgs& args) override { Enqueue("soft cap", SoftCapCuda, args); }
  void Run(const AddArgs& args) override { Enqueue("addition", AddCuda, args); }
  void Run(const CopyRowsArgs& args) override { Enqueue("copy of rows", CopyRowsCuda, args); }
  void Run(const CopyColumnsArgs& args) override {
    Enqueue("copy of columns", CopyColumnsCuda, args);
  }
  void Run(const ScatterArgs& args) override { Enqueue("scatter", ScatterCuda, args); }
  void Run(const CopyBlockArgs& args) override { Enqueue("copy of a block", CopyBlockCuda, args); }
  void Run(const MatmulArgs& args) override;

 private:
  template <typename Args>
  void Enqueue(const char* op, void (*launch)(const CudaContext&, const Args&), const Args& args) {
    if (!status_.ok()) return;
    launch(context_, args);
    CheckRefusal(op);
  }
  // A refused launch becomes the stream's error.
  void CheckRefusal(const char* op) {
    if (!refusal_.refused || !status_.ok()) return;
    status_ =
        absl::InternalError(absl::StrCat("CUDA device ", device_, ": ", op, ": ", refusal_.text));
  }
  // Remembers the first error.
  void Check(cudaError_t error, const char* what);

  const int device_;
  CpuStream& host_;
  CudaContext context_ = {};
  bool after_kernel_ = false;
  int64_t total_bytes_ = 0;
  std::unique_ptr<DenseProduct> dense_;
  LaunchRefusal refusal_;
  absl::Status status_;
  std::function<absl::Status()> watch_;  // of what kernels tell beside CUDA's errors
};

CudaStream::~CudaStream() {
  // Nothing can be done about errors here; the memory goes with the process at the latest.
  if (context_.stream != nullptr) static_cast<void>(cudaStreamDestroy(context_.stream));
}

void CudaStream::Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess || !status_.ok()) return;
  const std::string text =
      absl::StrCat("CUDA device ", device_, ": ", what, ": ", cudaGetErrorString(error), " (",
                   cudaGetErrorName(error), ")");
  status_ = error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                               : absl::InternalError(text);
}

absl::Status CudaStream::Open() {
  ASSIGN_OR_RETURN(const int count, CudaDevices());
  if (device_ < 0 || device_ >= count) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA device ", device_, " is not one of the ",
                                                   count, " of this machine, 0 to ", count - 1));
  }
  Check(cudaSetDevice(device_), "selecting it");
  cudaDeviceProp properties = {};
  Check(cudaGetDeviceProperties(&properties, device_), "reading its properties");
  RETURN_IF_ERROR(status_);
  context_.refusal = &refusal_;
  context_.compute_capability = properties.major * 10 + properties.minor;
  context_.multiprocessors = properties.multiProcessorCount;
  if (context_.compute_capability < kOldestCapability) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", device_, " (", properties.name, ") has compute capability ",
        properties.major, ".", properties.minor, "; the oldest that is supported is 7.5 (Turing)"));
  }
  if (context_.compute_capability >= kFirstWithOverlap) context_.after_kernel = &after_kernel_;
  total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  ASSIGN_OR_RETURN(dense_, DenseProduct::Create());
  context_.dense = dense_.get();
  Check(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking), "making a stream");
  return status_;
}

int64_t CudaStream::WorkspaceBytes(const WorkspaceShape& shape) const {
  const int64_t group = std::min(shape.heads, kAttentionGroupHeads);
  int64_t bytes = PagedAttentionWorkspaceBytes(context_.multiprocessors, group, shape.head_dim);
  for (const WorkspaceShape::Matrix& matrix : shape.matrices) {
    const CudaMatrix weights{matrix.dtype, matrix.rows, matrix.columns, matrix.lead, nullptr};
    for (const int64_t rows : {std::min(shape.step_rows, kMostStreamedRows), shape.step_rows}) {
      bytes = std::max(bytes, MatmulCudaWorkspaceBytes(weights, shape.activation, rows, kInt8));
    }
  }
  return bytes;
}

void CudaStream::Run(const EmbeddingArgs& args) {
  CudaEmbeddingArgs cuda;
  cuda.table = MatrixOf(*args.table);
  cuda.first_row = args.first_row;
  cuda.ids = args.ids;
  cuda.scale = args.scale;
  cuda.accumulate = args.accumulate;
  cuda.y = args.y;
  Enqueue("embedding", EmbeddingCuda, cuda);
}

void CudaStream::Run(const MatmulArgs& args) {
  CudaMatmulArgs cuda;
  cuda.x = args.x;
  cuda.w = MatrixOf(*args.w);
  cuda.bias = args.bias;
  cuda.accumulate = args.accumulate;
  cuda.y = args.y;
  cuda.int8_product = kInt8;
  Enqueue("matrix product", MatmulCuda, cuda);
}

uint8_t* CudaStream::Allocate(int64_t bytes, Place place) {
  if (bytes == 0 || !status_.ok()) return nullptr;
  void* memory = nullptr;
  const auto size = static_cast<size_t>(bytes);
  if (place == Place::kPinned) {
    const std::string what = absl::StrCat("allocating ", bytes, " bytes of pinned memory");
    Check(cudaMallocHost(&memory, size), what.c_str());
    if (status_.ok()) std::fill_n(static_cast<uint8_t*>(memory), bytes, 0);
  } else {
    const std::string what = absl::StrCat("allocating ", bytes, " bytes");
    Check(cudaMalloc(&memory, size), what.c_str());
    EndOverlap(context_);
    if (status_.ok()) Check(cudaMemsetAsync(memory, 0, size, context_.stream), "clearing memory");
  }
  return static_cast<uint8_t*>(memory);
}

void CudaStream::Free(uint8_t* memory, Place place) {
  Check(place == Place::kPinned ? cudaFreeHost(memory) : cudaFree(memory), "freeing memory");
}

int64_t CudaStream::AvailableBytes() const {
  size_t available = 0, total = 0;
  if (cudaMemGetInfo(&available, &total) != cudaSuccess) return 0;
  return static_cast<int64_t>(available);
}

void CudaStream::CopyToDevice(void* to, const void* from, int64_t bytes) {
  if (bytes == 0 || !status_.ok()) return;
  EndOverlap(context_);
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                        context_.stream),
        "copying to it");
}

void CudaStream::CopyToHost(void* to, const void* from, int64_t bytes) {
  if (bytes == 0 || !status_.ok()) return;
  EndOverlap(context_);
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                        context_.stream),
        "copying from it");
}

bool CudaStream::Idle() {
  if (!status_.ok()) return true;
  const cudaError_t state = cudaStreamQuery(context_.stream);
  if (state == cudaErrorNotReady) {
    // It is no error, but the next check of a launch would take it for one.
    static_cast<void>(cudaGetLastError());
    return false;
  }
  Check(state, "waiting for it");
  return true;
}

absl::Status CudaStream::Synchronize() {
  CheckRefusal("an op");
  if (status_.ok()) Check(cudaStreamSynchronize(context_.stream), "waiting for it");
  if (status_.ok() && watch_) {
    status_ = Prefixed(watch_(), ToStd(absl::StrCat("CUDA device ", device_)));
  }
  return status_;
}

void CudaStream::BeginRecording() {
  if (!status_.ok()) return;
  EndOverlap(context_);
  Check(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal),
        "beginning to record a step");
}

std::unique_ptr<Recording> CudaStream::EndRecording() {
  if (!status_.ok()) return nullptr;
  EndOverlap(context_);
  cudaGraph_t graph = nullptr;
  Check(cudaStreamEndCapture(context_.stream, &graph), "recording a step");
  cudaGraphExec_t ready = nullptr;
  if (status_.ok()) Check(cudaGraphInstantiate(&ready, graph, 0), "preparing a recorded step");
  if (graph != nullptr) Check(cudaGraphDestroy(graph), "recording a step");
  if (ready == nullptr) return nullptr;
  return std::make_unique<CudaRecording>(ready);
}

void CudaStream::Replay(const Recording& recording) {
  if (!status_.ok()) return;
  EndOverlap(context_);
  Check(cudaGraphLaunch(static_cast<const CudaRecording&>(recording).graph(), context_.stream),
        "replaying a step");
}

}  // namespace

CudaHandle CudaHandleOf(Stream& stream) {
  PERGOLA_CHECK(stream.device() == Device::kCuda);
  return static_cast<CudaStream&>(stream).handle();
}

void RunOnCuda(Stream& stream, const char* op,
               const std::function<void(const CudaContext&)>& launch) {
  PERGOLA_CHECK(stream.device() == Device::kCuda);
  static_cast<CudaStream&>(stream).Run(op, launch);
}

void WatchCudaStream(Stream& stream, std::function<absl::Status()> watch) {
  PERGOLA_CHECK(stream.device() == Device::kCuda);
  static_cast<CudaStream&>(stream).Watch(std::move(watch));
}

absl::StatusOr<int> CudaDevices() {
  int count = 0, driver = 0, needed = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaSuccess && count > 0) return count;
  const char* none = "this machine has no CUDA device: ";
  if (counted != cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(absl::StrCat(
        none, counted == cudaSuccess ? "the driver lists none" : cudaGetErrorString(counted)));
  }
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&needed));
  if (driver == 0) return absl::FailedPreconditionError(absl::StrCat(none, "it has no driver"));
  return absl::FailedPreconditionError(
      absl::StrCat("the NVIDIA driver supports CUDA ", VersionText(driver), "; this program needs ",
                   VersionText(needed), ": install a newer driver"));
}

int CudaDeviceCount() {
  return CudaDevices().value_or(0);
}

absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int index, CpuStream& host) {
  auto stream = std::make_unique<CudaStream>(index, host);
  RETURN_IF_ERROR(stream->Open());
  return std::unique_ptr<Stream>(std::move(stream));
}

}  // namespace pergola
