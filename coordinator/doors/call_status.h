// How a door says no: google.rpc.Status with details (BadRequest, RetryInfo, ErrorInfo), bounded so
// that it fits the 8 KiB of trailing metadata that a gRPC client accepts by default. No gRPC
// headers here; see grpc_bytes.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"

namespace pergola {

// Base64 makes 4 bytes of 3, and the message travels a second time, in clear: 2,048 bytes of
// details stay below 8 KiB.
inline constexpr size_t kMaxDetailBytes = 2048;
inline constexpr size_t kMaxStatusMessageBytes = 512;

// Collects every wrong field of one request.
class Violations {
 public:
  // `prefix` goes before every field: "requests[3]." within a batch.
  explicit Violations(std::string prefix = "") : prefix_(std::move(prefix)) {}
  // `description` names value and limit. An empty field means the whole message.
  void Add(std::string_view field, std::string description);
  // `path` is the whole path: no prefix goes before it.
  void AddAt(std::string path, std::string description);
  bool empty() const { return items_.empty(); }
  // INVALID_ARGUMENT with BadRequest; what exceeds the bounds is counted in a last violation.
  google::rpc::Status ToStatus() const;

 private:
  struct Item {
    std::string field;
    std::string description;
  };
  std::string Path(std::string_view field) const;

  std::string prefix_;
  std::vector<Item> items_;
  size_t dropped_ = 0;
};

// The same code and message; RESOURCE_EXHAUSTED and UNAVAILABLE get RetryInfo (with the delay that
// the engine's refusal states, else a second), and ErrorInfo with `reason` (UPPER_SNAKE_CASE;
// empty: the refusal's, else the code's name). OK stays OK.
google::rpc::Status ToRpcStatus(const absl::Status& status, std::string_view reason = "");

// The longest beginning of `text` that has at most `max_bytes` and splits no UTF-8 character.
std::string CutText(std::string text, size_t max_bytes);

// A client's value for an error message: quoted, at most `max_bytes` of it, everything but
// printable ASCII escaped.
std::string Shown(std::string_view value, size_t max_bytes = 48);

}  // namespace pergola
