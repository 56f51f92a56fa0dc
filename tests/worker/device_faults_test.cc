// A rank on a GPU one of whose calls fails, whichever it is: it ends with a status that names the
// device and what was done, never with a failed check, a crash or another token.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/worker/executor_fixture.h"

namespace pergola {
namespace {

using emulator::FailCall;
using emulator::FailingCall;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

constexpr int kTokens = 5;

// What one rank does from its device's opening on; the tokens of a prompt that the library
// multiplies, and of decode steps, which are recorded.
absl::StatusOr<std::vector<int32_t>> LoadAndGenerate(const Checkpoint& checkpoint) {
  StreamOptions host_options;
  host_options.workspace_bytes = 8 << 20;
  const auto host = CpuStream::Create(host_options);
  ASSIGN_OR_RETURN(const std::unique_ptr<Stream> gpu, OpenCudaStream(0, *host));
  PlainCommunicator communicator(std::make_shared<Meeting>(), 0, 1);
  ASSIGN_OR_RETURN(const RankLayout layout, MakeLayout(checkpoint.spec(), 1, 1, 0));
  ExecutorOptions options = TinyOptions();
  options.step_tokens = 80;
  ASSIGN_OR_RETURN(const std::unique_ptr<StageExecutor> executor,
                   StageExecutor::Load(checkpoint, layout, options, *gpu, &communicator, nullptr));
  gpu->Seal();
  std::vector<int32_t> known = RandomIds(70);
  size_t computed = 0;
  for (int step = 0; step < kTokens; ++step) {
    BuiltPlan built(static_cast<uint64_t>(step) + 1);
    if (step == 0) built.Start(2);
    built.Add(2, {known.begin() + static_cast<int64_t>(computed), known.end()},
              static_cast<int64_t>(computed), step == 0 ? Blocks(0, 6) : std::vector<uint32_t>());
    // As a shared prefix is.
    if (step == 1) {
      v1::BlockCopy* copy = built.plan.add_copies();
      copy->set_from_block(0);
      copy->set_to_block(9);
    }
    computed = known.size();
    RETURN_IF_ERROR(executor->Validate(built.plan));
    std::vector<v1::EntryResult> results;
    RETURN_IF_ERROR(executor->Execute(built.plan, built.ids, nullptr, &results));
    known.push_back(results[0].ids(0));
  }
  return std::vector<int32_t>(known.end() - kTokens, known.end());
}

struct Fault {
  const char* name;
  FailingCall call;
  int error;
  const char* words;
  bool all;       // every single call, or ever fewer
  int64_t least;  // calls there must be
};

std::ostream& operator<<(std::ostream& out, const Fault& fault) {
  return out << fault.name;
}

class DeviceFaultsTest : public testing::TestWithParam<Fault> {
 protected:
  void TearDown() override { FailCall(FailingCall::kLaunch, 0); }
};

TEST_P(DeviceFaultsTest, EndTheRankWithAStatusWhereverTheyHappen) {
  const Fault& fault = GetParam();
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto want = LoadAndGenerate(checkpoint);
  ASSERT_TRUE(want.ok()) << want.status();
  int64_t passed = 0;
  while (true) {
    FailCall(fault.call, fault.error, passed);
    const auto got = LoadAndGenerate(checkpoint);
    if (got.ok()) {
      EXPECT_EQ(*got, *want);
      break;
    }
    EXPECT_THAT(std::string(got.status().message()),
                AllOf(HasSubstr("CUDA device 0: "), HasSubstr(fault.words)))
        << "after " << passed;
    EXPECT_THAT(got.status().code(),
                AnyOf(absl::StatusCode::kInternal, absl::StatusCode::kUnavailable,
                      absl::StatusCode::kResourceExhausted));
    passed += fault.all ? 1 : 1 + passed / 4;
  }
  EXPECT_GE(passed, fault.least);
}

constexpr Fault kFaults[] = {
    {"RefusedLaunch", FailingCall::kLaunch, cudaErrorInvalidConfiguration,
     "(cudaErrorInvalidConfiguration)", false, 100},
    {"LostDevice", FailingCall::kLaunch, cudaErrorLaunchFailure, "(cudaErrorLaunchFailure)", false,
     100},
    {"IllegalAddress", FailingCall::kWait, cudaErrorIllegalAddress, "(cudaErrorIllegalAddress)",
     true, kTokens},
    {"Copy", FailingCall::kCopy, cudaErrorInvalidValue, "(cudaErrorInvalidValue)", false, 20},
    {"Malloc", FailingCall::kMalloc, cudaErrorMemoryAllocation, "(cudaErrorMemoryAllocation)", true,
     1},
    {"Pinned", FailingCall::kMallocHost, cudaErrorMemoryAllocation, "(cudaErrorMemoryAllocation)",
     true, 3},
    {"Product", FailingCall::kProduct, CUBLAS_STATUS_EXECUTION_FAILED,
     "cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED", true, 3},
    {"Plan", FailingCall::kPlan, CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED", false,
     10},
    {"Recording", FailingCall::kInstantiate, cudaErrorUnknown, "(cudaErrorUnknown)", true, 1},
};
INSTANTIATE_TEST_SUITE_P(Single, DeviceFaultsTest, testing::ValuesIn(kFaults),
                         [](const auto& test) { return std::string(test.param.name); });

// The step that was to be recorded is computed all the same, and so are those after it.
TEST(DeviceWithoutMemoryTest, RecordsNothingAndGivesTheSameTokens) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto want = LoadAndGenerate(checkpoint);
  ASSERT_TRUE(want.ok()) << want.status();
  FailCall(FailingCall::kInstantiate, cudaErrorMemoryAllocation);
  const auto got = LoadAndGenerate(checkpoint);
  FailCall(FailingCall::kLaunch, 0);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, *want);
}

// What one rank of a stage cannot record the other does not replay alone.
TEST(DeviceWithoutMemoryTest, OfSeveralRanksNoneRecordsWhatOneCannot) {
  const emulator::DeviceModel model = emulator::GetDeviceModel();
  emulator::DeviceModel two = model;
  two.count = 2;
  emulator::SetDeviceModel(two);
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const std::vector<int32_t> prompt = RandomIds(20);
  std::vector<int32_t> tokens[2];
  for (const bool full : {false, true}) {
    ExecutorGroup group(checkpoint, 2, 1, TinyOptions(), 1, Device::kCuda, 0, Collectives::kNccl);
    if (full) FailCall(FailingCall::kInstantiate, cudaErrorMemoryAllocation, 0, 1);
    tokens[full ? 1 : 0] = Generate(group, prompt, kTokens);
    FailCall(FailingCall::kLaunch, 0);
  }
  EXPECT_EQ(tokens[0].size(), kTokens);
  EXPECT_EQ(tokens[1], tokens[0]);
  emulator::SetDeviceModel(model);
}

}  // namespace
}  // namespace pergola
