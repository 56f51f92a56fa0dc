#include "coordinator/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace pergola {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<AddressList> Resolve(const Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot resolve host '", address.host, "': ", gai_strerror(error)));
  }
  return AddressList(found, &freeaddrinfo);
}

bool IsLoopback(const addrinfo& info) {
  if (info.ai_family == AF_INET) {
    const auto* in = reinterpret_cast<const sockaddr_in*>(info.ai_addr);
    return (ntohl(in->sin_addr.s_addr) >> 24) == 127;
  }
  if (info.ai_family == AF_INET6) {
    const auto* in = reinterpret_cast<const sockaddr_in6*>(info.ai_addr);
    return IN6_IS_ADDR_LOOPBACK(&in->sin6_addr) != 0;
  }
  return false;
}

}  // namespace

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ToAbsl(text), "' is no address (HOST:PORT): ", ToAbsl(why)));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return bad("the port is missing");
  Address address;
  std::string_view host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad("an IPv6 host stands in brackets");
  }
  if (host.empty()) return bad("the host is missing");
  address.host = std::string(host);
  const std::string_view port = text.substr(colon + 1);
  if (!absl::SimpleAtoi(ToAbsl(port), &address.port) || address.port < 0 || address.port > 65535) {
    return bad("the port is not in 0 to 65535");
  }
  return address;
}

std::string FormatAddress(const Address& address) {
  const bool brackets = address.host.find(':') != std::string::npos;
  return brackets ? absl::StrCat("[", address.host, "]:", address.port)
                  : absl::StrCat(address.host, ":", address.port);
}

absl::StatusOr<bool> IsLoopback(const Address& address) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
    if (!IsLoopback(*info)) return false;
  }
  return true;
}

absl::Status CheckBindable(const Address& address) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
    const int fd = socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    if (fd < 0) continue;  // for instance no IPv6 on this machine; gRPC leaves it out as well
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    const int error = bind(fd, info->ai_addr, info->ai_addrlen) == 0 ? 0 : errno;
    close(fd);
    if (error != 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", FormatAddress(address), ": ", strerror(error)));
    }
  }
  return absl::OkStatus();
}

}  // namespace pergola
