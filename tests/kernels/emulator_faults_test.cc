// What a stream says when the device, the driver or CUDA does not do what it should: the emulator
// is told to fail.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/decoder_ops.h"
#include "kernels/matmul.h"

namespace pergola {
namespace {

using emulator::DeviceModel;
using emulator::FailCall;
using emulator::FailingCall;
using testing::AllOf;
using testing::HasSubstr;

class CudaFaultsTest : public testing::Test {
 protected:
  void TearDown() override {
    emulator::SetDeviceModel({});
    FailCall(FailingCall::kLaunch, cudaSuccess);
  }

  absl::StatusOr<std::unique_ptr<Stream>> Open(int device) {
    return OpenCudaStream(device, *host_);
  }
  static std::string Text(const absl::Status& status) { return std::string(status.message()); }

  std::unique_ptr<CpuStream> host_ = CpuStream::Create(StreamOptions());
};

// Something to add.
class Values {
 public:
  explicit Values(Stream& stream) : x_(stream, 4 * kCount), y_(stream, 4 * kCount) {}
  AddArgs add() const {
    return {Tensor(x_.data(), DType::kF32, {1, kCount}),
            Tensor(y_.data(), DType::kF32, {1, kCount})};
  }

 private:
  static constexpr int64_t kCount = 64;
  DeviceBuffer x_, y_;
};

TEST_F(CudaFaultsTest, OldDriverIsRefusedWithBothVersions) {
  DeviceModel model;
  model.driver_version = 12040;
  emulator::SetDeviceModel(model);
  const absl::Status status = Open(0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      Text(status),
      "the NVIDIA driver supports CUDA 12.4; this program needs 13.0: install a newer driver");
  EXPECT_EQ(CudaDevices().status(), status);
  EXPECT_EQ(CudaDeviceCount(), 0);
}

TEST_F(CudaFaultsTest, NoDriverAndNoDeviceAreToldApart) {
  DeviceModel model;
  model.driver_version = 0;
  emulator::SetDeviceModel(model);
  EXPECT_EQ(Text(Open(0).status()), "this machine has no CUDA device: it has no driver");
  model = DeviceModel();
  model.count = 0;
  emulator::SetDeviceModel(model);
  EXPECT_EQ(Text(Open(0).status()),
            "this machine has no CUDA device: no CUDA-capable device is detected");
}

TEST_F(CudaFaultsTest, OldDeviceIsRefusedByName) {
  DeviceModel model;
  model.count = 2;
  model.major = 7;
  model.minor = 0;
  emulator::SetDeviceModel(model);
  const absl::Status status = Open(1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(status), AllOf(HasSubstr("CUDA device 1 ("), HasSubstr("compute capability 7.0"),
                                  HasSubstr("the oldest that is supported is 7.5")));
}

TEST_F(CudaFaultsTest, MemoryThatIsNotThereNamesDeviceAndSize) {
  DeviceModel model;
  model.memory_bytes = 1 << 20;
  emulator::SetDeviceModel(model);
  auto stream = Open(0);
  ASSERT_TRUE(stream.ok()) << stream.status();
  const DeviceBuffer buffer(**stream, 2 << 20);
  EXPECT_EQ(buffer.data(), nullptr);
  const absl::Status status = (*stream)->Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Text(status),
            "CUDA device 0: allocating 2097152 bytes: out of memory (cudaErrorMemoryAllocation)");
}

TEST_F(CudaFaultsTest, PinnedMemoryThatIsNotThereNamesDeviceAndSize) {
  auto stream = Open(0);
  ASSERT_TRUE(stream.ok()) << stream.status();
  FailCall(FailingCall::kMallocHost, cudaErrorMemoryAllocation);
  const DeviceBuffer buffer(**stream, 4096, Place::kPinned);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(Text((*stream)->Synchronize()),
            "CUDA device 0: allocating 4096 bytes of pinned memory: out of memory "
            "(cudaErrorMemoryAllocation)");
}

TEST_F(CudaFaultsTest, RefusedLaunchStaysTheStreamsErrorAndNamesTheOp) {
  auto opened = Open(0);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const Values values(stream);
  FailCall(FailingCall::kLaunch, cudaErrorInvalidConfiguration, 1);
  Add(stream, values.add());
  EXPECT_TRUE(stream.Synchronize().ok());
  SoftCap(stream, SoftCapArgs{values.add().x, 2});
  Add(stream, values.add());
  const absl::Status status = stream.Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Text(status),
              AllOf(HasSubstr("CUDA device 0: soft cap: launch of "), HasSubstr(" threads with "),
                    HasSubstr("invalid configuration argument (cudaErrorInvalidConfiguration)")));
  EXPECT_EQ(stream.Synchronize(), status);
}

TEST_F(CudaFaultsTest, RefusedLaunchWithinARecordingEndsIt) {
  auto opened = Open(0);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const Values values(stream);
  FailCall(FailingCall::kLaunch, cudaErrorInvalidConfiguration);
  stream.BeginRecording();
  Add(stream, values.add());
  const auto recording = stream.EndRecording();
  EXPECT_THAT(Text(recording.status()), HasSubstr("CUDA device 0: addition: launch of "));
  EXPECT_EQ(stream.Synchronize(), recording.status());
}

TEST_F(CudaFaultsTest, RefusedCopyOfABlockNamesTheOp) {
  auto opened = Open(0);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const DeviceBuffer k(stream, 128), v(stream, 128);
  FailCall(FailingCall::kCopy, cudaErrorInvalidValue, 1);
  CopyBlock(stream, CopyBlockArgs{0, 1, 64, k.data(), v.data()});
  EXPECT_EQ(Text(stream.Synchronize()),
            "CUDA device 0: copy of a block: copying 64 bytes: invalid argument "
            "(cudaErrorInvalidValue)");
}

