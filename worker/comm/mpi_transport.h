// The Transport between processes: MPI_Isend, MPI_Irecv, MPI_Iprobe and MPI_Test, nothing that
// blocks. Errors of MPI come back as UNAVAILABLE.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "worker/comm/transport.h"
#include "worker/comm/wait_board.h"

namespace pergola {

// The status of an MPI call; OK for MPI_SUCCESS.
absl::Status MpiStatus(int code, const char* call);

// Waits for `request` in sleeps of up to a millisecond. For start-up, where ranks wait seconds for
// one another.
absl::Status MpiWait(MPI_Request* request, const char* call);

struct MpiTransportOptions {
  bool spin = false;  // poll busily at first: pays only while every rank has cores of its own
  WaitBoard* board = nullptr;  // borrowed
};

class MpiTransport : public Transport {
 public:
  // Sends to one rank that may be incomplete, and messages of one (from, tag) that may have arrived
  // without being asked for: one per plan in flight of a deep pipeline.
  static constexpr int kMaxSendsInFlight = 64;
  static constexpr int kMaxArrived = 64;

  // `world` is borrowed; its error handler must return. Must outlive the process's last message:
  // MPI knows its buffers, and nothing is cancelled.
  MpiTransport(MPI_Comm world, const MpiTransportOptions& options);

  absl::Status Send(int to, Tag tag, const void* data, int64_t bytes) override;
  absl::Status Receive(int from, Tag tag, std::vector<uint8_t>* out, bool idle) override;
  bool Probe(int from, Tag tag) override;
  absl::Status Flush() override;

  // Moves sends on, and takes in what arrives on the channels received from so far. True while
  // something is under way. Errors come back from the next Send, Receive or Flush.
  bool Progress();

 private:
  struct Outgoing {
    MPI_Request request = MPI_REQUEST_NULL;
    int to = 0;
    std::vector<uint8_t> bytes;
  };
  // The messages of one (from, tag). One receive at a time keeps their order.
  struct Channel {
    bool receiving = false;
    MPI_Request request = MPI_REQUEST_NULL;
    std::vector<uint8_t> incoming;
    std::deque<std::vector<uint8_t>> arrived;
  };
  using ChannelKey = std::pair<int, Tag>;

  // Tests all sends once and drops those that are complete.
  absl::Status MoveSendsOn();
  absl::Status TakeIn(const ChannelKey& key, Channel* channel);
  absl::Status MoveAllOn();
  int InFlight(int to) const;
  absl::Status WaitForArrival(const ChannelKey& key, bool idle, Channel* channel);

  const MPI_Comm world_;
  const MpiTransportOptions options_;
  // Lists and maps: MPI holds pointers into their elements.
  std::list<Outgoing> sends_;
  std::map<ChannelKey, Channel> channels_;
  absl::Status background_error_;
  uint64_t messages_ = 0;  // received so far: the sequence of published waits
};

}  // namespace pergola
