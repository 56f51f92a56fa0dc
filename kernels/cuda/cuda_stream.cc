#include "kernels/cuda/cuda_stream.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
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
#include "kernels/cuda/cuda_sampler.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/device_arena.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/stream_parts.h"
#include "kernels/decoder_ops.h"

namespace pergola {
namespace {

// Turing: the oldest that CUDA 13 compiles for.
constexpr int kOldestCapability = 75;
constexpr int kFirstWithBf16 = 80;
constexpr int kFirstWithOverlap = 90;  // of kernels: programmatic dependent launch

// Few rows by weights of eight bits are bound by the weights' bytes, which are the same whatever
// they multiply: there tokens stay as they are, and the numbers better. Many rows, prompts, are
// bound by the tensor cores, which multiply eight bits twice as fast. What a row is multiplied as
// changes its bits with the number of rows, as the other ways of MatmulCuda do.
CudaTokens TokensOf(int64_t rows) {
  return rows > kMostStreamedRows ? CudaTokens::kEightBits : CudaTokens::kAsTheyAre;
}
// Products change their way about here, and with it their scratch.
constexpr int64_t kWaysChange[] = {32, kMostStreamedRows, INT64_MAX};

// Of a wait for an event before the thread sleeps: a few times what waking it takes.
constexpr std::chrono::microseconds kBusyWait{500};

CudaMatrix MatrixOf(const PackedMatrix& matrix) {
  return {matrix.dtype(), matrix.rows(), matrix.columns(), matrix.lead(), matrix.data()};
}

CudaMatmulArgs ProductOf(const MatmulArgs& args) {
  CudaMatmulArgs cuda;
  cuda.x = args.x;
  cuda.w = MatrixOf(*args.w);
  cuda.bias = args.bias;
  cuda.accumulate = args.accumulate;
  cuda.gelu = args.activation == Activation::kGeluTanh;
  cuda.y = args.y;
  cuda.tokens = TokensOf(args.x.dim(0));
  return cuda;
}

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
  std::string where() const override { return absl::StrCat("CUDA device ", device_); }
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
  absl::Status Reserve(int64_t bytes) override;
  int64_t ReservedBytesLeft() const override { return arena_.bytes_left(); }
  void Seal() override { sealed_ = true; }
  uint8_t* Allocate(int64_t bytes, Place place) override;
  void Free(uint8_t* memory, Place place) override;
  int64_t AvailableBytes() const override;
  void CopyToDevice(void* to, const void* from, int64_t bytes) override;
  void CopyToHost(void* to, const void* from, int64_t bytes) override;
  bool Idle() override;
  absl::Status Synchronize() override;
  std::unique_ptr<StreamEvent> MakeEvent() override;
  void Record(StreamEvent& event) override;
  bool Reached(StreamEvent& event) override;
  absl::Status Wait(StreamEvent& event) override;
  DeviceSamplerBytes SamplerBytes(const DeviceSamplerShape& shape) const override {
    return CudaSampler::Bytes(shape, host_.threads());
  }
  absl::StatusOr<std::unique_ptr<DeviceSampler>> MakeSampler(
      const DeviceSamplerShape& shape) override {
    return CudaSampler::Create(shape, context_, *this);
  }
  bool records() const override { return true; }
  void BeginRecording() override;
  absl::StatusOr<std::unique_ptr<Recording>> EndRecording() override;
  void Replay(const Recording& recording) override;
  int64_t RecordedBytes() const override { return recorded_bytes_; }

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
  void Run(const TakeTokensArgs& args) override { Enqueue("taking tokens", TakeTokensCuda, args); }
  void Run(const CopyBlockArgs& args) override { Enqueue("copy of a block", CopyBlockCuda, args); }
  void Run(const MatmulArgs& args) override;
  bool RunAsOne(const RmsNormArgs& norm, const MatmulArgs& product) override {
    return MultiplyTokensOf(norm, norm.x.dtype() == DType::kF32, NormTokensCuda, product);
  }
  bool RunAsOne(const LayerNormArgs& norm, const MatmulArgs& product) override {
    return MultiplyTokensOf(norm, norm.x.dtype() == DType::kF32, NormTokensCuda, product);
  }
  bool RunAsOne(const ActivateArgs& activate, const MatmulArgs& product) override {
    return MultiplyTokensOf(activate, activate.gated, ActivateTokensCuda, product);
  }

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
    status_ = absl::InternalError(absl::StrCat(where(), ": ", op, ": ", refusal_.text));
  }
  // The op that makes tokens in eight bits of what it would write, if it `has` such a kernel, and
  // their product; false, and nothing is done, if the product does not take such tokens.
  template <typename Args>
  bool MultiplyTokensOf(const Args& args, bool has,
                        void (*op)(const CudaContext&, const Args&, const TokensView&),
                        const MatmulArgs& product);
  void Multiply(const MatmulArgs& args, bool tokens_made);
  // Remembers the first error.
  void Check(cudaError_t error, const char* what);
  absl::Status AskWatch();
  uint8_t* AllocatePinned(int64_t bytes);
  uint8_t* AllocateOnDevice(int64_t bytes);

