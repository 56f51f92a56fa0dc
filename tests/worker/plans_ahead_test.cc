// A plan that begins before the one before is finished: the same tokens as one after the other,
// with ids that never pass through the host.
#include <algorithm>
#include <deque>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/decoder_ops.h"
#include "tests/worker/executor_fixture.h"
#include "worker/step/token_board.h"

namespace pergola {
namespace {

constexpr uint32_t kSlots = 4;

// Plans that refer to each other's tokens, made without knowing one: prompts in chunks, decoding
// beside them, ends, new sequences in their slots.
class RandomPlans {
 public:
  RandomPlans(uint64_t seed, int64_t vocabulary) : random_(seed), vocabulary_(vocabulary) {}

  v1::StepPlan Next() {
    v1::StepPlan plan;
    plan.set_epoch(1);
    plan.set_plan_id(++plan_id_);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      Sequence& sequence = sequences_[slot];
      if (sequence.known == 0 || (sequence.computed > sequence.known + 4 && Pick(4) == 0))
        Start(slot, &plan);
      if (Pick(5) != 0) Add(slot, &plan);
    }
    return plan;
  }

 private:
  struct Sequence {
    int64_t known = 0;  // of the prompt
    int64_t computed = 0;
    uint64_t plan = 0;  // that sampled last
    uint32_t entry = 0;
    bool barren = false;  // of its first token
  };

  uint32_t Pick(uint32_t count) { return static_cast<uint32_t>(random_() % count); }

  void Start(uint32_t slot, v1::StepPlan* plan) {
    sequences_[slot] = Sequence();
    sequences_[slot].known = 1 + Pick(30);
    v1::SlotStart* start = plan->add_starts();
    start->set_slot(slot);
    start->set_seed(random_());
    start->set_prompt_tokens(static_cast<uint32_t>(sequences_[slot].known));
    v1::Sampling* sampling = start->mutable_sampling();
    sampling->set_top_p(1);
    switch (Pick(7)) {
      case 0:
        break;  // greedy
      case 1:
        sampling->set_temperature(1);
        break;
      case 2:
        sampling->set_temperature(1.5F);
        sampling->set_top_k(20);
        sampling->set_top_p(0.9F);
        break;
      case 3:  // looks back at tokens that the host does not know at Begin
        sampling->set_temperature(0.8F);
        sampling->set_repetition_penalty(1.7F);
        sampling->set_frequency_penalty(0.4F);
        sampling->set_no_repeat_ngram_size(2);
        sampling->set_logprobs(3);
        break;
      case 4:  // the device's guess may be wrong
        sampling->set_temperature(8);
        sampling->set_top_p(0.999F);
        break;
      case 5: {  // the first token has no id that it may be: ENTRY_STATUS_NAN
        v1::LogitBias* bias = sampling->add_logit_bias();
        bias->set_id(7);
        bias->set_bias(-std::numeric_limits<float>::infinity());
        sequences_[slot].barren = true;
        break;
      }
      default:  // only the host can draw
        sampling->set_temperature(2);
        sampling->set_typical_p(0.9F);
    }
  }

  void Add(uint32_t slot, v1::StepPlan* plan) {
    Sequence& sequence = sequences_[slot];
    v1::Entry* entry = plan->add_entries();
    entry->set_slot(slot);
    entry->set_first_position(static_cast<uint32_t>(sequence.computed));
    if (sequence.computed == 0) {
      for (uint32_t block = 0; block < 6; ++block) entry->add_block_ids(slot * 6 + block);
    }
    int64_t rows = 1;
    if (sequence.computed < sequence.known) {
      rows = std::min<int64_t>(sequence.known - sequence.computed, 1 + Pick(12));
      for (int64_t i = 0; i < rows; ++i) {
        entry->add_ids(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocabulary_)));
      }
    } else {
      entry->mutable_from()->set_plan_id(sequence.plan);
      entry->mutable_from()->set_entry(sequence.entry);
    }
    sequence.computed += rows;
    if (sequence.computed < sequence.known) return;
    entry->add_logits_at(static_cast<uint32_t>(rows - 1));
    if (sequence.barren && entry->ids_size() > 0) entry->mutable_mask()->add_ids(7);
    sequence.plan = plan_id_;
    sequence.entry = static_cast<uint32_t>(plan->entries_size() - 1);
  }

  std::mt19937_64 random_;
  const int64_t vocabulary_;
  uint64_t plan_id_ = 0;
  Sequence sequences_[kSlots];
};

