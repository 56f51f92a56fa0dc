// Tokens chosen through a stream (kernels/device_sampler.h): rows of everything against
// SampleTasks, for vocabularies cut over ranks; the device's guesses; events, and ids that a device
// takes from its own memory.
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/decoder_ops.h"
#include "kernels/device_sampler.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_sample_row.h"

namespace pergola {
namespace {

constexpr int64_t kRows = 12;
constexpr int64_t kHistory = 200;

// The ranks of a stage, each with its own stream, one after the other in this thread.
class SamplerStage {
 public:
  SamplerStage(int64_t vocabulary, int ranks, int threads) : vocabulary_(vocabulary) {
    StreamOptions options;
    options.threads = threads;
    options.workspace_bytes = threads * SampleWorkspaceBytes(vocabulary, kHistory);
    host_ = CpuStream::Create(options, CpuTarget::kPortable);
    DeviceSamplerShape shape;
    for (int rank = 0; rank < ranks; ++rank) {
      shape.slices.push_back({vocabulary * rank / ranks, vocabulary * (rank + 1) / ranks});
    }
    shape.entries = kRows;
    shape.rows.tasks = kRows;
    shape.rows.vocabulary = vocabulary;
    shape.rows.widest_slice = (vocabulary + ranks - 1) / ranks;
    shape.rows.history = kHistory;
    shape.rows.edits = 1 << 14;
    for (const Range& slice : shape.slices) {
      shape.rows.slice = slice;
      auto stream = OpenCudaStream(0, *host_);
      EXPECT_TRUE(stream.ok()) << stream.status();
      streams_.push_back(std::move(stream).value());
      const DeviceSamplerBytes bytes = streams_.back()->SamplerBytes(shape);
      workspaces_.emplace_back(*streams_.back(), bytes.workspace);
      streams_.back()->UseWorkspace(workspaces_.back().data(), bytes.workspace);
      auto sampler = streams_.back()->MakeSampler(shape);
      EXPECT_TRUE(sampler.ok()) << sampler.status();
      samplers_.push_back(std::move(sampler).value());
      logits_.emplace_back(*streams_.back(), kRows * slice.size() * 4);
    }
    slices_ = shape.slices;
  }

  // Answers tasks whose logits are on the host; the tasks left to the host are returned, and done.
  std::vector<int32_t> Run(std::vector<SampleTask>* tasks) {
    std::vector<int32_t> entries;
    for (size_t i = 0; i < tasks->size(); ++i) {
      entries.push_back((*tasks)[i].draw ? static_cast<int32_t>(tasks->size() - 1 - i) : -1);
    }
    std::vector<const uint8_t*> answers;
    for (size_t rank = 0; rank < slices_.size(); ++rank) {
      std::vector<SampleTask> own = *tasks;
      const int64_t values = slices_[rank].size();
      for (size_t i = 0; i < own.size(); ++i) {
        uint8_t* row = logits_[rank].data() + static_cast<int64_t>(i) * values * 4;
        streams_[rank]->CopyToDevice(row, own[i].row.logits + slices_[rank].begin, values * 4);
        own[i].row.logits = reinterpret_cast<const float*>(row);
      }
      EXPECT_TRUE(samplers_[rank]->Enqueue(own, entries).ok());
      EXPECT_TRUE(streams_[rank]->Synchronize().ok());
      answers.push_back(samplers_[rank]->answers().data());
      EXPECT_EQ(samplers_[rank]->answers().size(), samplers_[0]->answers().size());
    }
    std::vector<int32_t> left;
    for (size_t rank = 0; rank < slices_.size(); ++rank) {
      std::vector<SampleTask> merged = *tasks;
      std::vector<int32_t> own_left;
      samplers_[rank]->Merge(answers, absl::MakeSpan(merged), &own_left);
      if (rank > 0) {
        EXPECT_EQ(own_left, left);
      }
      left = own_left;
      if (rank + 1 == slices_.size()) *tasks = merged;
    }
    for (const int32_t i : left) SampleTasks(*host_, &(*tasks)[i], 1, vocabulary_);
    return left;
  }

