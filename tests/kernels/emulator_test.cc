// The emulator shows what it is there to show: see kernels/cuda/emulator/emulator.h.
#include "kernels/cuda/emulator/emulator.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/device_kernels.h"
#include "tests/kernels/cuda/emulator_kernels.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

using emulator::Order;
using testing::ElementsAre;

struct OrderCase {
  Order order;
  uint64_t seed;
};
constexpr OrderCase kOrders[] = {
    {Order::kAscending, 0}, {Order::kDescending, 0}, {Order::kShuffled, 1}, {Order::kShuffled, 2}};

class EmulatorTest : public testing::Test {
 protected:
  void TearDown() override { emulator::SetOrder(Order::kAscending); }

  // What a kernel makes of 1, 2, 3, ...
  std::vector<float> Run(Fault fault, int threads = 64) {
    std::vector<float> values(static_cast<size_t>(threads));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1);
    const DeviceArray<float> x(values), y(threads);
    RunFault(context_, fault, threads, x.data(), y.data());
    return y.Read();
  }

  const TestCudaContext context_;
};

using EmulatorDeathTest = EmulatorTest;

int Nans(const std::vector<float>& values) {
  return static_cast<int>(
      std::count_if(values.begin(), values.end(), [](float v) { return std::isnan(v); }));
}

TEST_F(EmulatorTest, RightKernelsGiveTheSameInEveryOrder) {
  for (const OrderCase& order : kOrders) {
    emulator::SetOrder(order.order, order.seed);
    const std::vector<float> y = Run(Fault::kNone);
    for (size_t i = 0; i < 64; ++i) EXPECT_EQ(y[i], static_cast<float>(64 - i));
  }
}

TEST_F(EmulatorTest, MissingBarrierShowsInSomeOrder) {
  for (const Fault fault : {Fault::kNoBarrier, Fault::kNoWarpBarrier}) {
    emulator::SetOrder(Order::kAscending);
    const std::vector<float> ascending = Run(fault);
    emulator::SetOrder(Order::kDescending);
    const std::vector<float> descending = Run(fault);
    EXPECT_GT(Nans(ascending) + Nans(descending), 0);
    EXPECT_FALSE(CompareBits(ascending, descending));
  }
}