ExecutorOptions Options() {
  ExecutorOptions options = TinyOptions();
  options.slot_count = kSlots;
  return options;
}

// Runs plans on one rank, one after the other or as far ahead as the executor lets.
class Runner {
 public:
  Runner(StageExecutor& executor, bool ahead) : executor_(executor), ahead_(ahead), board_(100) {}

  int begun_ahead() const { return begun_ahead_; }

  void Begin(v1::StepPlan plan) {
    const absl::Status valid = executor_.Validate(plan);
    ASSERT_TRUE(valid.ok()) << valid;
    if (!plans_.empty() && !(ahead_ && executor_.MayBegin(plan))) Finish();
    if (!plans_.empty()) {
      board_.Expect(plans_.back());
      ++begun_ahead_;
    }
    std::vector<int32_t> ids;
    for (const v1::Entry& entry : plan.entries()) {
      ids.insert(ids.end(), entry.ids().begin(), entry.ids().end());
      if (!entry.has_from()) continue;
      const auto id = board_.Resolve(entry.from());
      ASSERT_TRUE(id.ok()) << id.status();
      ids.push_back(*id);
    }
    plans_.push_back(std::move(plan));
    const absl::Status begun = executor_.Begin(plans_.back(), ids, nullptr);
    ASSERT_TRUE(begun.ok()) << begun;
    if (plans_.size() == 2) Finish();
  }

  void Finish() {
    std::vector<v1::EntryResult> results;
    const absl::Status done = executor_.Finish(&results);
    ASSERT_TRUE(done.ok()) << done;
    v1::StepResult result;
    for (const v1::EntryResult& entry : results) *result.add_entries() = entry;
    result.set_plan_id(plans_.front().plan_id());
    board_.Record(result.plan_id(), result.entries());
    plans_.pop_front();
    answers_.push_back(result.SerializeAsString());
  }

  const std::vector<std::string>& Drain() {
    while (!plans_.empty()) Finish();
    return answers_;
  }

 private:
  StageExecutor& executor_;
  const bool ahead_;
  TokenBoard board_;
  std::deque<v1::StepPlan> plans_;
  std::vector<std::string> answers_;
  int begun_ahead_ = 0;
};

class PlansAheadTest : public testing::TestWithParam<std::tuple<int, int64_t>> {
 protected:
  void SetUp() override {
    // NCCL wants a device for each rank; the emulator has as many as it is told.
    emulator::DeviceModel model = model_;
    model.count = 2;
    emulator::SetDeviceModel(model);
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  }
  void TearDown() override {
    emulator::SetDeferred(false);
    emulator::SetDeviceModel(model_);
  }

  static ExecutorGroup MakeGroup(const Checkpoint& checkpoint, int tp) {
    return ExecutorGroup(checkpoint, tp, 1, Options(), 1, Device::kCuda, 0,
                         tp > 1 ? Collectives::kNccl : Collectives::kAuto);
  }

 private:
  const emulator::DeviceModel model_ = emulator::GetDeviceModel();
};

struct Outcome {
  std::vector<std::string> answers;
  int begun_ahead = 0;
  int64_t repeated = 0;

  bool operator==(const Outcome& other) const {
    return answers == other.answers && begun_ahead == other.begun_ahead &&
           repeated == other.repeated;
  }
};

