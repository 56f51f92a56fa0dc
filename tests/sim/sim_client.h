// One client of a simulation: what it asks, what an undisturbed run would give it, what it got, and
// how it reads.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/request.h"
#include "tests/sim/fake_text.h"
#include "tests/sim/model_group.h"

namespace pergola::sim {

inline constexpr uint32_t kVocabulary = 64;

// The whole of a stream, as an undisturbed run gives it.
struct ExpectedStream {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;  // one per id
  std::vector<float> prompt_logprobs;
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
  bool penalties = false;
  bool logprobs = false;
  bool prompt_logprobs = false;
  uint32_t received = 0;
  uint64_t received_bytes = 0;
  TimeUs deadline = kNever;
  bool cancelled = false;
  uint32_t losses_before = 0;  // of groups, when it came
  Mailbox::Bounds bounds;
  bool slow = false;   // takes at times of its own, not after every event
  bool never = false;  // takes nothing until the end of time

  ExpectedStream expected;
  std::shared_ptr<Mailbox> mailbox;
  std::vector<int32_t> ids;
  std::vector<float> got_logprobs;
  std::vector<float> got_prompt_logprobs;
  std::string text;
  bool info = false;
  bool ended = false;
  absl::Status status;
  v1::Finish finish;

  void Expect() {
    FakeText words(stop_pair);
    std::string shown;
    const auto has = [](const std::vector<int32_t>& set, int32_t id_) {
      return std::find(set.begin(), set.end(), id_) != set.end();
    };
    const Expected run = Undisturbed(prompt, seed, index, max_new, kVocabulary, penalties);
    if (prompt_logprobs) expected.prompt_logprobs = run.prompt_logprobs;
    if (max_new == 0) expected.reason = v1::FINISH_REASON_LENGTH;
    for (const int32_t next : run.ids) {
      expected.nan = next == kNanId;
      if (expected.nan) break;
      expected.ids.push_back(next);
      if (has(eos, next)) {
        expected.reason = v1::FINISH_REASON_EOS;
      } else if (has(stop_ids, next)) {
        expected.reason = v1::FINISH_REASON_STOP_ID;
      } else {
        const TextStream::Delta delta = words.Push(next);
        shown += delta.text;
        if (delta.stopped) {
          expected.reason = v1::FINISH_REASON_STOP_STRING;
        } else if (expected.ids.size() == max_new) {
          expected.reason = v1::FINISH_REASON_LENGTH;
        }
      }
      const bool ends = expected.reason != v1::FINISH_REASON_UNSPECIFIED;
      if (ends && expected.reason != v1::FINISH_REASON_STOP_STRING) shown += words.Flush();
      expected.text_after.push_back(shown);
      if (ends) break;
    }
    expected.logprobs.assign(run.logprobs.begin(),
                             run.logprobs.begin() + static_cast<ptrdiff_t>(expected.ids.size()));
  }

  SequenceRequest Request() const {
    SequenceRequest request;
    request.prompt_ids = prompt;
    request.received_ids.assign(expected.ids.begin(), expected.ids.begin() + received);
    request.received_text_bytes = received_bytes;
    request.seed = seed;
    request.index = index;
    request.max_new_tokens = max_new;
    request.eos_ids = eos;
    request.stop_ids = stop_ids;
    request.text = std::make_unique<FakeText>(stop_pair);
    request.deadline = deadline;
    request.mailbox = mailbox;
    if (penalties) request.sampling.set_repetition_penalty(2);
    if (logprobs) request.sampling.set_logprobs(2);
    if (prompt_logprobs) request.prompt_logprobs = 1;
    return request;
  }

  // Takes what is in the mailbox. `slack`: tokens that plans in flight may add to a full one.
  void Take(size_t slack) {
    Mailbox::Delivery delivery = mailbox->Take();
    const bool first = ids.empty() && text.empty() && got_prompt_logprobs.empty() && !info;
    if (delivery.info) {
      ASSERT_FALSE(info) << "info twice";
      info = true;
      ASSERT_EQ(delivery.info->prompt_token_count(), prompt.size());
    } else if (first && (!delivery.ids.empty() || !delivery.text.empty())) {
      ADD_FAILURE() << "the first delivery of sequence " << id << " has no info";
    }
    ASSERT_LE(delivery.ids.size(), bounds.tokens + slack) << "the mailbox has no bound";
    ids.insert(ids.end(), delivery.ids.begin(), delivery.ids.end());
    for (const v1::Logprobs& one : delivery.logprobs) got_logprobs.push_back(one.logprob());
    for (const v1::Logprobs& one : delivery.prompt_logprobs) {
      got_prompt_logprobs.push_back(one.logprob());
    }
    text += delivery.text;
    if (!delivery.ended) return;
    ended = true;
    status = delivery.status;
    if (delivery.finish) finish = *delivery.finish;
  }

  // What came is a part of what was due, whatever the end.
  void CheckContent() const {
    const std::vector<int32_t> rest = Rest();
    ASSERT_LE(ids.size(), rest.size());
    ASSERT_TRUE(std::equal(ids.begin(), ids.end(), rest.begin())) << "other ids";
    ASSERT_EQ(text, Text().substr(0, text.size()));
    ASSERT_EQ(got_logprobs.size(), logprobs ? ids.size() : 0);
    ASSERT_TRUE(
        std::equal(got_logprobs.begin(), got_logprobs.end(), expected.logprobs.begin() + received))
        << "other log-probabilities";
    ASSERT_LE(got_prompt_logprobs.size(), expected.prompt_logprobs.size());
    ASSERT_TRUE(std::equal(got_prompt_logprobs.begin(), got_prompt_logprobs.end(),
                           expected.prompt_logprobs.begin()))
        << "other log-probabilities of the prompt";
  }

  void CheckComplete() const {
    ASSERT_EQ(ids, Rest());
    ASSERT_EQ(text, Text());
    ASSERT_FALSE(expected.nan);
    ASSERT_EQ(finish.reason(), expected.reason);
    ASSERT_EQ(finish.usage().completion_tokens(), expected.ids.size());
    ASSERT_TRUE(info);
    // A resume that holds its own end already needs no group.
    if (received < expected.ids.size() || max_new == 0) {
      ASSERT_EQ(got_prompt_logprobs.size(), expected.prompt_logprobs.size());
    }
  }

 private:
  std::vector<int32_t> Rest() const {
    return {expected.ids.begin() + received, expected.ids.end()};
  }
  std::string Text() const {
    return expected.ids.empty() ? "" : expected.text_after.back().substr(received_bytes);
  }
};

}  // namespace pergola::sim
