// A small HTTP/1.1 server for operators' pages: one thread, asynchronous, everything bounded (so
// many connections, header and body bytes, time to send a request, to answer, to take the answer).
// Not a door for generation, no TLS. The routes are given at the start: see operator_routes.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/address.h"

namespace pergola {

struct HttpRequest {
  std::string method;
  std::string path;   // before the '?'
  std::string query;  // after it
  std::string body;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// Answers one request: call it once, on any thread; it does not block. The response is made on the
// server's thread. Calls after the first, or after the server has given up on the request, do
// nothing.
using HttpAnswer = std::function<void(std::function<HttpResponse()> make)>;

struct HttpRoute {
  std::string method;
  std::string path;
  // Runs on the server's thread and must not block.
  std::function<void(const HttpRequest& request, HttpAnswer answer)> handler;
};

struct HttpOptions {
  Address listen;
  uint32_t max_connections = 64;      // beyond: 503 and the end of the connection
  uint32_t max_header_bytes = 8192;   // beyond: 431
  uint32_t max_body_bytes = 65'536;   // beyond: 413
  int64_t read_timeout_ms = 10'000;   // for a whole request, also for the next one to begin
  int64_t answer_timeout_ms = 5'000;  // beyond: 503
  int64_t write_timeout_ms = 10'000;  // a client that takes its answer slower is cut off
};

class HttpServer {
 public:
  // Binds and serves. Errors: one line naming address and reason.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options,
                                                           std::vector<HttpRoute> routes);
  ~HttpServer();  // Stop()

  const std::string& address() const;  // as bound, "host:port"

  // Cuts every connection and joins the thread. Idempotent; not on the server's thread.
  void Stop();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pergola
