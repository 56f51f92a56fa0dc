// One run of EngineCore against groups that live and die, all drawn from one seed, on a virtual
// clock. Every finished stream is compared with what an undisturbed run gives, and the invariants
// of DESIGN section 3 after every event.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/engine_core.h"
#include "tests/sim/fake_text.h"
#include "tests/sim/sim_group.h"

namespace pergola::sim {

// The whole of a stream, as an undisturbed run gives it.
struct ExpectedStream {
  std::vector<int32_t> ids;
  std::vector<std::string> text_after;  // the stream's text after each id
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  bool nan = false;
};

struct Client {
  SequenceId id = 0;
  std::vector<int32_t> prompt;
  uint64_t seed = 0;
  uint32_t index = 0;
  uint32_t max_new = 0;
  std::vector<int32_t> eos;
  std::vector<int32_t> stop_ids;
  std::pair<int32_t, int32_t> stop_pair{-1, -1};
  uint32_t received = 0;
  uint64_t received_bytes = 0;
  TimeUs deadline = kNever;
  bool cancelled = false;
  bool poison = false;
  uint32_t losses_before = 0;  // of groups, when it came

  ExpectedStream expected;
  std::shared_ptr<Mailbox> mailbox;
  std::vector<int32_t> ids;
  std::string text;
  bool info = false;
  bool ended = false;
  absl::Status status;
  v1::Finish finish;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : seed_(seed), random_(seed) {}

  void Run() {
    SCOPED_TRACE(absl::StrCat("seed ", seed_));
    Configure();
    for (uint32_t g = 0; g < group_count_; ++g) Attach(absl::StrCat("g", g));
    const uint32_t arrivals = Draw(1, 50);
    for (uint32_t i = 0; i < arrivals; ++i) clock_.At(Draw(0, kHorizonUs), [this] { Arrive(); });
    const uint32_t kills = Draw(0, 6);
    for (uint32_t i = 0; i < kills; ++i) clock_.At(Draw(0, kHorizonUs), [this] { Disturb(); });
    Loop();
    Finish();
  }

 private:
  static constexpr uint32_t kVocabulary = 64;
  static constexpr uint32_t kMaxQueued = 16;
  static constexpr TimeUs kHorizonUs = 100'000;
  struct Live {
    std::shared_ptr<SimLink> link;
    uint64_t connection = 0;
    uint64_t results = 0;
    bool results_up = false;
    uint64_t epoch = 0;
    std::map<uint32_t, uint64_t> slot_seed;
  };

  uint32_t Draw(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }
  bool OneIn(uint32_t n) { return Draw(1, n) == 1; }

  void Configure() {
    hello_ = MakeHello("", Draw(1, 4));
    hello_.set_slot_count(Draw(1, 8));
    hello_.set_block_tokens(16);
    hello_.set_block_count(Draw(2, 30));
    hello_.set_step_tokens(Draw(1, 48));
    shortage_ = OneIn(3);
    if (shortage_) {
      // Many short prompts are let in and grow into one another's way.
      hello_.set_slot_count(8);
      hello_.set_block_count(Draw(5, 8));
    }
    group_count_ = OneIn(3) ? 2 : 1;
    EngineOptions options;
    options.text_hash = "t1";
    options.prefill_rows = Draw(1, 32);
    options.step_timeout_us = 50'000;
    options.failover_wait_us = 30'000;
    options.probe_interval_us = 10'000;
    options.start_time_us = 1000;
    smallest_kv_ = hello_.block_count() * hello_.block_tokens();
    max_positions_ = std::min(smallest_kv_, hello_.context_length());
    core_ = std::make_unique<EngineCore>(options, 0, nullptr);
  }

