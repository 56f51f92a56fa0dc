#include "worker/comm/mpi_transport.h"

#include <climits>
#include <iterator>
#include <utility>

#include "base/status.h"
#include "worker/comm/backoff.h"

namespace pergola {
namespace {

// Inside a step the next message is some milliseconds away at most; between steps it may be hours.
// One probe with its sleep was measured at 27 to 43 microseconds of CPU on a busy machine, up to
// 4 % of a core when done each millisecond; so an idle rank looks every four. That delays no token:
// the plan it waits for reaches it before the stage ahead begins to compute.
BackoffOptions WithinStep(bool spin) {
  return {spin ? 2000 : 20, 10, 200};
}
BackoffOptions WhileIdle(bool spin) {
  return {spin ? 500 : 20, 20, 4000};
}

}  // namespace

absl::Status MpiStatus(int code, const char* call) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat(call, ": ", std::string(text, length)));
}

absl::Status MpiWait(MPI_Request* request, const char* call) {
  Backoff backoff({20, 20, 1000});
  while (true) {
    int done = 0;
    RETURN_IF_ERROR(MpiStatus(MPI_Test(request, &done, MPI_STATUS_IGNORE), call));
    if (done != 0) return absl::OkStatus();
    backoff.Pause();
  }
}

MpiTransport::MpiTransport(MPI_Comm world, const MpiTransportOptions& options)
    : world_(world), options_(options) {}

absl::Status MpiTransport::MoveSendsOn() {
  for (auto send = sends_.begin(); send != sends_.end();) {
    int done = 0;
    RETURN_IF_ERROR(MpiStatus(MPI_Test(&send->request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
    send = done != 0 ? sends_.erase(send) : std::next(send);
  }
  return absl::OkStatus();
}

absl::Status MpiTransport::TakeIn(const ChannelKey& key, Channel* channel) {
  const auto [from, tag] = key;
  while (static_cast<int>(channel->arrived.size()) < kMaxArrived) {
    if (!channel->receiving) {
      int found = 0, bytes = 0;
      MPI_Status status;
      RETURN_IF_ERROR(MpiStatus(MPI_Iprobe(from, static_cast<int>(tag), world_, &found, &status),
                                "MPI_Iprobe"));
      if (found == 0) return absl::OkStatus();
      RETURN_IF_ERROR(MpiStatus(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count"));
      channel->incoming.resize(bytes);
      RETURN_IF_ERROR(MpiStatus(MPI_Irecv(channel->incoming.data(), bytes, MPI_BYTE, from,
                                          static_cast<int>(tag), world_, &channel->request),
                                "MPI_Irecv"));
      channel->receiving = true;
    }
    int done = 0;
    RETURN_IF_ERROR(MpiStatus(MPI_Test(&channel->request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
    if (done == 0) return absl::OkStatus();
    channel->receiving = false;
    channel->arrived.push_back(std::move(channel->incoming));
    channel->incoming.clear();
  }
  return absl::OkStatus();
}

absl::Status MpiTransport::MoveAllOn() {
  RETURN_IF_ERROR(background_error_);
  RETURN_IF_ERROR(MoveSendsOn());
  for (auto& [key, channel] : channels_) RETURN_IF_ERROR(TakeIn(key, &channel));
  return absl::OkStatus();
}

bool MpiTransport::Progress() {
  background_error_ = MoveAllOn();
  if (!background_error_.ok() || !sends_.empty()) return !sends_.empty();
  for (const auto& [key, channel] : channels_) {
    if (channel.receiving) return true;
  }
  return false;
}

int MpiTransport::InFlight(int to) const {
  int count = 0;
  for (const Outgoing& send : sends_) count += send.to == to ? 1 : 0;
  return count;
}

absl::Status MpiTransport::Send(int to, Tag tag, const void* data, int64_t bytes) {
  if (bytes > INT_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", bytes, " bytes exceeds MPI's ", INT_MAX));
  }
  RETURN_IF_ERROR(MoveAllOn());
  if (InFlight(to) >= kMaxSendsInFlight) {
    ScopedWait wait(*options_.board, "send", messages_, to);
    Backoff backoff(WithinStep(options_.spin));
    while (InFlight(to) >= kMaxSendsInFlight) {
      backoff.Pause();
      RETURN_IF_ERROR(MoveAllOn());
    }
  }
  const auto* source = static_cast<const uint8_t*>(data);
  sends_.push_back({MPI_REQUEST_NULL, to, std::vector<uint8_t>(source, source + bytes)});
  Outgoing& send = sends_.back();
  return MpiStatus(MPI_Isend(send.bytes.data(), static_cast<int>(bytes), MPI_BYTE, to,
                             static_cast<int>(tag), world_, &send.request),
                   "MPI_Isend");
}

absl::Status MpiTransport::WaitForArrival(const ChannelKey& key, bool idle, Channel* channel) {
  Backoff backoff(idle ? WhileIdle(options_.spin) : WithinStep(options_.spin));
  while (channel->arrived.empty()) {
    backoff.Pause();
    // Each probe costs some microseconds a thousand times a second, so an idle rank asks for the
    // next plan only.
    RETURN_IF_ERROR(MoveSendsOn());
    RETURN_IF_ERROR(TakeIn(key, channel));
  }
  return absl::OkStatus();
}

absl::Status MpiTransport::Receive(int from, Tag tag, std::vector<uint8_t>* out, bool idle) {
  const ChannelKey key = {from, tag};
  Channel& channel = channels_[key];
  RETURN_IF_ERROR(MoveAllOn());
  if (channel.arrived.empty()) {
    ScopedWait wait(*options_.board, "receive", messages_, from);
    RETURN_IF_ERROR(WaitForArrival(key, idle, &channel));
  }
  ++messages_;
  *out = std::move(channel.arrived.front());
  channel.arrived.pop_front();
  return absl::OkStatus();
}

bool MpiTransport::Probe(int from, Tag tag) {
  const Channel& channel = channels_[{from, tag}];
  Progress();
  return !channel.arrived.empty();
}

absl::Status MpiTransport::Flush() {
  RETURN_IF_ERROR(MoveAllOn());
  if (sends_.empty()) return absl::OkStatus();
  ScopedWait wait(*options_.board, "flush", messages_, sends_.front().to);
  Backoff backoff(WithinStep(options_.spin));
  while (!sends_.empty()) {
    backoff.Pause();
    RETURN_IF_ERROR(MoveAllOn());
  }
  return absl::OkStatus();
}

}  // namespace pergola
