// One group behind one EngineCore on a virtual clock: how well the scheduler uses it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "coordinator/engine/engine_core.h"
#include "tests/sim/sim_group.h"

namespace pergola::sim {

// A Hello whose limits are in nobody's way.
inline v1::Hello WideHello(uint32_t stages) {
  v1::Hello hello = MakeHello("g", stages);
  hello.set_vocabulary_size(1U << 20);
  hello.set_context_length(4096);
  hello.set_block_count(1024);
  hello.set_slot_count(64);
  hello.set_step_tokens(512);
  return hello;
}

// What came of a request, and when; its client reads at once.
struct Stream {
  std::shared_ptr<Mailbox> mailbox;
  TimeUs first = kNever;  // token
  TimeUs last = 0;
  TimeUs longest_gap = 0;
  uint32_t tokens = 0;
};

struct Pipeline {
  VirtualClock clock;
  EngineCore core{EngineOptions(), 0, nullptr};
  std::shared_ptr<SimLink> link;
  std::vector<std::unique_ptr<Stream>> streams;

  Pipeline(uint32_t stages, const GroupTimes& times) : Pipeline(WideHello(stages), times) {}

  Pipeline(const v1::Hello& hello, const GroupTimes& times) {
    link = std::make_shared<SimLink>(hello, times, &clock, [this](const v1::StepResult& result) {
      core.GroupResult("g", result, clock.now());
    });
    core.GroupAttached(1, hello, link, 0);
    core.ResultsConnected("g", 2, 0);
    core.Advance(0);
  }

  const Stream* Submit(uint32_t prompt, uint32_t max_new) {
    streams.push_back(std::make_unique<Stream>());
    Stream* stream = streams.back().get();
    stream->mailbox = std::make_shared<Mailbox>([this, stream] { Read(stream); });
    SequenceRequest request;
    request.seed = streams.size();
    request.prompt_ids.assign(prompt, static_cast<int32_t>(request.seed));
    request.max_new_tokens = max_new;
    request.mailbox = stream->mailbox;
    core.Submit(streams.size(), std::move(request), clock.now());
    return stream;
  }

  void Read(Stream* stream) {
    const size_t tokens = stream->mailbox->Take().ids.size();
    if (tokens == 0) return;
    if (stream->first == kNever) {
      stream->first = clock.now();
    } else {
      stream->longest_gap = std::max(stream->longest_gap, clock.now() - stream->last);
    }
    stream->last = clock.now();
    stream->tokens += static_cast<uint32_t>(tokens);
  }

  void RunUntilIdle() {
    core.Advance(clock.now());
    while (core.sequence_count() > 0) {
      ASSERT_NE(clock.next(), kNever);
      clock.Step();
      core.Advance(clock.now());
      ASSERT_EQ(link->error(), "");
    }
  }

  // The share of [from, to) in which `stage` computed.
  double Busy(size_t stage, TimeUs from, TimeUs to) const {
    TimeUs busy = 0;
    for (const auto& [start, end] : link->busy()[stage]) {
      busy += std::max<TimeUs>(0, std::min(end, to) - std::max(start, from));
    }
    return static_cast<double>(busy) / static_cast<double>(to - from);
  }
};

}  // namespace pergola::sim
