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
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_group.h"

namespace pergola::sim {

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : seed_(seed), random_(seed) {}

  void Run() {
    SCOPED_TRACE(absl::StrCat("seed ", seed_));
    Configure();
    for (uint32_t g = 0; g < group_count_; ++g) Attach(absl::StrCat("g", g));
    const uint32_t arrivals = Draw(1, 50);
    for (uint32_t i = 0; i < arrivals; ++i) clock_.At(Draw(0, kHorizonUs), [this] { Arrive(); });
    const uint32_t kills = OneIn(3) ? 0 : Draw(0, 6);
    for (uint32_t i = 0; i < kills; ++i) clock_.At(Draw(0, kHorizonUs), [this] { Disturb(); });
    Loop();
    Finish();
  }

 private:
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

  std::vector<int32_t> DrawIds(uint32_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = static_cast<int32_t>(Draw(0, kVocabulary - 1));
    return ids;
  }

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
    group_count_ = OneIn(3) ? Draw(2, 3) : 1;
    slow_readers_ = OneIn(3);
    EngineOptions& options = options_;
    options.text_hash = "t1";
    options.prefill_rows = Draw(1, 32);
    options.step_timeout_us = 50'000;
    options.failover_wait_us = 30'000;
    options.probe_interval_us = 10'000;
    options.start_time_us = 1000;
    options.step_target_us = OneIn(2) ? Draw(1, 5000) : 0;
    options.prefix_cache = !OneIn(8);
    options.prefix_secret = {seed_, 1};
    options.max_queued_sequences = kMaxQueued;
    options.max_queue_wait_us = OneIn(4) ? Draw(1, 50'000) : 0;
    options.slow_reader_timeout_us = Draw(1, 200'000);
    smallest_kv_ = hello_.block_count() * hello_.block_tokens();
    max_positions_ = std::min(smallest_kv_, hello_.context_length());
    for (std::vector<int32_t>& beginning : beginnings_) beginning = DrawIds(max_positions_);
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
    const TimeUs plan_us = Draw(0, 2000);
    const GroupTimes times = PerPlanAndRow(plan_us, Draw(0, 100));
    const std::weak_ptr<Live> weak = live;
    live->link = std::make_shared<SimLink>(
        hello, times, &clock_,
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
    if (!calm && OneIn(400)) {
      // Late, and overtaken by those that come before it is here.
      const TimeUs late = Draw(1, 20'000);
      clock_.At(clock_.now() + late,
                [this, name, result] { core_->GroupResult(name, result, clock_.now()); });
      return;
    }
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

  std::vector<int32_t> DrawPrompt(uint32_t length) {
    std::vector<int32_t> prompt = DrawIds(length);
    if (OneIn(4)) return prompt;
    if (OneIn(8)) {
      // Every block holds the same ids as the one before it, and yet other keys and values.
      for (uint32_t i = 16; i < length; ++i) prompt[i] = prompt[i - 16];
      return prompt;
    }
    // Prefix-heavy load: some begin alike, by a part of a block or by several.
    const std::vector<int32_t>& beginning = beginnings_[OneIn(2) ? 0 : Draw(0, 2)];
    std::copy_n(beginning.begin(), Draw(1, length), prompt.begin());
    return prompt;
  }

  std::unique_ptr<Client> DrawClient() {
    auto client = std::make_unique<Client>();
    const uint32_t total = Draw(2, max_positions_);
    client->max_new = Draw(1, std::min(total - 1, 60U));
    const uint32_t longest = total - client->max_new;
    client->prompt = DrawPrompt(Draw(1, shortage_ ? std::min(longest, 12U) : longest));
    client->seed = clients_.size() + 1;  // also its name for OnSend
    client->index = Draw(0, 3);
    client->penalties = OneIn(4);
    client->logprobs = OneIn(4);
    client->prompt_logprobs = OneIn(4);
    if (OneIn(12)) client->max_new = 0;
    if (OneIn(2)) client->eos = {0};
    if (OneIn(3)) client->stop_ids = {5};
    if (OneIn(3)) client->stop_pair = {static_cast<int32_t>(Draw(0, 63)), 7};
    if (OneIn(6)) client->deadline = clock_.now() + Draw(0, 60'000);
    client->Expect();
    if (OneIn(4) && !client->expected.ids.empty()) {
      client->received = Draw(1, static_cast<uint32_t>(client->expected.ids.size()));
      const std::string& text = client->expected.text_after[client->received - 1];
      client->received_bytes = Draw(0, static_cast<uint32_t>(text.size()));
    }
    if (OneIn(2)) client->bounds = {Draw(1, 20), Draw(1, 2000)};
    client->slow = slow_readers_ && OneIn(2);
    client->never = client->slow && OneIn(4);
    client->losses_before = losses_;
    return client;
  }

  void Arrive() {
    std::unique_ptr<Client> first = DrawClient();
    if (OneIn(25)) poison_[first->seed] = Draw(0, static_cast<uint32_t>(first->prompt.size()) + 5);
    const int32_t priorities[] = {
        0, -100, 100, static_cast<int32_t>(Draw(0, 200)) - 100, INT32_MIN, INT32_MAX};
    const std::string tenants[] = {"", "a", "b", std::string(300, 'x')};
    const int32_t priority = priorities[OneIn(2) ? 0 : Draw(0, 5)];
    const std::string& tenant = tenants[OneIn(2) ? 0 : Draw(0, 3)];
    const uint32_t siblings = OneIn(4) ? Draw(1, 5) : 0;
    const auto group = siblings > 0 ? std::make_shared<ForkGroup>() : nullptr;
    for (uint32_t i = 0; i <= siblings; ++i) {
      auto client = std::make_unique<Client>(*first);
      if (siblings > 0) {
        client->index = i;
        client->prompt_logprobs = client->prompt_logprobs && i == 0;
        client->received = 0;
        client->received_bytes = 0;
        client->expected = ExpectedStream();
        client->Expect();
      }
      client->mailbox = std::make_shared<Mailbox>([] {}, client->bounds);
      SequenceRequest request = client->Request();
      request.priority = priority;
      request.tenant = tenant;
      request.fork_group = group;
      if (client->received > 0) request.resume_numerics_id = OneIn(4) ? "n2" : "n1";
      if (OneIn(4)) request.least_new_tokens = OneIn(9) ? UINT32_MAX : client->max_new;
      Submit(std::move(client), std::move(request));
    }
  }

  void Submit(std::unique_ptr<Client> client, SequenceRequest request) {
    Asked asked;
    asked.prompt_tokens = request.prompt_ids.size() + request.received_ids.size();
    asked.least_new_tokens = request.least_new_tokens;
    asked.deadline = request.deadline;
    const absl::Status load = CheckLoad(options_, core_->load(clock_.now()), asked, clock_.now());
    if (!load.ok()) {
      ASSERT_NE(RefusalReason(load), "");
      ++refusals_;
      return;
    }
    client->id = ++last_id_;
    Client* raw = client.get();
    clients_.push_back(std::move(client));
    core_->Submit(raw->id, std::move(request), clock_.now());
    if (raw->slow && !raw->never) Read(raw);
    if (OneIn(6)) {
      clock_.At(clock_.now() + Draw(0, 40'000), [this, raw] {
        raw->cancelled = true;
        core_->Cancel(raw->id, absl::CancelledError("by the client"), clock_.now());
      });
    }
  }

  // A slow reader takes, and comes again later.
  void Read(Client* client) {
    clock_.At(clock_.now() + Draw(1, OneIn(4) ? 60'000 : 8000), [this, client] {
      if (client->ended) return;
      Collect(*client);
      if (!client->ended) Read(client);
    });
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
    size_t at_most = 0;
    size_t at_least = 0;
    for (const auto& client : clients_) {
      if (client->ended) continue;
      if (!client->slow) {
        Collect(*client);
        ASSERT_TRUE(client->ended || client->deadline > clock_.now()) << "past its deadline";
      }
      at_most += client->ended ? 0 : 1;
      at_least += client->ended || client->slow ? 0 : 1;
    }
    ASSERT_LE(core_->sequence_count(), at_most);
    ASSERT_GE(core_->sequence_count(), at_least);
    ASSERT_LE(core_->queued(), kMaxQueued + group_count_ * hello_.slot_count());
    for (const auto& [name, live] : live_) CheckLink(*live);
    for (const auto& [name, group] : core_->groups()) {
      if (group->ready()) CheckScheduler(*group->scheduler);
    }
  }

  // I1 and I2: slots, counters, and every block free, cached or referenced exactly as counted.
  static void CheckScheduler(const Scheduler& scheduler) {
    ASSERT_LE(scheduler.in_flight(), scheduler.depth());
    const BlockPool& pool = scheduler.blocks();
    std::vector<uint32_t> references(pool.total(), 0);
    bool suspect = false;
    for (const Sequence* sequence : scheduler.running()) {
      for (const uint32_t block : sequence->blocks) ++references[block];
      suspect = suspect || sequence->suspect;
      ASSERT_LE(sequence->computed, sequence->planned);
      ASSERT_LE(sequence->planned, sequence->blocks.size() * scheduler.limits().block_tokens);
      ASSERT_LE(sequence->known.size() + sequence->pending, sequence->max_known);
    }
    uint32_t used = 0;
    uint32_t cached = 0;
    for (uint32_t block = 0; block < pool.total(); ++block) {
      ASSERT_EQ(pool.references(block), references[block]) << "block " << block;
      used += references[block] > 0 ? 1 : 0;
      cached += references[block] == 0 && pool.index().Contains(block) ? 1 : 0;
    }
    ASSERT_EQ(used, pool.used_count());
    ASSERT_EQ(cached, pool.cached_count());
    for (const Sequence* sequence : scheduler.running()) {
      // What is still to be written is written where nobody else reads.
      size_t next = sequence->planned / scheduler.limits().block_tokens;
      for (; next < sequence->blocks.size(); ++next) {
        ASSERT_EQ(references[sequence->blocks[next]], 1U) << "a shared block would be written";
      }
    }
    ASSERT_EQ(scheduler.running().size() + scheduler.free_slots(), scheduler.limits().slot_count);
    ASSERT_TRUE(!suspect || scheduler.running().size() == 1) << "a suspect has company";
  }

  void Collect(Client& client) {
    client.Take(hello_.layout().pipeline_parallel() + 1);
    if (client.ended) CheckEnd(client);
  }

  void CheckEnd(const Client& client) {
    SCOPED_TRACE(absl::StrCat("sequence ", client.id, ": ", std::string(client.status.message())));
    client.CheckContent();
    const uint32_t total = static_cast<uint32_t>(client.prompt.size()) + client.max_new;
    switch (client.status.code()) {
      case absl::StatusCode::kOk:
        client.CheckComplete();
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
        if (client.expected.nan &&
            client.ids.size() + client.received == client.expected.ids.size()) {
          break;
        }
        ASSERT_GE(losses_, client.losses_before + 3) << "INTERNAL without three dying steps";
        break;
      case absl::StatusCode::kResourceExhausted:
        ASSERT_TRUE(client.slow) << "a reader that takes everything is no slow one";
        break;
      default:
        FAIL() << "unexpected status " << client.status.ToString();
    }
  }

  void Finish() {
    if (testing::Test::HasFailure()) return;
    for (const auto& client : clients_) {
      if (!client->ended) Collect(*client);
      ASSERT_TRUE(client->ended);
    }
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
  uint32_t refusals() const { return refusals_; }
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
  uint32_t refusals_ = 0;
  SequenceId last_id_ = 0;
  EngineOptions options_;
  bool slow_readers_ = false;
  std::vector<int32_t> beginnings_[3];  // of prompts
  std::unique_ptr<EngineCore> core_;
};

}  // namespace pergola::sim
