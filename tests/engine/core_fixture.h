// An EngineCore with groups that record what they are sent; tests answer plans by hand.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/engine_core.h"
#include "tests/engine/fixtures.h"

namespace pergola {

class CoreTest : public testing::Test {
 protected:
  struct Stream {
    SequenceId id;
    std::shared_ptr<Mailbox> mailbox;
    Mailbox::Delivery Take() { return mailbox->Take(); }
  };

  static EngineOptions Options() {
    EngineOptions options;
    options.text_hash = "t1";
    options.step_timeout_us = 1000;
    options.failover_wait_us = 500;
    options.probe_interval_us = 100;
    options.start_time_us = 5000;
    return options;
  }

  void Advance(TimeUs time) {
    now_ = time;
    core_.Advance(now_);
  }

  // Attaches and connects a group under new connection numbers.
  std::shared_ptr<RecordingLink> Attach(const v1::Hello& hello) {
    auto link = std::make_shared<RecordingLink>();
    core_.GroupAttached(++connection_, hello, link, now_);
    core_.ResultsConnected(hello.group(), connection_ + 1000, now_);
    core_.Advance(now_);
    return link;
  }

  // Answers the oldest unanswered plan of the link.
  void AnswerOne(RecordingLink& link, const std::string& group, int32_t id) {
    ASSERT_FALSE(link.plans.empty());
    const auto plan = link.plans.front();
    link.plans.erase(link.plans.begin());
    core_.GroupResult(group, Answer(*plan, id), now_);
    core_.Advance(now_);
  }

  // A group that answered its probe.
  std::shared_ptr<RecordingLink> AttachAndProbe(const v1::Hello& hello) {
    auto link = Attach(hello);
    AnswerOne(*link, hello.group(), 0);
    return link;
  }

  Stream Submit(SequenceRequest request) {
    Stream stream{++last_id_, request.mailbox};
    core_.Submit(stream.id, std::move(request), now_);
    core_.Advance(now_);
    return stream;
  }

  TimeUs now_ = 10'000;
  uint64_t connection_ = 0;
  SequenceId last_id_ = 0;
  EngineCore core_{Options(), 10'000, nullptr};
};

}  // namespace pergola
