// TCP addresses as flags state them: "host:port", "[::1]:port". Resolving and trying them before
// gRPC does, because its errors name neither the reason nor the address.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pergola {

struct Address {
  std::string host;  // without brackets
  int port = 0;      // 0: any free port
};

// INVALID_ARGUMENT naming the text and what is wrong with it.
absl::StatusOr<Address> ParseAddress(std::string_view text);

// "host:port", with brackets around an IPv6 host.
std::string FormatAddress(const Address& address);

// Whether every address that the host name stands for is a loopback one. UNAVAILABLE if it cannot
// be resolved.
absl::StatusOr<bool> IsLoopback(const Address& address);

// OK if the address can be bound at this moment; else UNAVAILABLE with the system's reason
// ("Address already in use").
absl::Status CheckBindable(const Address& address);

}  // namespace pergola