  const int device_;
  CpuStream& host_;
  CudaContext context_ = {};
  bool after_kernel_ = false;
  int64_t total_bytes_ = 0;
  int64_t recorded_bytes_ = 0;
  DeviceArena arena_;
  bool sealed_ = false;
  std::unique_ptr<DenseProduct> dense_;
  LaunchRefusal refusal_;
  absl::Status status_;
  std::function<absl::Status()> watch_;  // of what kernels tell beside CUDA's errors
};

CudaStream::~CudaStream() {
  // Nothing can be done about errors here; the memory goes with the process at the latest.
  for (uint8_t* memory : arena_.All()) static_cast<void>(cudaFree(memory));
  if (context_.stream != nullptr) static_cast<void>(cudaStreamDestroy(context_.stream));
}

void CudaStream::Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess || !status_.ok()) return;
  const std::string text = absl::StrCat(where(), ": ", what, ": ", CudaWords(error));
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
    return absl::FailedPreconditionError(
        absl::StrCat(where(), " (", properties.name, ") has compute capability ", properties.major,
                     ".", properties.minor, "; the oldest that is supported is 7.5 (Turing)"));
  }
  if (context_.compute_capability >= kFirstWithOverlap) context_.after_kernel = &after_kernel_;
  total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  auto dense = DenseProduct::Create();
  RETURN_IF_ERROR(Prefixed(dense.status(), where()));
  dense_ = std::move(dense).value();
  context_.dense = dense_.get();
  Check(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking), "making a stream");
  return status_;
}

int64_t CudaStream::WorkspaceBytes(const WorkspaceShape& shape) const {
  const int64_t group = std::min(shape.heads, kAttentionGroupHeads);
  int64_t bytes = PagedAttentionWorkspaceBytes(context_.multiprocessors, group, shape.head_dim);
  for (const WorkspaceShape::Matrix& matrix : shape.matrices) {
    const CudaMatrix weights{matrix.dtype, matrix.rows, matrix.columns, matrix.lead, nullptr};
    for (const int64_t most : kWaysChange) {
      const int64_t rows = std::min(shape.step_rows, most);
      bytes = std::max(bytes,
                       MatmulCudaWorkspaceBytes(weights, shape.activation, rows, TokensOf(rows)));
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
  Multiply(args, /*tokens_made=*/false);
}

void CudaStream::Multiply(const MatmulArgs& args, bool tokens_made) {
  CudaMatmulArgs cuda = ProductOf(args);
  cuda.tokens_made = tokens_made;
  Enqueue("matrix product", MatmulCuda, cuda);
  if (!args.activation.has_value() || cuda.gelu) return;
  Enqueue("activation", ActivateCuda, ActivateArgs{*args.activation, false, args.y, args.y});
}

template <typename Args>
bool CudaStream::MultiplyTokensOf(const Args& args, bool has,
                                  void (*op)(const CudaContext&, const Args&, const TokensView&),
                                  const MatmulArgs& product) {
  if (!status_.ok() || !has || product.w->columns() > kMostRowTokenColumns) return false;
  const CudaMatmulArgs cuda = ProductOf(product);
  const bool takes = MultipliesEightBitTokens(context_, cuda);
  CheckRefusal("matrix product");
  if (!takes) return false;
  op(context_, args, TokensOfProduct(context_, cuda));
  CheckRefusal("making tokens in eight bits");
  Multiply(product, /*tokens_made=*/true);
  return true;
}

absl::Status CudaStream::Reserve(int64_t bytes) {
  RETURN_IF_ERROR(status_);
  if (uint8_t* unused = arena_.Replace(nullptr, 0); unused != nullptr) {
    Check(cudaFree(unused), "freeing memory");
  }
  if (bytes == 0) return status_;
  void* memory = nullptr;
  const std::string what = absl::StrCat("reserving ", bytes, " bytes");
  Check(cudaMalloc(&memory, static_cast<size_t>(bytes)), what.c_str());
  RETURN_IF_ERROR(status_);
  EndOverlap(context_);
  Check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), context_.stream), "clearing memory");
  arena_.Replace(static_cast<uint8_t*>(memory), bytes);
  return status_;
}

uint8_t* CudaStream::AllocatePinned(int64_t bytes) {
  void* memory = nullptr;
  const std::string what = absl::StrCat("allocating ", bytes, " bytes of pinned memory");
  Check(cudaMallocHost(&memory, static_cast<size_t>(bytes)), what.c_str());
  if (status_.ok()) std::fill_n(static_cast<uint8_t*>(memory), bytes, 0);
  return static_cast<uint8_t*>(memory);
}

