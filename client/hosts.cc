#include "client/hosts.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace pergola {
namespace {

bool ValidHostName(const std::string& name) {
  if (name.empty() || name.size() > 253 || name.front() == '-') return false;
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    if (!letter && !digit && c != '.' && c != '-' && c != '_') return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::vector<Host>> ParseHosts(const std::string& text) {
  std::vector<Host> hosts;
  if (text.empty()) return hosts;
  std::set<std::string> seen;
  for (const auto part_view : absl::StrSplit(ToAbsl(text), ',')) {
    const std::string part(part_view.data(), part_view.size());
    const size_t colon = part.rfind(':');
    Host host;
    host.name = part.substr(0, colon);
    if (colon == std::string::npos || !ValidHostName(host.name) ||
        !absl::SimpleAtoi(ToAbsl(part.substr(colon + 1)), &host.slots) || host.slots < 1 ||
        host.slots > kMaxSlotsPerHost) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--hosts: '", part, "' is not NAME:SLOTS with 1 to ", kMaxSlotsPerHost, " slots"));
    }
    if (!seen.insert(host.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("--hosts: '", host.name, "' comes twice"));
    }
    hosts.push_back(host);
  }
  if (hosts.size() > static_cast<size_t>(kMaxHosts)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--hosts: ", hosts.size(), " hosts are more than ", kMaxHosts));
  }
  return hosts;
}

absl::StatusOr<int> RanksPerHost(const std::vector<Host>& hosts, int tensor_parallel,
                                 int pipeline_parallel) {
  const int host_count = static_cast<int>(hosts.size());
  if (host_count == 0) return tensor_parallel * pipeline_parallel;
  if (pipeline_parallel % host_count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--pp ", pipeline_parallel, " is not a multiple of the ", host_count,
                     " hosts; each host takes equally many whole stages"));
  }
  const int stages = pipeline_parallel / host_count;
  const int ranks = stages * tensor_parallel;
  for (const Host& host : hosts) {
    if (ranks > host.slots) {
      return absl::InvalidArgumentError(absl::StrCat("host ", host.name, " has ", host.slots,
                                                     " slots, but takes ", stages, " stages x ",
                                                     tensor_parallel, " ranks = ", ranks));
    }
  }
  return ranks;
}

bool IsLocalHost(const std::string& name, const std::string& own_host_name) {
  if (name == "localhost" || name == own_host_name) return true;
  // "node1" and "node1.cluster.example" are one machine as far as its own name tells.
  const std::string short_own = own_host_name.substr(0, own_host_name.find('.'));
  if (!short_own.empty() && name == short_own) return true;
  return name.rfind("127.", 0) == 0;
}

absl::StatusOr<std::string> LocalAddressTowards(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  // Any port serves: connecting a datagram socket only asks the kernel for a route.
  const int failed = getaddrinfo(host.c_str(), "9", &hints, &found);
  if (failed != 0) {
    return absl::NotFoundError(absl::StrCat(
        "host '", host, "' does not resolve: ", gai_strerror(failed), "; give --internal-listen"));
  }
  std::string address;
  std::string reason = "no address";
  for (const addrinfo* entry = found; entry != nullptr && address.empty(); entry = entry->ai_next) {
    const int fd = socket(entry->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own = {};
    socklen_t own_size = sizeof(own);
    auto* own_address = reinterpret_cast<sockaddr*>(&own);
    char text[NI_MAXHOST] = {};
    if (fd >= 0 && connect(fd, entry->ai_addr, entry->ai_addrlen) == 0 &&
        getsockname(fd, own_address, &own_size) == 0 &&
        getnameinfo(own_address, own_size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0) {
      address = text;
    } else {
      reason = strerror(errno);
    }
    if (fd >= 0) close(fd);
  }
  freeaddrinfo(found);
  if (address.empty()) {
    return absl::NotFoundError(
        absl::StrCat("no route to host '", host, "': ", reason, "; give --internal-listen"));
  }
  return address;
}

absl::StatusOr<HostPort> ParseHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  HostPort result;
  if (colon != std::string::npos) result.host = address.substr(0, colon);
  const bool bracketed =
      result.host.size() > 2 && result.host.front() == '[' && result.host.back() == ']';
  if (bracketed) result.host = result.host.substr(1, result.host.size() - 2);
  const bool plain = !bracketed && ValidHostName(result.host);
  in6_addr ignored;
  const bool numeric6 = bracketed && inet_pton(AF_INET6, result.host.c_str(), &ignored) == 1;
  const std::string port = address.substr(colon + 1);
  // SimpleAtoi alone would also take a sign and white space.
  const bool digits = !port.empty() && port.find_first_not_of("0123456789") == std::string::npos;
  if ((!plain && !numeric6) || !digits || !absl::SimpleAtoi(ToAbsl(port), &result.port) ||
      result.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not HOST:PORT with a port of 0 to 65535"));
  }
  return result;
}

std::string JoinHostPort(const std::string& host, int port) {
  if (host.find(':') != std::string::npos) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::Status CheckDialable(const std::string& source, const std::string& address) {
  const absl::StatusOr<HostPort> parts = ParseHostPort(address);
  if (!parts.ok() || parts->port == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, " ", address, ": must be HOST:PORT with a port of 1 to 65535"));
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(parts->host.c_str(), nullptr, &hints, &found);
  if (failed != 0) {
    return absl::NotFoundError(absl::StrCat(source, " ", address, ": host '", parts->host,
                                            "' does not resolve: ", gai_strerror(failed)));
  }
  freeaddrinfo(found);
  return absl::OkStatus();
}

std::string DialAddress(const std::string& address) {
  const absl::StatusOr<HostPort> parts = ParseHostPort(address);
  if (!parts.ok()) return address;
  if (parts->host == "0.0.0.0") return JoinHostPort("127.0.0.1", parts->port);
  if (parts->host == "::") return JoinHostPort("::1", parts->port);
  return address;
}

}  // namespace pergola