TEST_P(PlansAheadTest, RandomPlansGiveWhatTheyGiveOneAfterTheOther) {
  const auto [tp, vocabulary] = GetParam();
  if (CudaDeviceCount() < tp) GTEST_SKIP() << "there are no " << tp << " CUDA devices";
  ModelSpec spec = TinySpec();
  spec.vocabulary = vocabulary;
  const MemoryCheckpoint checkpoint(spec, {});
  constexpr int kPlans = 60;
  const auto run = [&](bool ahead, bool deferred) {
    emulator::SetDeferred(deferred);
    ExecutorGroup group = MakeGroup(checkpoint, tp);
    std::vector<Outcome> ranks(tp);
    OnThreads(tp, [&](int rank) {
      StageExecutor& executor = group.executor(0, rank);
      Runner runner(executor, ahead);
      RandomPlans plans(17, spec.vocabulary);
      for (int i = 0; i < kPlans; ++i) runner.Begin(plans.Next());
      ranks[rank] = {runner.Drain(), runner.begun_ahead(), executor.repeated_passes()};
      EXPECT_GT(executor.recordings(), 0);
    });
    // All ranks have done the same.
    for (const Outcome& rank : ranks) EXPECT_TRUE(rank == ranks[0]);
    return ranks[0];
  };
  const Outcome want = run(false, false);
  EXPECT_EQ(want.begun_ahead, 0);
  EXPECT_EQ(want.repeated, 0);
  for (const bool deferred : {false, true}) {
    const Outcome got = run(true, deferred);
    ASSERT_EQ(got.answers.size(), want.answers.size());
    for (int i = 0; i < kPlans; ++i) {
      EXPECT_EQ(got.answers[i], want.answers[i]) << "plan " << i + 1;
    }
    EXPECT_GT(got.begun_ahead, kPlans / 4);
    // In a large vocabulary only the host can draw from a nucleus of nearly all ids.
    EXPECT_EQ(got.repeated > 0, vocabulary > 1000);
  }
}
INSTANTIATE_TEST_SUITE_P(RanksAndVocabularies, PlansAheadTest,
                         testing::Combine(testing::Values(1, 2), testing::Values(97, 1203)));

// A step in which three sequences decode.
v1::StepPlan Decode(uint64_t plan_id, int64_t position) {
  v1::StepPlan plan;
  plan.set_epoch(1);
  plan.set_plan_id(plan_id);
  for (uint32_t slot = 0; slot < 3; ++slot) {
    v1::Entry* entry = plan.add_entries();
    entry->set_slot(slot);
    entry->set_first_position(static_cast<uint32_t>(position));
    entry->mutable_from()->set_plan_id(plan_id - 1);
    entry->mutable_from()->set_entry(slot);
    entry->add_logits_at(0);
  }
  return plan;
}

TEST_F(PlansAheadTest, TheNextPlanBeginsBeforeTheDeviceHasDoneAnything) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto tokens = [&](bool deferred) {
    emulator::SetDeferred(deferred);
    ExecutorGroup group(checkpoint, 1, 1, Options(), 1, Device::kCuda);
    StageExecutor& executor = group.last();
    BuiltPlan first;
    for (uint32_t slot = 0; slot < 3; ++slot) {
      first.Start(slot, slot == 2 ? 1.0F : 0.0F, 5);
      first.Add(slot, RandomIds(4, slot), 0, Blocks(slot * 4, 4));
    }
    std::deque<v1::StepPlan> plans = {first.plan};
    EXPECT_TRUE(executor.Begin(plans.back(), first.ids, nullptr).ok());
    std::vector<int32_t> sampled;
    for (uint64_t id = 2; id <= 8; ++id) {
      plans.push_back(Decode(id, static_cast<int64_t>(id) + 2));
      EXPECT_TRUE(executor.Validate(plans.back()).ok());
      EXPECT_TRUE(executor.MayBegin(plans.back()));
      const std::vector<int32_t> ids = {TokenOfEntry(0), TokenOfEntry(1), TokenOfEntry(2)};
      EXPECT_TRUE(executor.Begin(plans.back(), ids, nullptr).ok());
      // Work of the plan before still waits to be waited for: nothing of it can be known here. The
      // question lets a single piece of it pass.
      if (deferred) {
        EXPECT_FALSE(executor.Ready().value());
      }
      std::vector<v1::EntryResult> results;
      EXPECT_TRUE(executor.Finish(&results).ok());
      plans.pop_front();
      for (const v1::EntryResult& result : results) sampled.push_back(result.ids(0));
      EXPECT_FALSE(!deferred && !executor.Ready().value());
    }
    std::vector<v1::EntryResult> results;
    EXPECT_TRUE(executor.Finish(&results).ok());
    return sampled;
  };
  EXPECT_EQ(tokens(true), tokens(false));
}

