// Failures that tests ask for.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "base/check.h"
#include "base/mutex.h"
#include "kernels/cuda/emulator/peers.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {
namespace {

// In the order of FailingCall; CUDA's own come first.
constexpr const char* kNames[] = {"launch",      "wait",    "copy", "malloc", "malloc_host",
                                  "instantiate", "product", "plan", "nccl",   "nccl_async"};
constexpr FailingCall kLastOfCuda = FailingCall::kInstantiate;

struct Failure {
  FailingCall call = FailingCall::kLaunch;
  int error = 0;  // 0: none
  int64_t passed = 0;
  int device = kAnyDevice;
};

// After these CUDA wants the process to end ("CUDA runtime API", cudaError): all calls give them.
bool Stays(int error) {
  return error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure;
}

class Failures {
 public:
  static Failures& Instance() {
    static Failures failures;
    return failures;
  }
  void Set(const Failure& failure) {
    MutexLock lock(mutex_);
    next_ = failure;
    stays_ = Failure();
  }
  int Take(FailingCall call, int device) {
    MutexLock lock(mutex_);
    ReadFile(device);
    if (stays_.error != 0 && stays_.device == device && call <= kLastOfCuda) return stays_.error;
    const bool meant = next_.error != 0 && next_.call == call &&
                       (next_.device == kAnyDevice || next_.device == device);
    if (!meant || next_.passed-- > 0) return 0;
    const int error = next_.error;
    if (call <= kLastOfCuda && Stays(error)) stays_ = {call, error, 0, device};
    next_.error = 0;
    return error;
  }

 private:
  // Takes what the file asks of this device.
  void ReadFile(int device) REQUIRES(mutex_) {
    if (path_ == nullptr || access(path_, R_OK) != 0) return;
    Failure failure;
    std::string name;
    std::ifstream file(path_);
    if (!(file >> failure.device >> name >> failure.passed >> failure.error)) return;
    if (failure.device != device) return;
    int call = 0;
    while (call < static_cast<int>(std::size(kNames)) && name != kNames[call]) ++call;
    PERGOLA_CHECK_MSG(call < static_cast<int>(std::size(kNames)), name + " is no call that fails");
    failure.call = static_cast<FailingCall>(call);
    if (unlink(path_) == 0) next_ = failure;
  }

  const char* const path_ = std::getenv("PERGOLA_EMULATED_FAILURE");
  Mutex mutex_;
  Failure next_ GUARDED_BY(mutex_);
  Failure stays_ GUARDED_BY(mutex_);
};

}  // namespace

void FailCall(FailingCall call, int error, int64_t passed, int device) {
  Failures::Instance().Set({call, error, passed, device});
}

int TakeFailure(FailingCall call) {
  return Failures::Instance().Take(call, CurrentDevice());
}

cudaError_t TakeCudaFailure(FailingCall call) {
  return Report(static_cast<cudaError_t>(TakeFailure(call)));
}

}  // namespace pergola::emulator
