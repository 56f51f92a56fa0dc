// A model of what a group of workers does with plans: the workers' checks, the KV bytes and the
// sampler, without the arithmetic. A position's "KV" is a hash of all tokens up to it, stored in
// the block the plan names; a step reads back every earlier position through the slot's block
// table, and a sampled token is a function of what it read. So a wrong id, position, block, slot or
// replay is an error here, or another stream than ExpectedIds().
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pergola/v1/worker.pb.h"

namespace pergola::sim {

inline uint64_t Mix(uint64_t a, uint64_t b) {  // splitmix64 of a combination
  uint64_t x = a * 0x9E3779B97F4A7C15ULL + b + 0x632BE59BD9B4E019ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline constexpr int32_t kNanId = -1;

// The token after a history with this hash; kNanId where the model's logits are NaN.
inline int32_t Sample(uint64_t history, uint64_t seed, uint32_t index, uint32_t vocabulary) {
  const uint64_t draw = Mix(Mix(history, seed), index);
  if (draw % 4001 == 0) return kNanId;
  return static_cast<int32_t>((draw >> 12) % vocabulary);
}

// What an undisturbed run samples, up to `count` tokens; ends after a kNanId.
inline std::vector<int32_t> ExpectedIds(const std::vector<int32_t>& prompt, uint64_t seed,
                                        uint32_t index, uint32_t count, uint32_t vocabulary) {
  uint64_t history = 0;
  for (const int32_t id : prompt) history = Mix(history, static_cast<uint64_t>(id));
  std::vector<int32_t> ids;
  while (ids.size() < count) {
    ids.push_back(Sample(history, seed, index, vocabulary));
    if (ids.back() == kNanId) break;
    history = Mix(history, static_cast<uint64_t>(ids.back()));
  }
  return ids;
}

class ModelGroup {
 public:
  ModelGroup(const v1::Hello& hello, uint64_t epoch)
      : hello_(hello),
        epoch_(epoch),
        slots_(hello.slot_count()),
        kv_(static_cast<size_t>(hello.block_count()) * hello.block_tokens()) {}

  // Executes the next plan. On a plan that a worker would refuse, error() is set and the result is
  // empty.
  v1::StepResult Execute(const v1::StepPlan& plan) {
    v1::StepResult result;
    if (plan.plan_id() != next_plan_ || plan.epoch() != epoch_) {
      return Refuse(absl::StrCat("plan ", plan.plan_id(), " epoch ", plan.epoch(), " instead of ",
                                 next_plan_, " epoch ", epoch_));
    }
    ++next_plan_;
    result.set_plan_id(plan.plan_id());
    result.set_epoch(plan.epoch());
    for (const v1::SlotStart& start : plan.starts()) {
      if (start.slot() >= slots_.size()) return Refuse("start of an unknown slot");
      slots_[start.slot()] = Slot();
      slots_[start.slot()].started = true;
      slots_[start.slot()].seed = start.seed();
      slots_[start.slot()].index = start.index();
    }
    std::set<uint32_t> seen;
    uint32_t rows = 0;
    sampled_.emplace_back();
    if (sampled_.size() > hello_.layout().pipeline_parallel() + 2) sampled_.pop_front();
    for (const v1::Entry& entry : plan.entries()) {
      if (!seen.insert(entry.slot()).second) return Refuse("two entries of one slot");
      rows += static_cast<uint32_t>(entry.ids_size() == 0 ? 1 : entry.ids_size());
      ExecuteEntry(entry, *result.add_entries());
      if (!error_.empty()) return v1::StepResult();
    }
    if (rows > hello_.step_tokens()) {
      return Refuse(absl::StrCat(rows, " rows, the limit is ", hello_.step_tokens()));
    }
    return result;
  }

  const std::string& error() const { return error_; }
  uint64_t executed() const { return next_plan_ - 1; }

 private:
  struct Slot {
    bool started = false;
    uint64_t seed = 0;
    uint32_t index = 0;
    std::vector<uint64_t> hashes;  // of the history up to each computed position
    std::vector<uint32_t> table;
  };

  v1::StepResult Refuse(const std::string& why) {
    if (error_.empty()) error_ = absl::StrCat("plan ", next_plan_ - 1, ": ", why);
    return {};
  }

  bool ResolveIds(const v1::Entry& entry, std::vector<int32_t>* ids) {
    if (entry.ids_size() > 0) {
      if (entry.has_from()) return false;
      ids->assign(entry.ids().begin(), entry.ids().end());
      return true;
    }
    if (!entry.has_from()) return false;
    const uint64_t oldest = next_plan_ - sampled_.size();  // of those remembered, this one included
    if (entry.from().plan_id() < oldest || entry.from().plan_id() + 1 >= next_plan_) return false;
    const auto& tokens = sampled_[entry.from().plan_id() - oldest];
    if (entry.from().entry() >= tokens.size()) return false;
    const int32_t id = tokens[entry.from().entry()];
    if (id == kNoToken) return false;
    ids->push_back(id == kNanId ? 0
                                : id);  // a NaN's successor is computed from anything, and dropped
    return true;
  }

  bool ReplaceTable(const v1::Entry& entry, Slot& slot) {
    if (entry.block_ids_size() == 0) return true;
    if (entry.block_table_from() > slot.table.size()) return false;
    slot.table.resize(entry.block_table_from());
    slot.table.insert(slot.table.end(), entry.block_ids().begin(), entry.block_ids().end());
    const std::set<uint32_t> distinct(slot.table.begin(), slot.table.end());
    return distinct.size() == slot.table.size() && *distinct.rbegin() < hello_.block_count();
  }

  void ExecuteEntry(const v1::Entry& entry, v1::EntryResult& result) {
    sampled_.back().push_back(kNoToken);
    if (entry.slot() >= slots_.size() || !slots_[entry.slot()].started) {
      Refuse(absl::StrCat("slot ", entry.slot(), " is unknown or was never started"));
      return;
    }
    Slot& slot = slots_[entry.slot()];
    std::vector<int32_t> ids;
    if (!ResolveIds(entry, &ids)) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": its tokens cannot be resolved"));
      return;
    }
    if (entry.first_position() != slot.hashes.size()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": first position ", entry.first_position(),
                          ", computed ", slot.hashes.size()));
      return;
    }
    if (!ReplaceTable(entry, slot)) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": bad block table"));
      return;
    }
    const size_t length = slot.hashes.size() + ids.size();
    if (length > slot.table.size() * hello_.block_tokens() || length > hello_.context_length()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": ", length, " positions do not fit"));
      return;
    }
    for (size_t position = 0; position < slot.hashes.size(); ++position) {
      if (KvAt(slot, position) != slot.hashes[position]) {
        Refuse(
            absl::StrCat("slot ", entry.slot(), ": KV of position ", position, " was overwritten"));
        return;
      }
    }
    for (const int32_t id : ids) {
      if (id < 0 || static_cast<uint32_t>(id) >= hello_.vocabulary_size()) {
        Refuse(absl::StrCat("id ", id));
        return;
      }
      const uint64_t before = slot.hashes.empty() ? 0 : slot.hashes.back();
      slot.hashes.push_back(Mix(before, static_cast<uint64_t>(id)));
      KvAt(slot, slot.hashes.size() - 1) = slot.hashes.back();
    }
    if (entry.logits_at_size() == 0) return;
    if (entry.logits_at_size() > 1 || entry.logits_at(0) + 1 != ids.size()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": logits that nobody needs"));
      return;
    }
    const int32_t id = Sample(slot.hashes.back(), slot.seed, slot.index, hello_.vocabulary_size());
    sampled_.back().back() = id;
    if (id == kNanId) {
      result.set_status(v1::ENTRY_STATUS_NAN);
    } else {
      result.add_ids(id);
    }
  }

  uint64_t& KvAt(const Slot& slot, size_t position) {
    const size_t tokens = hello_.block_tokens();
    return kv_[slot.table[position / tokens] * tokens + position % tokens];
  }

  static constexpr int32_t kNoToken = -2;

  const v1::Hello hello_;
  const uint64_t epoch_;
  std::vector<Slot> slots_;
  std::vector<uint64_t> kv_;                  // by block and offset
  std::deque<std::vector<int32_t>> sampled_;  // of the last plans, by entry
  uint64_t next_plan_ = 1;
  std::string error_;
};

// A Hello that EngineCore accepts; tests change what they are about.
inline v1::Hello MakeHello(const std::string& group, uint32_t stages) {
  v1::Hello hello;
  hello.set_protocol_version(1);
  hello.set_group(group);
  hello.set_fingerprint("f1");
  hello.set_text_hash("t1");
  hello.set_numerics_id("n1");
  hello.set_bitwise(true);
  hello.mutable_layout()->set_tensor_parallel(1);
  hello.mutable_layout()->set_pipeline_parallel(stages);
  hello.set_vocabulary_size(64);
  hello.set_context_length(256);
  hello.set_block_count(64);
  hello.set_block_tokens(16);
  hello.set_slot_count(8);
  hello.set_step_tokens(64);
  hello.set_model("toy");
  hello.set_architecture("toy");
  return hello;
}

}  // namespace pergola::sim
