// A stage of ranks that sample on one device, for tests of kernels/cuda/row_sampler.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/row_sampler.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {

inline constexpr int64_t kStageTasks = 32;
inline constexpr int64_t kStageHistory = 200;

// The ranks of a stage, one after the other in this thread.
class Stage {
 public:
  Stage(int64_t vocabulary, int ranks, int64_t edits = 1 << 15)
      : vocabulary_(vocabulary), space_(ranks) {
    for (int rank = 0; rank < ranks; ++rank) {
      slices_.push_back({vocabulary * rank / ranks, vocabulary * (rank + 1) / ranks});
    }
    for (const Range& slice : slices_) {
      RowSamplerShape shape;
      shape.tasks = kStageTasks;
      shape.vocabulary = vocabulary;
      shape.slice = slice;
      shape.widest_slice = (vocabulary + ranks - 1) / ranks;
      shape.history = kStageHistory;
      shape.edits = edits;
      contexts_.push_back(std::make_unique<TestCudaContext>(RowSampler::Bytes(shape).workspace));
      const DeviceSamplerBytes bytes = RowSampler::Bytes(shape);
      memory_.push_back(std::make_unique<DeviceArray<uint8_t>>(bytes.device));
      pinned_.push_back(std::make_unique<PinnedBytes>(bytes.pinned));
      auto created = RowSampler::Create(shape, *contexts_.back(),
                                        {memory_.back()->data(), pinned_.back()->data()});
      EXPECT_TRUE(created.ok()) << created.status();
      samplers_.push_back(std::move(created).value());
      logits_.push_back(std::make_unique<DeviceArray<float>>(kStageTasks * slice.size()));
    }
  }

  // Answers the tasks, whose logits are on the host. `left` counts those the ranks left to the
  // host.
  void Run(std::vector<SampleTask>* tasks, int* left) {
    std::vector<const uint8_t*> answers;
    for (size_t rank = 0; rank < slices_.size(); ++rank) RunRank(rank, *tasks);
    for (const auto& sampler : samplers_) answers.push_back(sampler->host_answers());
    const RankAnswers all = {samplers_[0]->layout(), answers, slices_, vocabulary_};
    const auto stream =
        MakeStream(CpuTarget::kPortable, 1, SampleWorkspaceBytes(vocabulary_, kStageHistory));
    *left = 0;
    for (size_t i = 0; i < tasks->size(); ++i) {
      for (const auto& sampler : samplers_) {
        EXPECT_EQ(sampler->jobs(i).draw, samplers_[0]->jobs(i).draw);
        EXPECT_EQ(sampler->jobs(i).host, samplers_[0]->jobs(i).host);
      }
      if (MergeTask(all, samplers_[0]->jobs(i), CpuTarget::kPortable, &space_, &(*tasks)[i])) {
        continue;
      }
      ++*left;
      SampleTasks(*stream, &(*tasks)[i], 1, vocabulary_);
    }
  }

  const RowSampler& sampler(int rank) const { return *samplers_[rank]; }

 private:
  void RunRank(size_t rank, std::vector<SampleTask> tasks) {
    const Range& slice = slices_[rank];
    const auto bytes = static_cast<size_t>(slice.size()) * sizeof(float);
    auto* logits = logits_[rank]->data();
    for (size_t i = 0; i < tasks.size(); ++i) {
      float* row = logits + static_cast<int64_t>(i) * slice.size();
      ASSERT_EQ(cudaMemcpy(row, tasks[i].row.logits + slice.begin, bytes, cudaMemcpyHostToDevice),
                cudaSuccess);
      host_.push_back(tasks[i].row.logits);
      tasks[i].row.logits = row;
    }
    // The copies may still be under way: the context's stream does not wait for them.
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    RowSampler& sampler = *samplers_[rank];
    sampler.Prepare(tasks);
    ASSERT_TRUE(sampler.Enqueue().ok());
    ASSERT_TRUE(sampler.CopyAnswers().ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<float> after(static_cast<size_t>(slice.size()) + 1);  // not null for no ids either
    for (size_t i = 0; i < tasks.size(); ++i) {
      ASSERT_EQ(cudaMemcpy(after.data(), tasks[i].row.logits, bytes, cudaMemcpyDeviceToHost),
                cudaSuccess);
      EXPECT_EQ(std::memcmp(after.data(), host_[i] + slice.begin, bytes), 0)
          << "the logits of row " << i << " are not what they were";
    }
    host_.clear();
  }

  const int64_t vocabulary_;
  std::vector<Range> slices_;
  std::vector<std::unique_ptr<TestCudaContext>> contexts_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> memory_;
  std::vector<std::unique_ptr<PinnedBytes>> pinned_;
  std::vector<std::unique_ptr<DeviceArray<float>>> logits_;
  std::vector<std::unique_ptr<RowSampler>> samplers_;
  MergeSpace space_;
  std::vector<const float*> host_;
};

}  // namespace pergola
