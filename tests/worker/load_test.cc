// How weights come into memory: by several threads, in several copies, and when something fails.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/worker/golden.h"
#include "tests/worker/memory_checkpoint.h"
#include "worker/weights/loader.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<CpuStream> Host(int threads) {
  StreamOptions options;
  options.threads = threads;
  return CpuStream::Create(options);
}

RankLayout OneRank(const Checkpoint& checkpoint) {
  return *MakeLayout(checkpoint.spec(), 1, 1, 0);
}

// Everything in small steps, so that a tiny model has many.
LoadLimits SmallSteps() {
  LoadLimits limits;
  limits.pack.read_bytes = 600;
  limits.pack.turned_bytes = 2000;
  limits.staging_bytes = 3000;
  return limits;
}

// The bytes of all matrices and vectors; on the emulator a GPU's memory can be read.
std::vector<std::string> BytesOf(const StageWeights& weights) {
  std::vector<std::string> all;
  const auto add = [&](const void* data, int64_t bytes) {
    all.emplace_back(static_cast<const char*>(data), static_cast<size_t>(bytes));
  };
  const auto add_norm = [&](const NormWeights& norm) {
    add(norm.weight.data(), norm.weight.bytes());
    add(norm.bias.data(), norm.bias.bytes());
  };
  for (const PackedMatrix* matrix : {&weights.embedding, &weights.positions, &weights.head}) {
    add(matrix->data(), matrix->bytes());
  }
  add_norm(weights.embedding_norm);
  add_norm(weights.final_norm);
  for (const LayerWeights& layer : weights.layer_weights) {
    for (const Projection* projection : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      for (const PackedMatrix& part : projection->parts) add(part.data(), part.bytes());
      add(projection->bias.data(), projection->bias.bytes());
    }
    for (const NormWeights* norm :
         {&layer.attention_norm, &layer.mlp_norm, &layer.query_norm, &layer.key_norm,
          &layer.attention_post_norm, &layer.mlp_post_norm}) {
      add_norm(*norm);
    }
  }
  return all;
}

// Loads of every kind of file: plain, fused, transposed, GGUF's blocks and permuted rows.
class LoadTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(LoadGolden(GetParam()).checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }
  std::vector<std::string> Load(Stream& stream, WeightFormat format, const LoadLimits& limits,
                                LoadTimes* times = nullptr) {
    int64_t done = 0, total = -1;
    const auto progress = [&](int64_t d, int64_t t) {
      EXPECT_GT(d, done);
      done = d;
      total = t;
    };
    const auto weights = LoadStageWeights(*checkpoint_, OneRank(*checkpoint_), stream, progress,
                                          format, times, limits);
    EXPECT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(done, total);
    return BytesOf(*weights);
  }
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(LoadTest, SeveralThreadsInSmallStepsGiveTheSameBytes) {
  const auto one = Host(1), four = Host(4);
  for (const WeightFormat format : kWeightFormats) {
    if (!CheckOnCpu(format).ok()) continue;
    const auto want = Load(*one, format, LoadLimits());
    EXPECT_EQ(Load(*four, format, SmallSteps()), want) << WeightFormatName(format);
  }
}

// The device has what is packed there in one step: layers cut into parts, three buffers in turn,
// and copies that land as late as the device may let them.
TEST_P(LoadTest, ManyCopiesGiveADeviceTheSameBytes) {
  for (const WeightFormat format : kWeightFormats) {
    SCOPED_TRACE(WeightFormatName(format));
    const auto load = [&](int threads, const LoadLimits& limits, bool deferred, LoadTimes* times) {
      const auto host = Host(threads);
      const auto stream = OpenCudaStream(0, *host);
      EXPECT_TRUE(stream.ok()) << stream.status();
      // Enough for any of them.
      EXPECT_TRUE((*stream)->Reserve(4 << 20).ok());
      emulator::SetDeferred(deferred);
      auto bytes = Load(**stream, format, limits, times);
      emulator::SetDeferred(false);
      return bytes;
    };
    LoadTimes few, many;
    const auto want = load(1, LoadLimits(), false, &few);
    const int64_t layers = checkpoint_->spec().layers;
    // Each layer in one, and what is before and behind them.
    EXPECT_GE(few.copies, layers + 1);
    EXPECT_LE(few.copies, layers + 2);
    EXPECT_EQ(load(3, SmallSteps(), true, &many), want);
    EXPECT_GT(many.copies, 2 * layers);
    EXPECT_LT(many.staging_bytes, few.staging_bytes);
    EXPECT_EQ(many.read_bytes, few.read_bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, LoadTest,
                         testing::Values("uneven", "gqa_tied", "gguf_q4_0", "gguf_q8_0", "gpt2",
                                         "bloom", "gpt_bigcode_mqa"),
                         [](const auto& test) { return std::string(test.param); });

// Without a reservation nothing lies together, and every piece is copied by itself.
TEST(UploadTest, PiecesThatDoNotLieTogetherAreCopiedOneByOne) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto host = Host(2);
  LoadTimes together, apart;
  std::vector<std::vector<std::string>> bytes;
  for (const bool reserve : {true, false}) {
    const auto stream = OpenCudaStream(0, *host);
    ASSERT_TRUE(stream.ok()) << stream.status();
    if (reserve) {
      ASSERT_TRUE((*stream)->Reserve(4 << 20).ok());
    }
    const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), **stream, nullptr,
                                          WeightFormat::kAuto, reserve ? &together : &apart);
    ASSERT_TRUE(weights.ok()) << weights.status();
    bytes.push_back(BytesOf(*weights));
  }
  EXPECT_EQ(bytes[0], bytes[1]);
  EXPECT_EQ(together.copies, 3 + 2);
  EXPECT_GT(apart.copies, together.copies);
}