uint8_t* CudaStream::AllocateOnDevice(int64_t bytes) {
  if (arena_.reserved()) {
    if (uint8_t* piece = arena_.Cut(bytes); piece != nullptr) return piece;
    status_ = absl::ResourceExhaustedError(
        absl::StrCat(where(), ": ", bytes, " bytes are wanted, and ", arena_.bytes_left(),
                     " are left of the ", arena_.bytes(), " that are planned"));
    return nullptr;
  }
  void* memory = nullptr;
  const auto size = static_cast<size_t>(bytes);
  const std::string what = absl::StrCat("allocating ", bytes, " bytes");
  Check(cudaMalloc(&memory, size), what.c_str());
  EndOverlap(context_);
  if (status_.ok()) Check(cudaMemsetAsync(memory, 0, size, context_.stream), "clearing memory");
  return static_cast<uint8_t*>(memory);
}

uint8_t* CudaStream::Allocate(int64_t bytes, Place place) {
  if (bytes == 0 || !status_.ok()) return nullptr;
  if (sealed_) {
    status_ = absl::InternalError(absl::StrCat(where(), ": ", bytes, " bytes of ",
                                               place == Place::kPinned ? "pinned" : "its",
                                               " memory are wanted after the rank was loaded"));
    return nullptr;
  }
  return place == Place::kPinned ? AllocatePinned(bytes) : AllocateOnDevice(bytes);
}

void CudaStream::Free(uint8_t* memory, Place place) {
  if (place == Place::kPinned) return Check(cudaFreeHost(memory), "freeing memory");
  if (arena_.Holds(memory)) memory = arena_.Return(memory);
  if (memory != nullptr) Check(cudaFree(memory), "freeing memory");
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
    // It is no error, but CUDA remembers it as one, and libraries may look.
    static_cast<void>(cudaGetLastError());
    return false;
  }
  Check(state, "waiting for it");
  return true;
}

absl::Status CudaStream::Synchronize() {
  if (status_.ok()) Check(cudaStreamSynchronize(context_.stream), "waiting for it");
  return AskWatch();
}

absl::Status CudaStream::AskWatch() {
  if (status_.ok() && watch_) status_ = Prefixed(watch_(), where());
  return status_;
}

std::unique_ptr<StreamEvent> CudaStream::MakeEvent() {
  if (!status_.ok()) return nullptr;
  cudaEvent_t event = nullptr;
  Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
        "making an event");
  if (event == nullptr) return nullptr;
  return std::make_unique<CudaEvent>(event);
}

void CudaStream::Record(StreamEvent& event) {
  if (!status_.ok()) return;
  EndOverlap(context_);
  Check(cudaEventRecord(static_cast<CudaEvent&>(event).event(), context_.stream),
        "recording an event");
}

bool CudaStream::Reached(StreamEvent& event) {
  if (!status_.ok()) return true;
  const cudaError_t state = cudaEventQuery(static_cast<CudaEvent&>(event).event());
  if (state == cudaErrorNotReady) {
    // As in Idle.
    static_cast<void>(cudaGetLastError());
    return false;
  }
  Check(state, "asking for an event");
  return true;
}

absl::Status CudaStream::Wait(StreamEvent& event) {
  // What comes soon is met at once; for the rest the thread sleeps until the device wakes it.
  const auto busy_until = std::chrono::steady_clock::now() + kBusyWait;
  while (!Reached(event)) {
    if (std::chrono::steady_clock::now() >= busy_until) break;
  }
  if (status_.ok()) {
    Check(cudaEventSynchronize(static_cast<CudaEvent&>(event).event()), "waiting for it");
  }
  return AskWatch();
}

void CudaStream::BeginRecording() {
  if (!status_.ok()) return;
  EndOverlap(context_);
  Check(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal),
        "beginning to record a step");
}

absl::StatusOr<std::unique_ptr<Recording>> CudaStream::EndRecording() {
  EndOverlap(context_);
  cudaGraph_t graph = nullptr;
  // After an error too, or the stream would go on recording.
  const cudaError_t ended = cudaStreamEndCapture(context_.stream, &graph);
  if (!status_.ok() || ended != cudaSuccess) {
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    static_cast<void>(cudaGetLastError());
    Check(ended, "recording a step");
    return status_;
  }
  cudaGraphExec_t ready = nullptr;
  const int64_t before = AvailableBytes();
  cudaError_t error = cudaGraphInstantiate(&ready, graph, 0);
  auto recording = ready == nullptr ? nullptr : std::make_unique<CudaRecording>(ready);
  // Uploaded here rather than by the first replay, so that the memory is taken now.
  if (error == cudaSuccess) error = cudaGraphUpload(ready, context_.stream);
  Check(cudaGraphDestroy(graph), "recording a step");
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // the stream goes on without it
    return absl::ResourceExhaustedError(
        absl::StrCat(where(), ": preparing a recorded step: ", CudaWords(error)));
  }
  Check(error, "preparing a recorded step");
  RETURN_IF_ERROR(status_);
  recorded_bytes_ += std::max<int64_t>(0, before - AvailableBytes());
  return recording;
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

absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int index, CpuStream& host) {
  auto stream = std::make_unique<CudaStream>(index, host);
  RETURN_IF_ERROR(stream->Open());
  return std::unique_ptr<Stream>(std::move(stream));
}

}  // namespace pergola