  void Attach(const std::string& name) {
    v1::Hello hello = hello_;
    hello.set_group(name);
    if (clock_.now() > 0 && OneIn(5)) hello.set_numerics_id("n2");
    if (clock_.now() > 0 && OneIn(12)) {
      hello.set_block_count(std::max(1U, hello.block_count() / 2));
      smallest_kv_ = std::min(smallest_kv_, hello.block_count() * hello.block_tokens());
    }
    if (auto it = live_.find(name); it != live_.end()) {
      hello.set_last_epoch(it->second->epoch);
      CheckLink(*it->second);
    }
    auto live = std::make_shared<Live>();
    live->connection = ++connections_;
    live->results = ++connections_;
    const StageCost cost{static_cast<TimeUs>(Draw(0, 2000)), static_cast<TimeUs>(Draw(0, 100))};
    const std::weak_ptr<Live> weak = live;
    live->link = std::make_shared<SimLink>(
        hello, cost, &clock_,
        [this, name, weak](const v1::StepResult& result) { Answer(name, weak, result); });
    live->link->on_send = [this, weak](const v1::StepPlan& plan, TimeUs ready) {
      if (auto strong = weak.lock()) OnSend(*strong, plan, ready);
    };
    live->link->on_close = [this, name, weak] {
      ++losses_;
      auto strong = weak.lock();
      // The end of the Results stream is noticed before or after the new incarnation is there.
      if (strong != nullptr) {
        clock_.At(clock_.now() + Draw(0, 10'000), [this, name, strong] {
          core_->ResultsLost(name, strong->results, clock_.now());
        });
      }
      // A newer Attach of the same name took its place: nothing to start again.
      if (strong == nullptr || live_[name] != strong) return;
      clock_.At(clock_.now() + Draw(0, 20'000), [this, name] { Attach(name); });
    };
    live_[name] = live;
    links_.push_back(live);
    core_->GroupAttached(live->connection, hello, live->link, clock_.now());
    live->epoch = core_->groups().at(name)->epoch;
    clock_.At(clock_.now() + Draw(0, 2000), [this, name, live] {
      live->results_up = true;
      core_->ResultsConnected(name, live->results, clock_.now());
    });
  }

  void OnSend(Live& live, const v1::StepPlan& plan, TimeUs ready) {
    for (const v1::SlotStart& start : plan.starts()) live.slot_seed[start.slot()] = start.seed();
    for (const v1::Entry& entry : plan.entries()) {
      const uint64_t seed = live.slot_seed[entry.slot()];
      if (poison_.count(seed) == 0 || entry.first_position() < poison_[seed]) continue;
      live.link->Stall();
      clock_.At(ready, [this, connection = live.connection] {
        core_->GroupLost(connection, absl::UnavailableError("poison"), clock_.now());
      });
      return;
    }
  }

  void Answer(const std::string& name, const std::weak_ptr<Live>& weak, v1::StepResult result) {
    const auto live = weak.lock();
    if (live == nullptr) return;
    if (!live->results_up) {
      // Results cannot pass before their stream is there.
      clock_.At(clock_.now() + 100, [this, name, weak, result] { Answer(name, weak, result); });
      return;
    }
    const bool calm = clock_.now() > kHorizonUs;
    if (!calm && OneIn(300)) {
      switch (Draw(0, 3)) {
        case 0:
          result.set_plan_id(result.plan_id() + Draw(1, 9));
          break;
        case 1:
          result.add_entries()->add_ids(3);
          break;
        case 2:
          result.add_entries()->set_status(v1::ENTRY_STATUS_NAN);
          break;
        default:
          result.set_epoch(result.epoch() - 1);
          break;
      }
    }
    core_->GroupResult(name, result, clock_.now());
    if (!calm && OneIn(300)) core_->GroupResult(name, result, clock_.now());
  }

  void Disturb() {
    auto it = live_.begin();
    std::advance(it, Draw(0, static_cast<uint32_t>(live_.size()) - 1));
    const std::string name = it->first;
    Live& live = *it->second;
    if (live.link->closed()) return;
    switch (Draw(0, 4)) {
      case 0: {
        v1::Fault fault;
        fault.set_group(name);
        fault.set_epoch(live.epoch);
        fault.set_plan_id(Draw(0, static_cast<uint32_t>(live.link->executed()) + 2));
        core_->GroupFault(fault, clock_.now());
        break;
      }
      case 1:
        if (!live.results_up) break;
        core_->ResultsLost(name, live.results, clock_.now());
        if (!live.link->closed()) {
          live.results = ++connections_;
          core_->ResultsConnected(name, live.results, clock_.now());
        }
        break;
      case 2:
        live.link->Stall();
        break;
      case 3:
        Attach(name);
        break;
      default:
        core_->GroupLost(live.connection, absl::UnavailableError("killed"), clock_.now());
    }
  }

  static ExpectedStream Expect(const Client& client) {
    ExpectedStream stream;
    FakeText text(client.stop_pair);
    std::string shown;
    const auto has = [](const std::vector<int32_t>& ids, int32_t id) {
      return std::find(ids.begin(), ids.end(), id) != ids.end();
    };
    for (const int32_t id :
         ExpectedIds(client.prompt, client.seed, client.index, client.max_new, kVocabulary)) {
      stream.nan = id == kNanId;
      if (stream.nan) break;
      stream.ids.push_back(id);
      if (has(client.eos, id)) {
        stream.reason = v1::FINISH_REASON_EOS;
      } else if (has(client.stop_ids, id)) {
        stream.reason = v1::FINISH_REASON_STOP_ID;
      } else {
        const TextStream::Delta delta = text.Push(id);
        shown += delta.text;
        if (delta.stopped) {
          stream.reason = v1::FINISH_REASON_STOP_STRING;
        } else if (stream.ids.size() == client.max_new) {
          stream.reason = v1::FINISH_REASON_LENGTH;
        }
      }
      const bool ends = stream.reason != v1::FINISH_REASON_UNSPECIFIED;
      if (ends && stream.reason != v1::FINISH_REASON_STOP_STRING) shown += text.Flush();
      stream.text_after.push_back(shown);
      if (ends) break;
    }
    return stream;
  }

  std::unique_ptr<Client> DrawClient() {
    auto client = std::make_unique<Client>();
    const uint32_t total = Draw(2, max_positions_);
    client->max_new = Draw(1, std::min(total - 1, 60U));
    const uint32_t longest = total - client->max_new;
    client->prompt.resize(Draw(1, shortage_ ? std::min(longest, 12U) : longest));
    for (int32_t& id : client->prompt) id = static_cast<int32_t>(Draw(0, kVocabulary - 1));
    client->seed = clients_.size() + 1;  // also its name for OnSend
    client->index = Draw(0, 3);
    if (OneIn(2)) client->eos = {0};
    if (OneIn(3)) client->stop_ids = {5};
    if (OneIn(3)) client->stop_pair = {static_cast<int32_t>(Draw(0, 63)), 7};
    if (OneIn(6)) client->deadline = clock_.now() + Draw(0, 60'000);
    client->expected = Expect(*client);
    if (OneIn(4) && !client->expected.ids.empty()) {
      client->received = Draw(1, static_cast<uint32_t>(client->expected.ids.size()));
      const std::string& text = client->expected.text_after[client->received - 1];
      client->received_bytes = Draw(0, static_cast<uint32_t>(text.size()));
    }
    client->losses_before = losses_;
    return client;
  }

  void Arrive() {
    if (core_->queued() >= kMaxQueued) return;
    std::unique_ptr<Client> client = DrawClient();
    client->id = clients_.size() + 1;
    if (OneIn(25)) {
      client->poison = true;
      poison_[client->seed] = Draw(0, static_cast<uint32_t>(client->prompt.size()) + 5);
    }
    SequenceRequest request;
    request.prompt_ids = client->prompt;
    request.received_ids.assign(client->expected.ids.begin(),
                                client->expected.ids.begin() + client->received);
    request.received_text_bytes = client->received_bytes;
    if (client->received > 0) request.resume_numerics_id = OneIn(4) ? "n2" : "n1";
    request.seed = client->seed;
    request.index = client->index;
    request.max_new_tokens = client->max_new;
    request.eos_ids = client->eos;
    request.stop_ids = client->stop_ids;
    request.text = std::make_unique<FakeText>(client->stop_pair);
    request.deadline = client->deadline;
    Client* raw = client.get();
    client->mailbox = std::make_shared<Mailbox>([] {});
    request.mailbox = client->mailbox;
    clients_.push_back(std::move(client));
    core_->Submit(raw->id, std::move(request), clock_.now());
    if (OneIn(6)) {
      clock_.At(clock_.now() + Draw(0, 40'000), [this, raw] {
        raw->cancelled = true;
        core_->Cancel(raw->id, absl::CancelledError("by the client"), clock_.now());
      });
    }
  }

  void Loop() {
    for (uint32_t event = 0;; ++event) {
      ASSERT_LT(event, 400'000U) << "no end in sight";
      const bool quiet = clock_.now() > kHorizonUs && core_->sequence_count() == 0;
      if (quiet && clock_.now() > 3 * kHorizonUs && core_->serving()) return;
      const TimeUs wake = core_->NextWake();
      if (clock_.next() <= wake) {
        ASSERT_NE(clock_.next(), kNever) << "nothing will ever happen";
        clock_.Step();
      } else {
        clock_.MoveTo(wake);
      }
      // Events of one batch share an Advance.
      if (clock_.next() == clock_.now() && OneIn(2)) continue;
      core_->Advance(clock_.now());
      ASSERT_GT(core_->NextWake(), clock_.now()) << "the engine would spin";
      CheckInvariants();
      if (testing::Test::HasFatalFailure() || testing::Test::HasNonfatalFailure()) return;
    }
  }

  void CheckLink(const Live& live) {
    ASSERT_EQ(live.link->error(), "");
    ASSERT_LE(live.link->max_in_flight(), hello_.layout().pipeline_parallel() + 1);
  }

  void CheckInvariants() {
    size_t live_clients = 0;
    for (const auto& client : clients_) {
      if (!client->ended) Collect(*client);
      live_clients += client->ended ? 0 : 1;
    }
    ASSERT_EQ(core_->sequence_count(), live_clients);
    ASSERT_LE(core_->queued(), kMaxQueued + group_count_ * hello_.slot_count());
    for (const auto& [name, live] : live_) CheckLink(*live);
    for (const auto& [name, group] : core_->groups()) {
      if (!group->ready()) continue;
      const Scheduler& scheduler = *group->scheduler;
      ASSERT_LE(scheduler.in_flight(), scheduler.depth());
      size_t blocks = 0;
      bool suspect = false;
      for (const Sequence* sequence : scheduler.running()) {
        blocks += sequence->blocks.size();
        suspect = suspect || sequence->suspect;
        ASSERT_LE(sequence->computed, sequence->planned);
        ASSERT_LE(sequence->known.size() + sequence->pending, sequence->max_known);
      }
      ASSERT_EQ(blocks, scheduler.blocks().used_count());
      ASSERT_EQ(scheduler.running().size() + scheduler.free_slots(), scheduler.limits().slot_count);
      ASSERT_TRUE(!suspect || scheduler.running().size() == 1) << "a suspect has company";
    }
  }

  void Collect(Client& client) {
    Mailbox::Delivery delivery = client.mailbox->Take();
    const bool first = client.ids.empty() && client.text.empty() && !client.info;
    if (delivery.info) {
      ASSERT_FALSE(client.info) << "info twice";
      client.info = true;
      ASSERT_EQ(delivery.info->prompt_token_count(), client.prompt.size());
    } else if (first && (!delivery.ids.empty() || !delivery.text.empty())) {
      ADD_FAILURE() << "the first delivery of sequence " << client.id << " has no info";
    }
    client.ids.insert(client.ids.end(), delivery.ids.begin(), delivery.ids.end());
    client.text += delivery.text;
    if (!delivery.ended) return;
    client.ended = true;
    client.status = delivery.status;
    if (delivery.finish) client.finish = *delivery.finish;
    CheckEnd(client);
  }

  void CheckEnd(const Client& client) {
    SCOPED_TRACE(absl::StrCat("sequence ", client.id, ": ", std::string(client.status.message())));
    const ExpectedStream& expected = client.expected;
    const std::vector<int32_t> rest(expected.ids.begin() + client.received, expected.ids.end());
    ASSERT_LE(client.ids.size(), rest.size());
    ASSERT_TRUE(std::equal(client.ids.begin(), client.ids.end(), rest.begin())) << "other ids";
    const std::string text =
        expected.ids.empty() ? "" : expected.text_after.back().substr(client.received_bytes);
    ASSERT_EQ(client.text, text.substr(0, client.text.size()));
    const uint32_t total = static_cast<uint32_t>(client.prompt.size()) + client.max_new;
    switch (client.status.code()) {
      case absl::StatusCode::kOk:
        ASSERT_EQ(client.ids, rest);
        ASSERT_EQ(client.text, text);
        ASSERT_FALSE(expected.nan);
        ASSERT_EQ(client.finish.reason(), expected.reason);
        ASSERT_EQ(client.finish.usage().completion_tokens(), expected.ids.size());
        ASSERT_TRUE(client.info);
        ++finished_;
        break;
      case absl::StatusCode::kCancelled:
        ASSERT_TRUE(client.cancelled);
        break;
      case absl::StatusCode::kDeadlineExceeded:
        ASSERT_LE(client.deadline, clock_.now());
        break;
      case absl::StatusCode::kFailedPrecondition:
        ASSERT_GT(total, smallest_kv_);
        break;
      case absl::StatusCode::kInternal:
        if (expected.nan && client.ids == rest) break;
        ASSERT_GE(losses_, client.losses_before + 3) << "INTERNAL without three dying steps";
        break;
      default:
        FAIL() << "unexpected status " << client.status.ToString();
    }
  }

  void Finish() {
    if (testing::Test::HasFailure()) return;
    for (const auto& client : clients_) ASSERT_TRUE(client->ended);
    ASSERT_EQ(core_->sequence_count(), 0U);
    ASSERT_EQ(core_->queued(), 0U);
    ASSERT_EQ(core_->queued_bytes(), 0);
    for (const auto& live : links_) CheckLink(*live);
    for (const auto& [name, group] : core_->groups()) {
      ASSERT_TRUE(!group->ready() || group->scheduler->blocks().used_count() == 0) << name;
    }
    const v1::StatusResponse totals = status();
    const uint64_t depth = hello_.layout().pipeline_parallel() + 1;
    ASSERT_LE(totals.overrun_tokens(), depth * (totals.requests_total() + totals.preemptions()));
    // An idle group is probed and keeps answering.
    ASSERT_TRUE(core_->serving()) << status().DebugString();
  }

 public:
  uint32_t finished() const { return finished_; }
  v1::StatusResponse status() const { return core_->Status(clock_.now()); }

 private:
  const uint64_t seed_;
  std::mt19937_64 random_;
  VirtualClock clock_;
  v1::Hello hello_;
  uint32_t group_count_ = 1;
  bool shortage_ = false;
  uint32_t smallest_kv_ = 0;
  uint32_t max_positions_ = 0;
  std::vector<std::unique_ptr<Client>> clients_;
  std::map<uint64_t, uint32_t> poison_;  // seed: first position of an entry that kills
  std::map<std::string, std::shared_ptr<Live>> live_;
  std::vector<std::shared_ptr<Live>> links_;
  uint64_t connections_ = 0;
  uint32_t losses_ = 0;
  uint32_t finished_ = 0;
  std::unique_ptr<EngineCore> core_;
};

}  // namespace pergola::sim
