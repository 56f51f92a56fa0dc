// What the engine core knows of one group of worker ranks, by name, through all its incarnations.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "coordinator/engine/group_link.h"
#include "coordinator/engine/measurements.h"
#include "coordinator/engine/scheduler.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/admin.pb.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

struct Group {
  std::string name;
  v1::GroupState state = v1::GROUP_STATE_UNSPECIFIED;
  uint64_t connection = 0;          // the Attach stream; 0: none
  uint64_t results_connection = 0;  // the Results stream; 0: none
  v1::Progress progress;            // while loading
  TimeUs loading_since = kNever;    // on `connection`
  TimeUs load_time = 0;             // of the last that loaded
  std::string last_fault;
  TimeUs changed = 0;  // the last change of state; the oldest lost group makes room for a new name

  // Of the incarnation that is attached (READY) or was last.
  v1::Hello hello;
  uint64_t epoch = 0;
  std::shared_ptr<GroupLink> link;  // second owner: the link's own connection; null unless READY
  std::unique_ptr<Scheduler> scheduler;  // null unless READY
  bool answered = false;                 // it answered a plan, so a token can pass
  std::deque<TimeUs> sent;               // when the plans in flight were sent
  TimeUs head_since =
      0;  // since when it owes what it owes: the oldest plan's answer, or a Results stream
  TimeUs last_sent = kNever;  // the last plan of all
  double last_step_ms = 0;
  TimeHistogram step_time;  // of all incarnations
  uint32_t trace_id = 0;

  bool ready() const { return state == v1::GROUP_STATE_READY; }
  bool can_send() const { return ready() && results_connection != 0; }
};

}  // namespace pergola
