// The coordinator's listeners and what stands behind them: the public one (Generation, health,
// reflection), the internal one (Worker, Admin) and, if asked for, HTTP (metrics, health). Not for
// flags, signals or files (main.cc).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/doors/held_results.h"
#include "coordinator/doors/request_builder.h"
#include "coordinator/engine/engine.h"

namespace pergola {

struct ServerOptions {
  std::string listen = "127.0.0.1:8080";
  std::string internal_listen = "127.0.0.1:0";
  std::string http_listen;              // empty: no HTTP
  std::string join_token;               // empty: only on loopback, and everybody may attach
  uint32_t text_threads = 1;            // parse and tokenize
  uint32_t max_text_jobs = 1024;        // requests waiting for them; beyond: RESOURCE_EXHAUSTED
  uint64_t max_text_bytes = 256 << 20;  // of those requests
  uint32_t max_calls = 4096;  // Generate and GenerateBatch in progress; beyond: RESOURCE_EXHAUSTED
  uint64_t max_held_result_bytes = kMaxHeldResultBytes;  // of GenerateBatch and best_of
  uint32_t max_streams = 4096;                           // HTTP/2 streams per connection
  int64_t slow_reader_timeout_ms = 30'000;               // a client that takes nothing for so long:
                                                         // RESOURCE_EXHAUSTED
};

class CoordinatorServer {
 public:
  // Binds the listeners and serves. `model` and `engine` are borrowed and must outlive the server.
  // `on_drained` runs after an Admin.Drain was answered, on some gRPC thread. Errors: one line
  // naming address and reason.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const ServerOptions& options,
                                                                  ServedModel model, Engine* engine,
                                                                  std::function<void()> on_drained);
  ~CoordinatorServer();  // Shutdown(0)

  // As bound, "host:port".
  const std::string& public_address() const;
  const std::string& internal_address() const;
  const std::string& http_address() const;  // empty: none

  // Refuses new calls, gives those in progress `grace` to end, cancels the rest. The engine must
  // still run. Idempotent.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  class Impl;
  explicit CoordinatorServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pergola
