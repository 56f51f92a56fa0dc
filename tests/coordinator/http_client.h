// A plain socket that speaks to an HTTP server, bytes in and bytes out, with a deadline.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>

namespace pergola {

class HttpClient {
 public:
  explicit HttpClient(const std::string& address) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port =
        htons(static_cast<uint16_t>(atoi(address.substr(address.rfind(':') + 1).c_str())));
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval limit{10, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  }
  ~HttpClient() { close(fd_); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // What the server has closed takes no more; that is no failure of the test.
  void Send(const std::string& bytes) const {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (count <= 0) return;
      done += static_cast<size_t>(count);
    }
  }

  // One response: header and Content-Length bytes of body. What came before the connection ended
  // if it ended first.
  std::string Response() {
    while (true) {
      const size_t end = pending_.find("\r\n\r\n");
      if (end != std::string::npos) {
        const size_t field = pending_.find("Content-Length: ");
        const size_t length = field < end ? strtoul(&pending_[field + 16], nullptr, 10) : 0;
        if (pending_.size() >= end + 4 + length) {
          std::string response = pending_.substr(0, end + 4 + length);
          pending_.erase(0, end + 4 + length);
          return response;
        }
      }
      if (!More()) return std::exchange(pending_, std::string());
    }
  }

  // Whether the server ends the connection (within 10 s), whatever it sends before.
  bool Ends() {
    while (More()) {
    }
    return ended_;
  }

 private:
  bool More() {
    char bytes[4096];
    const ssize_t count = recv(fd_, bytes, sizeof(bytes), 0);
    if (count > 0) pending_.append(bytes, static_cast<size_t>(count));
    ended_ = count == 0 || (count < 0 && errno == ECONNRESET);
    return count > 0;
  }

  int fd_;
  std::string pending_;
  bool ended_ = false;
};

inline std::string GetRequest(const std::string& path) {
  return "GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n";
}

// One request on a connection of its own.
inline std::string HttpGet(const std::string& address, const std::string& path) {
  HttpClient client(address);
  client.Send(GetRequest(path));
  return client.Response();
}

inline std::string BodyOf(const std::string& response) {
  const size_t end = response.find("\r\n\r\n");
  return end == std::string::npos ? "" : response.substr(end + 4);
}

}  // namespace pergola