TEST(UploadTest, TimesSayWhatWasDone) {
  LoadTimes times;
  times.read_bytes = 3 << 20;
  times.total = 0.5;
  times.threads = 4;
  times.read = 0.25;
  times.convert = 1.5;
  EXPECT_EQ(times.ToString(),
            "3.0 MiB read in 0.500 s, 0.01 GB/s, by 4 threads; thread-seconds: read 0.250, convert "
            "1.500, copy 0.000, wait 0.000");
  times.copies = 7;
  times.staging_bytes = 6 << 20;
  EXPECT_THAT(times.ToString(),
              HasSubstr("; 7 copies to the device through 6.0 MiB of pinned memory"));
}

// Reads of one tensor fail from the `good`-th on.
class FailingCheckpoint : public MemoryCheckpoint {
 public:
  FailingCheckpoint(std::string tensor, int good)
      : MemoryCheckpoint(TinySpec(), {}), tensor_(std::move(tensor)), good_(good) {}
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override {
    if (tensor.name == tensor_ && good_.fetch_sub(1) <= 0) {
      return absl::InternalError("/models/x: read failed: Input/output error");
    }
    return MemoryCheckpoint::Read(tensor, offset, out);
  }

 private:
  const std::string tensor_;
  mutable std::atomic<int> good_;
};

TEST(FailedLoadTest, AReadThatFailsNamesTensorAndFile) {
  for (const int threads : {1, 4}) {
    const auto host = Host(threads);
    for (const int good : {0, 3}) {
      const FailingCheckpoint checkpoint("layers.1.mlp.up", good);
      const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), *host, nullptr,
                                            WeightFormat::kAuto, nullptr, SmallSteps());
      EXPECT_EQ(weights.status().code(), absl::StatusCode::kInternal);
      EXPECT_EQ(weights.status().message(),
                "tensor layers.1.mlp.up: /models/x: read failed: Input/output error");
    }
  }
}

TEST(FailedLoadTest, AFailedReadEndsAnUploadToo) {
  const auto host = Host(4);
  const auto stream = OpenCudaStream(0, *host);
  ASSERT_TRUE(stream.ok()) << stream.status();
  const FailingCheckpoint checkpoint("layers.1.mlp.up", 1);
  const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), **stream, nullptr,
                                        WeightFormat::kAuto, nullptr, SmallSteps());
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE((*stream)->Synchronize().ok());
}

TEST(FailedLoadTest, OfSeveralErrorsTheFirstRowsIsTold) {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int64_t row : {90, 57, 31}) {
    std::memcpy(&checkpoint.Bytes(Role::kUp, 1)[row * 32 * 4], &nan, 4);
  }
  std::memcpy(&checkpoint.Bytes(Role::kGate, 2)[0], &nan, 4);
  std::memcpy(&checkpoint.Bytes(Role::kFinalNorm, -1)[0], &nan, 4);
  const auto host = Host(4);
  for (int i = 0; i < 50; ++i) {
    const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), *host, nullptr,
                                          WeightFormat::kAuto, nullptr, SmallSteps());
    ASSERT_EQ(weights.status().message(),
              "tensor layers.1.mlp.up has a NaN or Inf at row 31, column 0; weights must be "
              "finite");
  }
}

TEST(FailedLoadTest, AFileThatIsShorterThanItWasIsNamedWithTheTensor) {
  const std::string path = testing::TempDir() + "/short.gguf";
  std::filesystem::copy_file(LoadGolden("gguf_q8_0").checkpoint, path,
                             std::filesystem::copy_options::overwrite_existing);
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 3000);
  const auto host = Host(3);
  const auto weights = LoadStageWeights(**checkpoint, OneRank(**checkpoint), *host, nullptr);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("tensor "));
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("short.gguf: ends at "));
  std::filesystem::remove(path);
}

TEST(FailedLoadTest, ACopyThatFailsNamesLayerAndDevice) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (const int threads : {1, 3}) {
    const auto host = Host(threads);
    const auto stream = OpenCudaStream(0, *host);
    ASSERT_TRUE(stream.ok()) << stream.status();
    ASSERT_TRUE((*stream)->Reserve(4 << 20).ok());
    // The embedding and layer 0 arrive.
    emulator::FailCall(emulator::FailingCall::kCopy, cudaErrorIllegalAddress, 2);
    const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), **stream, nullptr);
    emulator::FailCall(emulator::FailingCall::kCopy, cudaSuccess);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(weights.status().message()),
                HasSubstr("uploading the weights of layer 1: CUDA device 0: copying to it: "));
  }
}

// No reservation: the device is full in the middle of the weights.
TEST(FailedLoadTest, ADeviceThatIsFullIsNamedWithTheBytes) {
  const emulator::DeviceModel model = emulator::GetDeviceModel();
  emulator::DeviceModel small = model;
  small.memory_bytes = 100'000;
  emulator::SetDeviceModel(small);
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto host = Host(2);
  {
    const auto stream = OpenCudaStream(0, *host);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const auto weights = LoadStageWeights(checkpoint, OneRank(checkpoint), **stream, nullptr);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(weights.status().message()), HasSubstr("CUDA device 0: allocating "));
  }
  {
    const auto stream = OpenCudaStream(0, *host);
    ASSERT_TRUE(stream.ok()) << stream.status();
    EXPECT_EQ((*stream)->Reserve(100'001).message(),
              "CUDA device 0: reserving 100001 bytes: out of memory (cudaErrorMemoryAllocation)");
  }
  emulator::SetDeviceModel(model);
}

}  // namespace
}  // namespace pergola
