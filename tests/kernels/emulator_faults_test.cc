// What a stream says when the device, the driver or CUDA does not do what it should: the emulator
// is told to fail.
#include <string>

#include <cuda_runtime.h>
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/decoder_ops.h"

namespace pergola {
namespace {

using emulator::Call;
using emulator::DeviceModel;
using testing::AllOf;
using testing::HasSubstr;

class CudaFaultsTest : public testing::Test {
 protected:
  void TearDown() override { emulator::SetDeviceModel({}); }

  absl::StatusOr<std::unique_ptr<Stream>> Open(int device) {
    return OpenCudaStream(device, *host_);
  }
  static std::string Text(const absl::Status& status) { return std::string(status.message()); }

  std::unique_ptr<CpuStream> host_ = CpuStream::Create(StreamOptions());
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

TEST_F(CudaFaultsTest, RefusedLaunchStaysTheStreamsErrorAndNamesTheOp) {
  auto opened = Open(0);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Stream& stream = **opened;
  const DeviceBuffer x(stream, 4 * 64), y(stream, 4 * 64);
  const AddArgs add{Tensor(x.data(), DType::kF32, {1, 64}), Tensor(y.data(), DType::kF32, {1, 64})};
  emulator::FailCall(Call::kLaunch, cudaErrorInvalidConfiguration, 1);
  Add(stream, add);
  EXPECT_TRUE(stream.Synchronize().ok());
  SoftCap(stream, SoftCapArgs{add.x, 2});
  Add(stream, add);
  const absl::Status status = stream.Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Text(status),
              AllOf(HasSubstr("CUDA device 0: soft cap: launch of "), HasSubstr(" threads with "),
                    HasSubstr("invalid configuration argument (cudaErrorInvalidConfiguration)")));
  EXPECT_EQ(stream.Synchronize(), status);
}

TEST_F(CudaFaultsTest, ErrorOfRunningWorkNamesTheDevice) {
  auto stream = Open(0);
  ASSERT_TRUE(stream.ok()) << stream.status();
  emulator::FailCall(Call::kSynchronize, cudaErrorIllegalAddress);
  const absl::Status status = (*stream)->Synchronize();
  EXPECT_EQ(Text(status),
            "CUDA device 0: waiting for it: an illegal memory access was encountered "
            "(cudaErrorIllegalAddress)");
  EXPECT_EQ((*stream)->Synchronize(), status);
}

}  // namespace
}  // namespace pergola