TEST_F(EmulatorTest, BlocksRunInTheOrderThatIsSet) {
  const auto run = [&] {
    const DeviceArray<int> count(std::vector<int>{0}), y(5);
    BlockOrderCuda(context_, 5, count.data(), y.data());
    return y.Read();
  };
  EXPECT_THAT(run(), ElementsAre(0, 1, 2, 3, 4));
  emulator::SetOrder(Order::kDescending);
  EXPECT_THAT(run(), ElementsAre(4, 3, 2, 1, 0));
  emulator::SetOrder(Order::kShuffled, 3);
  const std::vector<int> shuffled = run();
  EXPECT_THAT(shuffled, testing::UnorderedElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(run(), shuffled);
}

TEST_F(EmulatorTest, CopiesThatNobodyWaitsForDoNotArrive) {
  EXPECT_EQ(Nans(Run(Fault::kNoWait)), 64);
}

TEST_F(EmulatorTest, WaitBringsOnlyTheGroupsItCovers) {
  const std::vector<float> y = Run(Fault::kShortWait);
  // The first group brings 16 values and 16 zeros, the second should have brought the rest.
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(y[i], i < 16 ? static_cast<float>(i + 1) : 0.0F);
  EXPECT_EQ(Nans(y), 32);
}

TEST_F(EmulatorTest, MemoryThatNobodyWroteIsNan) {
  EXPECT_EQ(Nans(Run(Fault::kUnwrittenShared)), 64);
  const DeviceArray<float> y(100);
  EXPECT_EQ(Nans(y.Read()), 100);
}

TEST_F(EmulatorTest, ThreadsEmulateAtTheSameTime) {
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> results(3);
  for (auto& result : results) {
    threads.emplace_back([this, &result] {
      for (int i = 0; i < 20; ++i) result = Run(Fault::kNone, 128);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const auto& result : results) EXPECT_EQ(result[0], 128.0F);
}

TEST_F(EmulatorDeathTest, NamesWhoMissesABarrier) {
  EXPECT_DEATH(Run(Fault::kExitAtBarrier),
               "block \\(0, 0, 0\\), thread 0: waits in __syncthreads for all threads of its "
               "block, but thread 5 has returned");
  EXPECT_DEATH(Run(Fault::kExitInWarp),
               "waits in __shfl_xor_sync for all lanes of its warp, but "
               "thread 5 has returned");
  EXPECT_DEATH(Run(Fault::kDifferentWaits),
               "thread 0: waits in __shfl_xor_sync for all lanes of "
               "its warp, but thread 3 waits in __syncthreads");
  EXPECT_DEATH(Run(Fault::kDifferentShuffles),
               "thread 0: waits in __shfl_sync .* but thread 3 waits in __shfl_xor_sync");
}

TEST_F(EmulatorDeathTest, RefusesPartsOfAWarp) {
  EXPECT_DEATH(Run(Fault::kPartialMask), "thread 0: a warp function with a mask other than 0xff");
}

// AddressSanitizer says so in its own words.
constexpr const char* kBeyond =
    "wrote beyond the launch's 256 bytes of dynamic shared memory|use-after-poison";

TEST_F(EmulatorDeathTest, RefusesSharedMemoryThatWasNotAskedFor) {
  EXPECT_DEATH(Run(Fault::kWriteBeyond), kBeyond);
  EXPECT_DEATH(Run(Fault::kCopyBeyond), "CopyAsync16 \\(shared\\) beyond the launch's dynamic");
}

TEST_F(EmulatorDeathTest, RefusesMisalignedCopies) {
  EXPECT_DEATH(Run(Fault::kMisalignedCopy),
               "CopyAsync16 \\(global\\) at an address that is no "
               "multiple of 16");
}

TEST_F(EmulatorDeathTest, RefusesLaunchesThatNoGpuTakes) {
  EXPECT_DEATH(EmptyCuda(context_, dim3(1), 48, 0), "48 threads: not whole warps");
  EXPECT_DEATH(EmptyCuda(context_, dim3(1), 1056, 0), "blocks of 1056 threads");
  EXPECT_DEATH(EmptyCuda(context_, dim3(0), 32, 0), "0 x 1 x 1 blocks");
  EXPECT_DEATH(EmptyCuda(context_, dim3(1, 65536), 32, 0), "1 x 65536 x 1 blocks");
  EXPECT_DEATH(EmptyCuda(context_, dim3(1), 32, (227 << 10) + 1), "232449 bytes of dynamic shared");
  EmptyCuda(context_, dim3(2, 3, 4), 1024, 227 << 10);
}

TEST_F(EmulatorDeathTest, RefusesWhatOlderGpusLack) {
  const TestCudaContext turing(0, 75);
  const DeviceArray<uint16_t> a(std::vector<uint16_t>(256)), b(std::vector<uint16_t>(128));
  const DeviceArray<float> c(std::vector<float>(128));
  EXPECT_DEATH(MmaCuda(turing, DType::kBF16, a.data(), b.data(), c.data(), c.data()),
               "Mma16816<__nv_bfloat16> below sm_80, on sm_75");
  MmaCuda(turing, DType::kF16, a.data(), b.data(), c.data(), c.data());
  EXPECT_DEATH(EmptyCuda(turing, dim3(1), 32, 65537), "65537 bytes .* 65536 are the limit");
  const TestCudaContext ampere(0, 80), ada(0, 89);
  EXPECT_DEATH(EmptyCuda(ampere, dim3(1), 32, (163 << 10) + 1), "166912 are the limit");
  EXPECT_DEATH(EmptyCuda(ada, dim3(1), 32, (99 << 10) + 1), "101376 are the limit");
}

TEST_F(EmulatorTest, MemoryCallsRefuseWhatCudaRefuses) {
  float host[4] = {};
  const DeviceArray<float> x(4);
  EXPECT_EQ(cudaMemcpy(x.data(), host, 17, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, host, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host, 0, 16), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(host), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  size_t free_bytes = 0, total_bytes = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, free_bytes + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(p, nullptr);
  EXPECT_STREQ(cudaGetErrorString(cudaGetLastError()), "out of memory");
}

TEST_F(EmulatorTest, DeviceIsAsDescribed) {
  const emulator::DeviceModel before = emulator::GetDeviceModel();
  emulator::DeviceModel model;
  model.major = 7;
  model.minor = 5;
  model.multiprocessors = 2;
  emulator::SetDeviceModel(model);
  cudaDeviceProp properties;
  EXPECT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(10 * properties.major + properties.minor, 75);
  EXPECT_EQ(properties.multiProcessorCount, 2);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  model.count = 0;
  emulator::SetDeviceModel(model);
  EXPECT_STREQ(WhyNoCuda(), "no CUDA-capable device is detected");
  emulator::SetDeviceModel(before);
  EXPECT_EQ(WhyNoCuda(), nullptr);
  cudaGetLastError();
}

class EmulatorOverlapTest : public EmulatorTest {
 protected:
  void SetUp() override { emulator::SetOverlap(true); }
  void TearDown() override { emulator::SetOverlap(false); }

  // x is 2, y was 1.
  float Run(Reads reads, bool overlap = true) {
    const DeviceArray<float> x(std::vector<float>{2}), y(std::vector<float>{1}), z(1);
    bool after_kernel = false;
    CudaContext context = context_;
    if (overlap) context.after_kernel = &after_kernel;
    RunOverlap(context, reads, x.data(), y.data(), z.data());
    PERGOLA_CUDA_CHECK(cudaStreamSynchronize(context.stream));
    EXPECT_EQ(y.Read()[0], 2);
    return z.Read()[0];
  }
};
using EmulatorOverlapDeathTest = EmulatorOverlapTest;

TEST_F(EmulatorOverlapTest, WhatIsReadTooEarlyIsOld) {
  EXPECT_EQ(Run(Reads::kAfterAwait), 2);
  EXPECT_EQ(Run(Reads::kBeforeAwait), 1);
  EXPECT_EQ(Run(Reads::kBeforeAwait, /*overlap=*/false), 2);
  emulator::SetOverlap(false);
  EXPECT_EQ(Run(Reads::kBeforeAwait), 2);
}

TEST_F(EmulatorOverlapDeathTest, NamesAKernelThatDoesNotAwaitThePreviousOne) {
  EXPECT_DEATH(Run(Reads::kWithoutAwait), "not every thread calls AwaitPrevious");
}

class EmulatorDeferredTest : public EmulatorTest {
 protected:
  void SetUp() override {
    ASSERT_EQ(cudaMallocHost(&pinned_, 12), cudaSuccess);
    emulator::SetDeferred(true);
  }
  void TearDown() override {
    emulator::SetDeferred(false);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned_), cudaSuccess);
  }
  void CopyOut(cudaStream_t stream) {
    ASSERT_EQ(cudaMemcpyAsync(pinned_, y_.data(), 12, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  }
  std::vector<float> Pinned() const { return {pinned_, pinned_ + 3}; }

  const DeviceArray<float> x_{std::vector<float>{1, 2, 3}};
  const DeviceArray<float> y_{3};
  float* pinned_ = nullptr;
};

TEST_F(EmulatorDeferredTest, ResultsAreThereWhenTheStreamWasWaitedFor) {
  AddCuda(context_, x_.data(), 10, 3, y_.data());
  CopyOut(context_.stream());
  EXPECT_EQ(Nans(Pinned()), 3);
  EXPECT_EQ(cudaStreamSynchronize(context_.stream()), cudaSuccess);
  EXPECT_THAT(Pinned(), ElementsAre(11, 12, 13));
}

TEST_F(EmulatorDeferredTest, EventsBringWhatIsBeforeThem) {
  const TestCudaContext other;
  cudaEvent_t first, second;
  ASSERT_EQ(cudaEventCreate(&first), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&second), cudaSuccess);
  AddCuda(context_, x_.data(), 10, 3, y_.data());
  ASSERT_EQ(cudaEventRecord(first, context_.stream()), cudaSuccess);
  AddCuda(context_, x_.data(), 20, 3, y_.data());
  ASSERT_EQ(cudaEventRecord(second, context_.stream()), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other.stream(), first), cudaSuccess);
  CopyOut(other.stream());
  EXPECT_EQ(cudaStreamSynchronize(other.stream()), cudaSuccess);
  EXPECT_THAT(Pinned(), ElementsAre(11, 12, 13));
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, first, second), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(second), cudaErrorNotReady);
  EXPECT_EQ(cudaEventSynchronize(second), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(second), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, first, second), cudaSuccess);
  EXPECT_GE(milliseconds, 0);
  EXPECT_EQ(cudaEventDestroy(first), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(second), cudaSuccess);
}

