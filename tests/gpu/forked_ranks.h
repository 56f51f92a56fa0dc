// The ranks of a group as processes forked from this one, for machines without MPI: each has a CUDA
// context of its own, as in production, also where all share one GPU. Fork before anything touches
// CUDA.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "worker/comm/transport.h"

namespace pergola {

// Calls body(rank) in `count` processes and waits. OK if all returned OK; else the first failure,
// with its rank; the others are ended then, as they are after `timeout_s`.
absl::Status ForkRanks(int count, double timeout_s, const std::function<absl::Status(int)>& body);

// Sockets between every two ranks; made before the fork.
class SocketMesh {
 public:
  explicit SocketMesh(int ranks);
  ~SocketMesh();
  SocketMesh(const SocketMesh&) = delete;
  SocketMesh& operator=(const SocketMesh&) = delete;
  // `at`'s end of its line to `peer`.
  int Socket(int at, int peer) const { return ends_.at({at, peer}); }

 private:
  std::map<std::pair<int, int>, int> ends_;
};

// The Transport of one rank. Messages are at most what a socket's buffers hold (kMostBytes), so
// that a Send never waits for a peer that sends itself.
class SocketTransport final : public Transport {
 public:
  static constexpr int64_t kMostBytes = 1 << 20;

  SocketTransport(const SocketMesh& mesh, int rank) : mesh_(mesh), rank_(rank) {}

  absl::Status Send(int to, Tag tag, const void* data, int64_t bytes) override;
  absl::Status Receive(int from, Tag tag, std::vector<uint8_t>* out, bool idle) override;
  bool Probe(int from, Tag tag) override;
  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  // Waits for one message of `from`, whatever its tag.
  absl::Status ReceiveOne(int from);

  const SocketMesh& mesh_;
  const int rank_;
  std::map<std::pair<int, Tag>, std::deque<std::vector<uint8_t>>> waiting_;
};

}  // namespace pergola