  DeviceSampler& sampler() { return *samplers_[0]; }
  Stream& stream() { return *streams_[0]; }
  CpuStream& host() { return *host_; }

 private:
  const int64_t vocabulary_;
  std::unique_ptr<CpuStream> host_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<DeviceBuffer> workspaces_;
  std::vector<DeviceBuffer> logits_;
  std::vector<std::unique_ptr<DeviceSampler>> samplers_;
  std::vector<Range> slices_;
};

class DeviceSamplerTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  }
};

TEST_P(DeviceSamplerTest, ChoosesWhatTheHostChooses) {
  for (const int64_t vocabulary : {17, 1201}) {
    SamplerStage stage(vocabulary, GetParam(), 2);
    for (uint32_t call = 0; call < 6; ++call) {
      std::vector<std::unique_ptr<RandomSampleRow>> rows;
      std::vector<SampleTask> want;
      for (uint32_t i = 0; i < kRows - call % 2; ++i) {
        rows.push_back(std::make_unique<RandomSampleRow>(vocabulary, 100 * call + i));
        SampleTask task;
        task.row = rows.back()->row;
        task.draw = i % 5 != 4;
        task.target = i % 5 >= 3 ? static_cast<int32_t>(i % vocabulary) : -1;
        task.logprobs = i % 3 == 0;
        want.push_back(task);
      }
      std::vector<SampleTask> got = want;
      SampleTasks(stage.host(), want.data(), static_cast<int64_t>(want.size()), vocabulary);
      stage.Run(&got);
      for (size_t i = 0; i < want.size(); ++i) {
        const std::string where = "call " + std::to_string(call) + " row " + std::to_string(i);
        EXPECT_EQ(got[i].valid, want[i].valid) << where;
        EXPECT_EQ(got[i].id, want[i].id) << where;
        if (!want[i].valid || want[i].target < 0) continue;
        const float want_logprob = want[i].target_logprobs.logprob;
        if (std::isinf(want_logprob)) {
          EXPECT_EQ(got[i].target_logprobs.logprob, want_logprob) << where;
        } else {
          EXPECT_NEAR(got[i].target_logprobs.logprob, want_logprob,
                      2 * kUnit * std::abs(want_logprob) + 1e-12)
              << where;
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, DeviceSamplerTest, testing::Values(1, 2, 3));

TEST_F(DeviceSamplerTest, GuessesAreTheTokensWhereTheDeviceCanDoARow) {
  constexpr int64_t kVocabulary = 1201;
  SamplerStage stage(kVocabulary, 1, 1);
  int guessed = 0;
  for (uint32_t call = 0; call < 8; ++call) {
    std::vector<std::unique_ptr<RandomSampleRow>> rows;
    std::vector<SampleTask> tasks;
    for (uint32_t i = 0; i < kRows; ++i) {
      rows.push_back(std::make_unique<RandomSampleRow>(kVocabulary, 1000 + 100 * call + i));
      rows.back()->row.typical_p = 1;
      SampleTask task;
      task.row = rows.back()->row;
      task.draw = true;
      task.logprobs = i % 4 == 0;
      task.top = 5;
      tasks.push_back(task);
    }
    const std::vector<int32_t> left = stage.Run(&tasks);
    EXPECT_TRUE(stage.sampler().guesses());
    for (int64_t i = 0; i < kRows; ++i) {
      const bool by_host = std::find(left.begin(), left.end(), i) != left.end();
      if (by_host) continue;
      const int32_t want = tasks[i].valid ? tasks[i].id : 0;
      EXPECT_EQ(stage.sampler().tokens()[kRows - 1 - i], want) << "call " << call << " row " << i;
      ++guessed;
    }
  }
  // Few rows are such that only the host can draw: a wide top_p, ties.
  EXPECT_GT(guessed, 8 * kRows * 2 / 3);
}

TEST_F(DeviceSamplerTest, SaysWhenItsGuessesAreWorthNothing) {
  SamplerStage stage(1201, 1, 1);
  const std::vector<float> logits = RandomValues(1201, 5, 1.0F);
  const auto guesses = [&](auto change) {
    SampleTask task;
    task.row.logits = logits.data();
    task.row.temperature = 1;
    task.draw = true;
    change(&task);
    std::vector<SampleTask> tasks = {task};
    stage.Run(&tasks);
    return stage.sampler().guesses();
  };
  EXPECT_TRUE(guesses([](SampleTask*) {}));
  EXPECT_TRUE(guesses([](SampleTask* task) { task->row.top_p = 0.5F; }));
  EXPECT_FALSE(guesses([](SampleTask* task) { task->row.typical_p = 0.5F; }));
  EXPECT_FALSE(guesses([](SampleTask* task) { task->row.top_k = 1100; }));
  // Nobody asks for the token of a row that is scored only.
  EXPECT_TRUE(guesses([](SampleTask* task) {
    task->row.typical_p = 0.5F;
    task->draw = false;
    task->target = 3;
  }));
  SamplerStage two(1201, 2, 1);
  std::vector<SampleTask> tasks(1);
  tasks[0].row.logits = logits.data();
  tasks[0].draw = true;
  two.Run(&tasks);
  EXPECT_FALSE(two.sampler().guesses());
}

TEST_F(DeviceSamplerTest, AVocabularyTooWideIsRefused) {
  const auto host = CpuStream::Create({});
  auto stream = OpenCudaStream(0, *host);
  ASSERT_TRUE(stream.ok()) << stream.status();
  DeviceSamplerShape shape;
  shape.slices = {{0, 1 << 21}};
  shape.rows.slice = shape.slices[0];
  shape.rows.widest_slice = 1 << 21;
  EXPECT_EQ((*stream)->MakeSampler(shape).status().code(), absl::StatusCode::kInvalidArgument);
}

class TakeTokensTest : public testing::TestWithParam<Device> {};

TEST_P(TakeTokensTest, OnlyIdsThatNameAnEntryAreReplaced) {
  const auto host = CpuStream::Create({});
  std::unique_ptr<Stream> gpu;
  if (GetParam() == Device::kCuda) {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
    gpu = std::move(OpenCudaStream(0, *host)).value();
  }
  Stream& stream = gpu != nullptr ? *gpu : *host;
  std::vector<int32_t> ids = {5, TokenOfEntry(2), -1, TokenOfEntry(0), 0, TokenOfEntry(2), 7};
  const std::vector<int32_t> tokens = {100, 101, 102};
  const DeviceBuffer device_ids(stream, 7 * 4), device_tokens(stream, 3 * 4);
  stream.CopyToDevice(device_ids.data(), ids.data(), 7 * 4);
  stream.CopyToDevice(device_tokens.data(), tokens.data(), 3 * 4);
  TakeTokensArgs args;
  args.ids = reinterpret_cast<int32_t*>(device_ids.data());
  args.tokens = reinterpret_cast<const int32_t*>(device_tokens.data());
  args.count = 6;
  TakeTokens(stream, args);
  const auto event = stream.MakeEvent();
  stream.CopyToHost(ids.data(), device_ids.data(), 7 * 4);
  stream.Record(*event);
  ASSERT_TRUE(stream.Wait(*event).ok());
  EXPECT_TRUE(stream.Reached(*event));
  EXPECT_EQ(ids, (std::vector<int32_t>{5, 102, -1, 100, 0, 102, 7}));
}
INSTANTIATE_TEST_SUITE_P(Devices, TakeTokensTest, testing::Values(Device::kCpu, Device::kCuda));

}  // namespace
}  // namespace pergola
