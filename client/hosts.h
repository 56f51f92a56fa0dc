// The machines of a group, as --hosts names them, and how stages are spread over them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pergola {

struct Host {
  std::string name;
  int slots = 0;  // most ranks it takes
};

inline constexpr int kMaxHosts = 4096;
inline constexpr int kMaxSlotsPerHost = 1024;
inline constexpr int kMaxRanks = 65536;

// "a:8,b:8". INVALID_ARGUMENT naming the part that is wrong, or a name that comes twice. Empty
// text: no hosts.
absl::StatusOr<std::vector<Host>> ParseHosts(const std::string& text);

// Ranks on each host, so that consecutive stages lie on one host and all hosts hold equally many.
// INVALID_ARGUMENT with numbers if PP is not a multiple of the number of hosts or a host has too
// few slots.
absl::StatusOr<int> RanksPerHost(const std::vector<Host>& hosts, int tensor_parallel,
                                 int pipeline_parallel);

// Whether `name` is this machine.
bool IsLocalHost(const std::string& name, const std::string& own_host_name);

// This machine's address on the route to `host`, numeric. NOT_FOUND if the name does not resolve or
// nothing leads there. Sends nothing.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& host);

// Splits "host:port" or "[v6]:port". INVALID_ARGUMENT naming what is wrong.
struct HostPort {
  std::string host;
  int port = 0;
};
absl::StatusOr<HostPort> ParseHostPort(const std::string& address);
// "host:port", with brackets around a numeric IPv6 host.
std::string JoinHostPort(const std::string& host, int port);

// Whether a client can dial `address`: HOST:PORT with a port of 1 to 65535 (INVALID_ARGUMENT) and a
// host that resolves (NOT_FOUND); so a mistake is told at once, not when a timeout has passed.
// `source` is where the address stands, "--connect", and begins the message. Asks the resolver.
absl::Status CheckDialable(const std::string& source, const std::string& address);

// What a client on this machine dials to reach a listener bound to `address`: the loopback in place
// of "any".
std::string DialAddress(const std::string& address);

}  // namespace pergola
