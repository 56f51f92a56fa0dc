// Watches a coordinator from a thread of its own: how far loading is, the moment from which a token
// passes all ranks of some group, and which groups are attached. The supervisor reads its findings;
// it decides nothing.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "pergola/v1/admin.pb.h"

namespace grpc {
class ClientContext;
}

namespace pergola {

class AdminClient;

class GroupMonitor {
 public:
  struct View {
    // A Generate of one token through the public listener has succeeded, or need not be tried.
    bool ready = false;
    v1::StatusResponse status;  // the last one; empty before
    std::string probe_error;    // of the last probe that failed
  };

  // `probe`: whether to try if a token passes.
  GroupMonitor(const std::string& public_address, const std::string& internal_address,
               const std::string& token, bool probe);
  ~GroupMonitor();  // cancels what runs and waits for the thread
  GroupMonitor(const GroupMonitor&) = delete;
  GroupMonitor& operator=(const GroupMonitor&) = delete;

  View Look() const;

 private:
  void Run(bool probe);
  bool Probe();
  bool SleepUnlessStopping(std::chrono::milliseconds duration);

  const std::string public_address_;
  const std::unique_ptr<AdminClient> admin_;
  mutable Mutex mutex_;
  CondVar stopped_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  View view_ GUARDED_BY(mutex_);
  std::shared_ptr<grpc::ClientContext> probe_ GUARDED_BY(mutex_);  // second owner: Probe()
  std::thread thread_;
};

}  // namespace pergola