TEST_F(CudaFaultsTest, ErrorOfRunningWorkNamesTheDeviceWhoeverWaits) {
  const auto by_event = [](Stream& stream, StreamEvent& event) { return stream.Wait(event); };
  const auto by_asking = [](Stream& stream, StreamEvent& event) {
    EXPECT_TRUE(stream.Reached(event));
    return stream.Synchronize();
  };
  const auto by_stream = [](Stream& stream, StreamEvent& /*event*/) {
    return stream.Synchronize();
  };
  const auto by_polling = [](Stream& stream, StreamEvent& /*event*/) {
    EXPECT_TRUE(stream.Idle());
    return stream.Synchronize();
  };
  const std::function<absl::Status(Stream&, StreamEvent&)> ways[] = {by_event, by_asking, by_stream,
                                                                     by_polling};
  for (const auto& wait : ways) {
    auto stream = Open(0);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const auto event = (*stream)->MakeEvent();
    (*stream)->Record(*event);
    FailCall(FailingCall::kWait, cudaErrorIllegalAddress);
    const absl::Status status = wait(**stream, *event);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(Text(status), AllOf(HasSubstr("CUDA device 0: "),
                                    HasSubstr(": an illegal memory access was encountered "
                                              "(cudaErrorIllegalAddress)")));
    EXPECT_EQ((*stream)->Synchronize(), status);
  }
}

// The emulator's device: as CUDA's, it does not recover.
TEST_F(CudaFaultsTest, AfterAnIllegalAddressNothingWorksOnThatDevice) {
  DeviceModel model;
  model.count = 2;
  emulator::SetDeviceModel(model);
  FailCall(FailingCall::kLaunch, cudaErrorIllegalAddress, 0, 1);
  for (const int device : {0, 1, 1, 0}) {
    auto stream = Open(device);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const Values values(**stream);
    Add(**stream, values.add());
    EXPECT_EQ((*stream)->Synchronize().ok(), device == 0) << device;
  }
}

TEST_F(CudaFaultsTest, RecordingWithoutMemoryLeavesTheStreamInOrder) {
  auto opened = Open(0);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const Values values(stream);
  FailCall(FailingCall::kInstantiate, cudaErrorMemoryAllocation);
  stream.BeginRecording();
  Add(stream, values.add());
  const absl::Status full = stream.EndRecording().status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Text(full),
            "CUDA device 0: preparing a recorded step: out of memory (cudaErrorMemoryAllocation)");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  Add(stream, values.add());
  EXPECT_TRUE(stream.Synchronize().ok());
  // Other errors stay.
  FailCall(FailingCall::kInstantiate, cudaErrorUnknown);
  stream.BeginRecording();
  Add(stream, values.add());
  const absl::Status failed = stream.EndRecording().status();
  EXPECT_EQ(Text(failed),
            "CUDA device 0: preparing a recorded step: unknown error (cudaErrorUnknown)");
  EXPECT_EQ(stream.Synchronize(), failed);
}

// One product through the library.
absl::Status Multiply(Stream& stream) {
  constexpr int64_t kRows = 160, kColumns = 16, kOutputs = 8;
  const DeviceBuffer x(stream, kRows * kColumns * 4), y(stream, kRows * kOutputs * 4);
  const DeviceBuffer bias(stream, kOutputs * 4);
  WorkspaceShape shape;
  shape.matrices = {{DType::kF32, kOutputs, kColumns, 0}};
  shape.step_rows = kRows;
  shape.heads = shape.head_dim = 1;
  const DeviceBuffer workspace(stream, stream.WorkspaceBytes(shape));
  stream.UseWorkspace(workspace.data(), workspace.size());
  const PackedMatrix w = PackedMatrix::Allocate(stream, DType::kF32, kOutputs, kColumns, 0);
  MatmulArgs args;
  args.x = Tensor(x.data(), DType::kF32, {kRows, kColumns});
  args.w = &w;
  args.bias = reinterpret_cast<const float*>(bias.data());
  args.y = Tensor(y.data(), DType::kF32, {kRows, kOutputs});
  Matmul(stream, args);
  return stream.Synchronize();
}

TEST_F(CudaFaultsTest, EveryRefusalOfTheLibraryNamesTheProduct) {
  for (const FailingCall call : {FailingCall::kPlan, FailingCall::kProduct}) {
    for (const int error : {CUBLAS_STATUS_ALLOC_FAILED, CUBLAS_STATUS_EXECUTION_FAILED}) {
      absl::Status status = absl::UnknownError("none");
      int64_t failures = 0;
      while (!status.ok()) {
        auto stream = Open(0);
        ASSERT_TRUE(stream.ok()) << stream.status();
        FailCall(call, error, failures);
        status = Multiply(**stream);
        if (status.ok()) break;
        ++failures;
        EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(Text(status), AllOf(HasSubstr("CUDA device 0: matrix product: cublasLtMat"),
                                        HasSubstr(error == CUBLAS_STATUS_ALLOC_FAILED
                                                      ? ": CUBLAS_STATUS_ALLOC_FAILED"
                                                      : ": CUBLAS_STATUS_EXECUTION_FAILED")));
      }
      // At least: operation, three layouts, what is looked for, algorithm.
      EXPECT_GE(failures, call == FailingCall::kPlan ? 6 : 1);
      FailCall(call, 0);
    }
  }
}

TEST_F(CudaFaultsTest, LibraryThatDoesNotOpenNamesTheDevice) {
  FailCall(FailingCall::kPlan, CUBLAS_STATUS_NOT_INITIALIZED);
  const absl::Status status = Open(0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Text(status), "CUDA device 0: cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED");
}

}  // namespace
}  // namespace pergola