TEST_F(PlansAheadTest, ASlotThatStartsAnewWaitsForItsLastToken) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, Options(), 1, Device::kCuda);
  StageExecutor& executor = group.last();
  EXPECT_TRUE(executor.RunsAhead());
  BuiltPlan first;
  first.Start(0);
  first.Add(0, {1, 2}, 0, {0});
  EXPECT_TRUE(executor.MayBegin(first.plan));
  ASSERT_TRUE(executor.Begin(first.plan, first.ids, nullptr).ok());
  BuiltPlan again(2);
  again.Start(0);
  again.Add(0, {3}, 0, {0});
  EXPECT_FALSE(executor.MayBegin(again.plan));
  BuiltPlan other(2);
  other.Start(1);
  other.Add(1, {3}, 0, {1});
  EXPECT_TRUE(executor.MayBegin(other.plan));
  ASSERT_TRUE(executor.Begin(other.plan, other.ids, nullptr).ok());
  EXPECT_FALSE(executor.MayBegin(BuiltPlan(3).plan));
  std::vector<v1::EntryResult> results;
  ASSERT_TRUE(executor.Finish(&results).ok());
  EXPECT_EQ(results.size(), 1U);
  EXPECT_TRUE(executor.MayBegin(BuiltPlan(3).plan));
  ASSERT_TRUE(executor.Finish(&results).ok());
}

TEST_F(PlansAheadTest, OnlyGpusThatNeedNoHostToMeetRunAhead) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  EXPECT_FALSE(ExecutorGroup(checkpoint, 1, 1, Options()).last().RunsAhead());
  EXPECT_FALSE(ExecutorGroup(checkpoint, 2, 1, Options(), 1, Device::kCuda).last().RunsAhead());
  EXPECT_FALSE(ExecutorGroup(checkpoint, 1, 2, Options(), 1, Device::kCuda).last().RunsAhead());
  if (CudaDeviceCount() < 2) GTEST_SKIP() << "there are no 2 CUDA devices";
  EXPECT_TRUE(MakeGroup(checkpoint, 2).last().RunsAhead());
}

// A rank that is gone while the other has begun two plans.
TEST_F(PlansAheadTest, APeersFailureEndsWhatIsUnderWay) {
  if (CudaDeviceCount() < 2) GTEST_SKIP() << "there are no 2 CUDA devices";
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group = MakeGroup(checkpoint, 2);
  BuiltPlan first, second(2);
  first.Start(0);
  first.Add(0, {1, 2}, 0, {0});
  second.Add(0, {3}, 2);
  OnThreads(2, [&](int rank) {
    StageExecutor& executor = group.executor(0, rank);
    ASSERT_TRUE(executor.Begin(first.plan, first.ids, nullptr).ok());
    if (rank == 1) {
      DeviceGroup& stage = *group.links(1).stage();
      EXPECT_FALSE(stage.Send(&first, 4, 7).ok());
      EXPECT_FALSE(stage.Health().ok());
      return;
    }
    ASSERT_TRUE(executor.Begin(second.plan, second.ids, nullptr).ok());
    std::vector<v1::EntryResult> results;
    absl::Status status = executor.Finish(&results);
    // The first plan may have been done before the peer went.
    if (status.ok()) {
      const absl::StatusOr<bool> ready = [&] {
        while (true) {
          const absl::StatusOr<bool> now = executor.Ready();
          if (!now.ok() || *now) return now;
        }
      }();
      EXPECT_FALSE(ready.ok());
      status = executor.Finish(&results);
    }
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("the ranks of stage 0"));
  });
}

}  // namespace
}  // namespace pergola
