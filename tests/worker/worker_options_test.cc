#include "worker/worker_options.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/hello.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<WorkerOptions> Parse(std::vector<const char*> flags) {
  std::vector<const char*> argv = {"pergola-worker", "--model", "m", "--coordinator", "h:1"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  return ParseWorkerOptions(static_cast<int>(argv.size()), argv.data());
}

TEST(WorkerOptionsTest, ReadsLayoutKvAndTimes) {
  const auto options = Parse({"--tp", "2", "--pp", "3", "--kv-mib", "5", "--kv-dtype", "bf16",
                              "--block-tokens", "64", "--step-timeout-ms", "1500"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->tensor_parallel, 2);
  EXPECT_EQ(options->pipeline_parallel, 3);
  EXPECT_EQ(options->executor.kv_bytes, 5 << 20);
  EXPECT_EQ(options->executor.kv_dtype, DType::kBF16);
  EXPECT_TRUE(options->executor.kv_dtype_set);
  EXPECT_EQ(options->executor.block_tokens, 64);
  EXPECT_EQ(options->step_timeout_ms, 1500);
  EXPECT_FALSE(options->cpu_target_set);
}

struct BadFlag {
  const char* flag;
  const char* value;
  const char* text;
};

TEST(WorkerOptionsTest, RefusesValuesOutsideTheirLimitsInWords) {
  const std::string long_name(65, 'g');
  for (const BadFlag& bad :
       {BadFlag{"--tp", "0", "--tp 0: must be 1 to 1048576"},
        BadFlag{"--pp", "-1", "--pp -1: must be 1 to 1048576"},
        BadFlag{"--threads", "5000", "--threads 5000: must be 0 to 1024"},
        BadFlag{"--slots", "0", "--slots 0: must be 1 to 65536"},
        BadFlag{"--block-tokens", "48", "--block-tokens is 48; it must be 16, 32, 64 or 128"},
        BadFlag{"--kv-dtype", "q4_0", "--kv-dtype is 'q4_0'; it must be f32, bf16 or f16"},
        BadFlag{"--dtype", "q4_1",
                "--dtype is 'q4_1'; it must be one of auto, f32, bf16, f16, int8, fp8, int4"},
        BadFlag{"--activation-dtype", "f8", "--activation-dtype is 'f8'; it must be f32, bf16 or"},
        BadFlag{"--device", "tpu", "--device is 'tpu'; it must be auto, cpu or cuda"},
        BadFlag{"--devices", "0,x", "'x' is not a number from 0 to 63"},
        BadFlag{"--devices", "0,64", "'64' is not a number from 0 to 63"},
        BadFlag{"--devices", "1,2,1", "1 stands there twice"},
        BadFlag{"--collectives", "mpi", "--collectives is 'mpi'; it must be auto, nccl or host"},
        BadFlag{"--gpu-memory-fraction", "1.5", "must be above 0 and at most 1"},
        BadFlag{"--peer-sum-bytes", "67108865",
                "--peer-sum-bytes 67108865: must be auto or 0 to 67108864"},
        BadFlag{"--peer-sum-bytes", "-1", "--peer-sum-bytes -1: must be auto or 0 to 67108864"},
        BadFlag{"--cpu-target", "mmx", "--cpu-target is 'mmx'; it must be one of"},
        BadFlag{"--log-level", "loud", "--log-level is 'loud'"},
        BadFlag{"--group", long_name.c_str(), "--group has 65 characters; it must have 1 to 64"},
        BadFlag{"--step-timeout-ms", "0", "--step-timeout-ms"},
        BadFlag{"--no-such-flag", "1", "--no-such-flag"}}) {
    const auto options = Parse({bad.flag, bad.value});
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument) << bad.flag;
    EXPECT_THAT(std::string(options.status().message()), HasSubstr(bad.text));
  }
}

TEST(WorkerOptionsTest, NeedsAModelAndACoordinator) {
  const char* argv[] = {"pergola-worker", "--model", "m"};
  EXPECT_THAT(std::string(ParseWorkerOptions(3, argv).status().message()),
              HasSubstr("--coordinator"));
}

TEST(WorkerOptionsTest, HelpIsTextToPrint) {
  const auto options = Parse({"--help"});
  EXPECT_EQ(options.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(options.status().message()), HasSubstr("--orphan-timeout-ms"));
}

TEST(WorkerOptionsTest, ReadsTheJoinTokenWithoutItsNewline) {
  const std::string path = ::testing::TempDir() + "/pergola-join-token";
  std::ofstream(path) << "abc123\n";
  EXPECT_EQ(ReadJoinToken(path).value(), "abc123");
  std::ofstream(path) << "\n";
  EXPECT_THAT(std::string(ReadJoinToken(path).status().message()), HasSubstr("is empty"));
  EXPECT_THAT(std::string(ReadJoinToken(path + "-none").status().message()),
              HasSubstr("not readable"));
}

TEST(NumericsIdTest, ChangesWithEverythingThatMayChangeABit) {
  const std::vector<Range> stages = {{0, 5}, {5, 8}};
  const std::vector<std::string> ranks = {RankNumerics("f32", "avx2"), RankNumerics("f32", "avx2")};
  const std::string id = NumericsId("print", 1, stages, ranks);
  EXPECT_EQ(id.size(), 64U);
  EXPECT_EQ(NumericsId("print", 1, stages, ranks), id);
  EXPECT_NE(NumericsId("other", 1, stages, ranks), id);
  EXPECT_NE(NumericsId("print", 2, stages, ranks), id);
  EXPECT_NE(NumericsId("print", 1, {{0, 4}, {4, 8}}, ranks), id);
  EXPECT_NE(NumericsId("print", 1, stages, {ranks[0], RankNumerics("f32", "avx512")}), id);
  EXPECT_NE(NumericsId("print", 1, stages, {ranks[0], RankNumerics("bf16", "avx2")}), id);
}

}  // namespace
}  // namespace pergola