TEST_F(EmulatorDeferredTest, PageableMemoryIsReadAndWrittenAtOnce) {
  std::vector<float> host = {5, 6, 7};
  ASSERT_EQ(cudaMemcpyAsync(y_.data(), host.data(), 12, cudaMemcpyHostToDevice, context_.stream()),
            cudaSuccess);
  host = {0, 0, 0};
  ASSERT_EQ(cudaMemcpyAsync(host.data(), y_.data(), 12, cudaMemcpyDeviceToHost, context_.stream()),
            cudaSuccess);
  EXPECT_THAT(host, ElementsAre(5, 6, 7));
}

class EmulatorGraphTest : public EmulatorTest {
 protected:
  void Begin() {
    ASSERT_EQ(cudaStreamBeginCapture(context_.stream(), cudaStreamCaptureModeThreadLocal),
              cudaSuccess);
  }
  void ExpectInvalid() {
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(context_.stream(), &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
  const DeviceArray<float> x_{std::vector<float>{1, 2, 3}};
  const DeviceArray<float> y_{3};
};

TEST_F(EmulatorGraphTest, ReplaysWhatWasCaptured) {
  Begin();
  AddCuda(context_, x_.data(), 10, 3, y_.data());
  AddCuda(context_, y_.data(), 100, 3, y_.data());
  ASSERT_EQ(cudaMemcpyAsync(x_.data(), y_.data(), 4, cudaMemcpyDeviceToDevice, context_.stream()),
            cudaSuccess);
  cudaStreamCaptureStatus status;
  EXPECT_EQ(cudaStreamIsCapturing(context_.stream(), &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(context_.stream(), &graph), cudaSuccess);
  EXPECT_EQ(Nans(y_.Read()), 3);  // nothing has run yet

  cudaGraphExec_t exec;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(exec, context_.stream()), cudaSuccess);
  EXPECT_THAT(y_.Read(), ElementsAre(111, 112, 113));
  ASSERT_EQ(cudaGraphLaunch(exec, context_.stream()), cudaSuccess);
  EXPECT_THAT(y_.Read(), ElementsAre(221, 112, 113));
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_F(EmulatorGraphTest, WaitingWhileCapturingEndsTheCapture) {
  Begin();
  EXPECT_EQ(cudaStreamSynchronize(context_.stream()), cudaErrorStreamCaptureUnsupported);
  ExpectInvalid();
  Begin();
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
  ExpectInvalid();
  Begin();
  void* p;
  EXPECT_EQ(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaMemsetAsync(y_.data(), 0, 4, context_.stream()), cudaErrorStreamCaptureInvalidated);
  ExpectInvalid();
  cudaGetLastError();
}

TEST_F(EmulatorGraphTest, OtherStreamsJoinThroughEvents) {
  const TestCudaContext other;
  cudaEvent_t fork, join;
  ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  const auto begin_in_both = [&] {
    Begin();
    ASSERT_EQ(cudaEventRecord(fork, context_.stream()), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(other.stream(), fork), cudaSuccess);
    AddCuda(other, x_.data(), 1, 3, y_.data());
    ASSERT_EQ(cudaEventRecord(join, other.stream()), cudaSuccess);
  };
  cudaGraph_t graph;
  begin_in_both();
  ASSERT_EQ(cudaStreamWaitEvent(context_.stream(), join), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(context_.stream(), &graph), cudaSuccess);
  size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 1U);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);

  begin_in_both();
  EXPECT_EQ(cudaStreamEndCapture(context_.stream(), &graph), cudaErrorStreamCaptureUnjoined);

  begin_in_both();
  EXPECT_EQ(cudaEventQuery(join), cudaErrorCapturedEvent);
  ExpectInvalid();
  EXPECT_EQ(cudaEventDestroy(fork), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(join), cudaSuccess);
  cudaGetLastError();
}

}  // namespace
}  // namespace pergola
