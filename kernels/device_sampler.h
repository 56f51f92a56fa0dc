// Tokens chosen where the logits lie: the tasks of kernels/sample.h on rows in a device's memory,
// cut over the ranks of a stage by vocabulary. Only answers come to the host, some kilobytes a row.
// The result is SampleTasks': the same ids, and log-probabilities as near as the device says.
//
// The host decides, because the last bits of a draw are its own. The device guesses too, at once:
// its guesses stay in its memory, so that the next step's forward pass can begin with them before
// the host has seen any answer. Nearly every guess is right (a draw depends on a rounding once in
// 10^8 times); the host compares, and has the pass repeated otherwise.
//
// Ranks of a stage whose devices reach each other (DeviceSamplerShape::group) exchange their
// answers on the device. The first of them guesses and tells the others, so that all have the same
// answers and the same guesses, bit for bit, and every host comes to the same decision without
// asking.
//
// A step's calls, all from the rank's main thread:
//   sampler->Enqueue(tasks, entries)     // behind the logits
//   wait for the stream; ranks without a group exchange answers()
//   sampler->Merge(answers of all, ...)  // rows it leaves: SampleTasks on the row's logits
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/device_group.h"
#include "kernels/sample.h"
#include "model/layout.h"

namespace pergola {

struct RowSamplerShape {
  int64_t tasks = 0;  // most of a call
  int64_t vocabulary = 0;
  Range slice;               // of this rank; at most kMaxSampleValues ids
  int64_t widest_slice = 0;  // of the stage's ranks
  int64_t history = 0;       // of the longest row
  // Edited logits of a call, all rows together, as EditBound counts them. Rows beyond are left to
  // the host.
  int64_t edits = 0;
};

struct DeviceSamplerShape {
  RowSamplerShape rows;
  std::vector<Range> slices;  // of the stage's ranks, ascending
  int64_t entries = 0;        // of a step, most
  // Of the stage's ranks, borrowed; null with one rank, and where the hosts exchange the answers:
  // then several ranks have no guesses.
  DeviceGroup* group = nullptr;

  // Whether answers() holds those of every rank.
  bool gathers() const { return group != nullptr; }
};

// What a sampler allocates, and the part of the stream's workspace that it uses (DESIGN I7).
struct DeviceSamplerBytes {
  int64_t device = 0;
  int64_t pinned = 0;
  int64_t host = 0;
  int64_t workspace = 0;
  int64_t answers = 0;  // most bytes that a rank has to tell; part of `pinned`
};

class DeviceSampler {
 public:
  virtual ~DeviceSampler() = default;
  DeviceSampler(const DeviceSampler&) = delete;
  DeviceSampler& operator=(const DeviceSampler&) = delete;

  // Enqueues the choice and the copy of its answers. The tasks are as for SampleTasks, but
  // row.logits is the row's slice in device memory, which is edited for a while: no two tasks have
  // the same row. Nothing else of them is looked at later. `entries[i]`: the entry that task i's
  // token is guessed for; -1: none. The answers to the last call have arrived.
  virtual absl::Status Enqueue(absl::Span<const SampleTask> tasks,
                               absl::Span<const int32_t> entries) = 0;

  // What is known of the last Enqueue without its answers: whether guesses are worth anything, that
  // is, whether every task with an entry is one that the device can do.
  virtual bool guesses() const = 0;
  // [entries] in device memory: the guess for each entry that was named; 0 where the row has no
  // token. Written by the device in the order of the stream.
  virtual const int32_t* device_tokens() const = 0;

  // When the stream has done what was enqueued: the guesses, and this rank's answers, as many bytes
  // on every rank; with a group every rank's, one after the other.
  virtual absl::Span<const int32_t> tokens() const = 0;
  virtual absl::Span<const uint8_t> answers() const = 0;
  // Fills the answers of the tasks given to Enqueue. `ranks`: answers() of every rank. Appends to
  // `left` the tasks that only SampleTasks can do: the same on every rank.
  virtual void Merge(absl::Span<const uint8_t* const> ranks, absl::Span<SampleTask> tasks,
                     std::vector<int32_t>* left) = 0;

 protected:
  DeviceSampler() = default;
};

}  // namespace pergola
