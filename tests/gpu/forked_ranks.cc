#include "tests/gpu/forked_ranks.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/check.h"
#include "base/status.h"
#include "worker/comm/shared_region.h"

namespace pergola {
namespace {

constexpr size_t kTextBytes = 512;  // of a rank's failure

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string WordsOf(int wait_status, const char* text) {
  if (text[0] != 0) return text;
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("ended by signal ", WTERMSIG(wait_status));
  }
  return absl::StrCat("ended with exit code ", WEXITSTATUS(wait_status));
}

struct Header {
  int32_t tag;
  int32_t bytes;
};

absl::Status SocketError(const char* call, int peer) {
  return absl::UnavailableError(
      absl::StrCat(call, " with rank ", peer, ": ", std::strerror(errno)));
}

}  // namespace

absl::Status ForkRanks(int count, double timeout_s, const std::function<absl::Status(int)>& body) {
  ASSIGN_OR_RETURN(const auto texts,
                   SharedRegion::MapAnonymous(static_cast<int64_t>(kTextBytes) * count));
  std::fflush(nullptr);
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < count; ++rank) {
    const pid_t child = fork();
    PERGOLA_CHECK(child >= 0);
    if (child == 0) {
      const absl::Status status = body(rank);
      const std::string text(status.message());
      std::snprintf(reinterpret_cast<char*>(texts->data()) + rank * kTextBytes, kTextBytes, "%s",
                    text.c_str());
      std::fflush(nullptr);
      // No destructors: the parent's objects are the parent's.
      _exit(status.ok() ? 0 : 1);
    }
    ranks.push_back(child);
  }
  const double deadline = Now() + timeout_s;
  absl::Status failure = absl::OkStatus();
  int left = count;
  while (left > 0) {
    for (int rank = 0; rank < count; ++rank) {
      int status = 0;
      if (ranks[rank] < 0 || waitpid(ranks[rank], &status, WNOHANG) != ranks[rank]) continue;
      ranks[rank] = -1;
      --left;
      const char* text = reinterpret_cast<const char*>(texts->data()) + rank * kTextBytes;
      if (failure.ok() && status != 0) {
        failure = absl::InternalError(absl::StrCat("rank ", rank, ": ", WordsOf(status, text)));
      }
    }
    if (failure.ok() && left > 0 && Now() > deadline) {
      failure = absl::DeadlineExceededError(
          absl::StrCat(left, " of ", count, " ranks not done after ", timeout_s, " s"));
    }
    if (!failure.ok()) {
      for (const pid_t rank : ranks) {
        if (rank >= 0) kill(rank, SIGKILL);
      }
    }
    if (left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return failure;
}

SocketMesh::SocketMesh(int ranks) {
  for (int a = 0; a < ranks; ++a) {
    for (int b = a + 1; b < ranks; ++b) {
      int ends[2];
      PERGOLA_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
      // Twice: the system counts its own overhead too.
      const int bytes = static_cast<int>(4 * SocketTransport::kMostBytes);
      for (const int end : ends) {
        setsockopt(end, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
      }
      ends_[{a, b}] = ends[0];
      ends_[{b, a}] = ends[1];
    }
  }
}

SocketMesh::~SocketMesh() {
  for (const auto& [ranks, end] : ends_) close(end);
}

absl::Status SocketTransport::Send(int to, Tag tag, const void* data, int64_t bytes) {
  PERGOLA_CHECK(bytes <= kMostBytes);
  std::vector<uint8_t> message(sizeof(Header) + static_cast<size_t>(bytes));
  const Header header = {static_cast<int32_t>(tag), static_cast<int32_t>(bytes)};
  std::memcpy(message.data(), &header, sizeof(header));
  std::copy_n(static_cast<const uint8_t*>(data), bytes, message.data() + sizeof(header));
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t some =
        send(mesh_.Socket(rank_, to), message.data() + sent, message.size() - sent, MSG_NOSIGNAL);
    if (some < 0 && errno != EINTR) return SocketError("send", to);
    if (some > 0) sent += static_cast<size_t>(some);
  }
  return absl::OkStatus();
}

absl::Status SocketTransport::ReceiveOne(int from) {
  const int socket = mesh_.Socket(rank_, from);
  const auto receive = [&](void* to, size_t bytes) -> absl::Status {
    for (size_t done = 0; done < bytes;) {
      const ssize_t some = recv(socket, static_cast<uint8_t*>(to) + done, bytes - done, 0);
      if (some == 0) return absl::UnavailableError(absl::StrCat("rank ", from, " is gone"));
      if (some < 0 && errno != EINTR) return SocketError("recv", from);
      if (some > 0) done += static_cast<size_t>(some);
    }
    return absl::OkStatus();
  };
  Header header = {};
  RETURN_IF_ERROR(receive(&header, sizeof(header)));
  std::vector<uint8_t> message(static_cast<size_t>(header.bytes));
  RETURN_IF_ERROR(receive(message.data(), message.size()));
  waiting_[{from, static_cast<Tag>(header.tag)}].push_back(std::move(message));
  return absl::OkStatus();
}

absl::Status SocketTransport::Receive(int from, Tag tag, std::vector<uint8_t>* out, bool /*idle*/) {
  std::deque<std::vector<uint8_t>>& queue = waiting_[{from, tag}];
  while (queue.empty()) RETURN_IF_ERROR(ReceiveOne(from));
  *out = std::move(queue.front());
  queue.pop_front();
  return absl::OkStatus();
}

bool SocketTransport::Probe(int from, Tag tag) {
  pollfd waits = {mesh_.Socket(rank_, from), POLLIN, 0};
  std::deque<std::vector<uint8_t>>& queue = waiting_[{from, tag}];
  while (queue.empty() && poll(&waits, 1, 0) == 1) {
    if (!ReceiveOne(from).ok()) return false;  // Receive says why
  }
  return !queue.empty();
}

}  // namespace pergola
