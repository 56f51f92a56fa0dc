// A model of what a group of workers does with plans: the workers' checks, the KV bytes and the
// sampler, without the arithmetic. A position's "KV" is a hash of all tokens up to it, stored in
// the block the plan names; a step reads back every earlier position through the slot's block
// table, and a sampled token is a function of all it read there, and of the ids that penalties look
// at. So a wrong id, position, block, slot, copy, shared prefix, history or replay is an error
// here, or another stream than ExpectedIds().
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "pergola/v1/worker.pb.h"

namespace pergola::sim {

inline uint64_t Mix(uint64_t a, uint64_t b) {  // splitmix64 of a combination
  uint64_t x = a * 0x9E3779B97F4A7C15ULL + b + 0x632BE59BD9B4E019ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline constexpr int32_t kNanId = -1;

// What the rows of a sequence have read: `kv` is the KV of the newest position, `read` is a hash of
// the KV of all.
struct Reading {
  uint64_t kv = 0;
  uint64_t read = 0;
  void Next(uint64_t next_kv) {
    kv = next_kv;
    read = Mix(read, next_kv);
  }
};

inline uint64_t KvAfter(uint64_t kv, int32_t id) {
  return Mix(kv, static_cast<uint64_t>(id) + 1);
}

// What penalties make of the ids so far and of where the prompt ends.
inline uint64_t HistoryHash(const std::vector<int32_t>& ids, uint32_t prompt_tokens) {
  uint64_t hash = prompt_tokens;
  for (const int32_t id : ids) hash = Mix(hash, static_cast<uint64_t>(id));
  return hash;
}

// The token after what was read; kNanId where the model's logits are NaN.
inline int32_t Sample(uint64_t read, uint64_t seed, uint32_t index, uint32_t vocabulary) {
  const uint64_t draw = Mix(Mix(read, seed), index);
  if (draw % 4001 == 0) return kNanId;
  return static_cast<int32_t>((draw >> 12) % vocabulary);
}

// The log-probability of an id after what was read.
inline float LogprobAfter(uint64_t read, int32_t id) {
  return -static_cast<float>(Mix(read, static_cast<uint64_t>(id)) >> 44);
}

inline v1::Logprobs LogprobsAfter(uint64_t read, int32_t id, uint32_t tops) {
  v1::Logprobs logprobs;
  logprobs.set_logprob(LogprobAfter(read, id));
  for (uint32_t top = 0; top < tops; ++top) {
    logprobs.add_top_ids(static_cast<int32_t>(top));
    logprobs.add_top_logprobs(LogprobAfter(read, static_cast<int32_t>(top)));
  }
  return logprobs;
}

// What an undisturbed run gives.
struct Expected {
  std::vector<int32_t> ids;  // ends after a kNanId
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
};

inline Expected Undisturbed(const std::vector<int32_t>& prompt, uint64_t seed, uint32_t index,
                            uint32_t count, uint32_t vocabulary, bool looks_back = false) {
  Expected expected;
  Reading reading;
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (i > 0) expected.prompt_logprobs.push_back(LogprobAfter(reading.read, prompt[i]));
    reading.Next(KvAfter(reading.kv, prompt[i]));
  }
  std::vector<int32_t> all = prompt;
  while (expected.ids.size() < count) {
    const auto prompt_tokens = static_cast<uint32_t>(prompt.size());
    const uint64_t penalties = looks_back ? HistoryHash(all, prompt_tokens) : 0;
    const int32_t id = Sample(reading.read + penalties, seed, index, vocabulary);
    expected.ids.push_back(id);
    if (id == kNanId) break;
    expected.logprobs.push_back(LogprobAfter(reading.read, id));
    reading.Next(KvAfter(reading.kv, id));
    all.push_back(id);
  }
  return expected;
}

inline std::vector<int32_t> ExpectedIds(const std::vector<int32_t>& prompt, uint64_t seed,
                                        uint32_t index, uint32_t count, uint32_t vocabulary) {
  return Undisturbed(prompt, seed, index, count, vocabulary).ids;
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
    for (const v1::BlockCopy& copy : plan.copies()) {
      if (!Copy(copy)) return Refuse("a copy of or to an unknown block, or onto itself");
    }
    for (const v1::SlotStart& start : plan.starts()) {
      if (start.slot() >= slots_.size()) return Refuse("start of an unknown slot");
      slots_[start.slot()] = Begin(start);
      if (start.history_size() != 0 && start.history_size() != static_cast<int>(start.computed())) {
        return Refuse("a history that is not that of the computed positions");
      }
    }
    std::set<uint32_t> seen;
    uint32_t rows = 0;
    sampled_.emplace_back();
    if (sampled_.size() > hello_.layout().pipeline_parallel() + 2) sampled_.pop_front();
    std::vector<std::vector<int32_t>> ids(static_cast<size_t>(plan.entries_size()));
    // All entries read what is shared before any of them writes: a worker computes them together.
    for (int i = 0; i < plan.entries_size(); ++i) {
      const v1::Entry& entry = plan.entries(i);
      if (!seen.insert(entry.slot()).second) return Refuse("two entries of one slot");
      rows += static_cast<uint32_t>(entry.ids_size() == 0 ? 1 : entry.ids_size());
      PrepareEntry(entry, &ids[static_cast<size_t>(i)]);
      if (!error_.empty()) return v1::StepResult();
    }
    for (int i = 0; i < plan.entries_size(); ++i) {
      const v1::Entry& entry = plan.entries(i);
      sampled_.back().push_back(kNoToken);
      ComputeRows(entry, ids[static_cast<size_t>(i)], slots_[entry.slot()], *result.add_entries());
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
    uint32_t computed = 0;    // of the start; taken over with the first entry
    bool looks_back = false;  // some penalty needs the ids
    uint32_t prompt_tokens = 0;
    bool logprobs = false;
    uint32_t top_logprobs = 0;
    std::vector<int32_t> ids;  // as far as they were told
    std::vector<uint64_t> kv;  // of each computed position, as this slot left or found it
    std::vector<uint32_t> table;
  };

  static Slot Begin(const v1::SlotStart& start) {
    Slot slot;
    slot.started = true;
    slot.seed = start.seed();
    slot.index = start.index();
    slot.computed = start.computed();
    slot.looks_back = start.sampling().repetition_penalty() > 1;
    slot.prompt_tokens = start.prompt_tokens();
    slot.logprobs = start.sampling().has_logprobs();
    slot.top_logprobs = start.sampling().logprobs();
    slot.ids.assign(start.history().begin(), start.history().end());
    return slot;
  }

  bool Copy(const v1::BlockCopy& copy) {
    const uint32_t blocks = hello_.block_count();
    if (copy.from_block() >= blocks || copy.to_block() >= blocks) return false;
    if (copy.from_block() == copy.to_block()) return false;
    const size_t tokens = hello_.block_tokens();
    std::copy_n(kv_.begin() + static_cast<ptrdiff_t>(copy.from_block() * tokens), tokens,
                kv_.begin() + static_cast<ptrdiff_t>(copy.to_block() * tokens));
    return true;
  }

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

  // Checks the entry and resolves its ids; the blocks of a slot that starts behind computed
  // positions are read here.
  void PrepareEntry(const v1::Entry& entry, std::vector<int32_t>* ids) {
    if (entry.slot() >= slots_.size() || !slots_[entry.slot()].started) {
      Refuse(absl::StrCat("slot ", entry.slot(), " is unknown or was never started"));
      return;
    }
    Slot& slot = slots_[entry.slot()];
    if (!ResolveIds(entry, ids)) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": its tokens cannot be resolved"));
      return;
    }
    const bool first = slot.kv.empty() && slot.computed > 0;
    const size_t done = first ? slot.computed : slot.kv.size();
    if (entry.first_position() != done) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": first position ", entry.first_position(),
                          ", computed ", done));
      return;
    }
    if (!ReplaceTable(entry, slot)) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": bad block table"));
      return;
    }
    const size_t length = done + ids->size();
    if (length > slot.table.size() * hello_.block_tokens() || length > hello_.context_length()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": ", length, " positions do not fit"));
      return;
    }
    // What a shared block holds is taken as it is found: if it is wrong, the stream will be.
    for (size_t position = 0; first && position < done; ++position) {
      slot.kv.push_back(KvAt(slot, position));
    }
  }

  void ComputeRows(const v1::Entry& entry, const std::vector<int32_t>& ids, Slot& slot,
                   v1::EntryResult& result) {
    Reading reading;
    for (size_t position = 0; position < slot.kv.size(); ++position) {
      if (KvAt(slot, position) != slot.kv[position]) {
        Refuse(
            absl::StrCat("slot ", entry.slot(), ": KV of position ", position, " was overwritten"));
        return;
      }
      reading.Next(KvAt(slot, position));
    }
    if (entry.targets_size() > static_cast<int>(ids.size())) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": more targets than tokens"));
      return;
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= hello_.vocabulary_size()) {
        Refuse(absl::StrCat("id ", ids[i]));
        return;
      }
      slot.kv.push_back(KvAfter(reading.kv, ids[i]));
      slot.ids.push_back(ids[i]);
      KvAt(slot, slot.kv.size() - 1) = slot.kv.back();
      reading.Next(slot.kv.back());
      if (static_cast<int>(i) < entry.targets_size()) {
        *result.add_target_logprobs() = LogprobsAfter(
            reading.read, entry.targets(static_cast<int>(i)), entry.target_logprobs());
      }
    }
    if (entry.logits_at_size() == 0) return;
    if (entry.logits_at_size() > 1 || entry.logits_at(0) + 1 != ids.size()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": logits that nobody needs"));
      return;
    }
    if (slot.looks_back && slot.ids.size() != slot.kv.size()) {
      Refuse(absl::StrCat("slot ", entry.slot(), ": penalties without the history"));
      return;
    }
    const uint64_t penalties = slot.looks_back ? HistoryHash(slot.ids, slot.prompt_tokens) : 0;
    const int32_t id =
        Sample(reading.read + penalties, slot.seed, slot.index, hello_.vocabulary_size());
    sampled_.back().back() = id;
    if (id == kNanId) {
      result.set_status(v1::ENTRY_STATUS_NAN);
      result.clear_target_logprobs();
      return;
    }
    result.add_ids(id);
    if (slot.logprobs) *result.add_logprobs() = LogprobsAfter(reading.read, id, slot.top_logprobs);
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
  hello.set_protocol_version(kProtocolVersion);
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
