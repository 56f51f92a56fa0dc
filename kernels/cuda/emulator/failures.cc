// Failures that tests ask for.
#include "base/mutex.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {
namespace {

struct Failure {
  Mutex mutex;
  cudaError_t error GUARDED_BY(mutex) = cudaSuccess;
  Call call GUARDED_BY(mutex) = Call::kLaunch;
  int64_t passed GUARDED_BY(mutex) = 0;
  static Failure& Instance() {
    static Failure failure;
    return failure;
  }
};

}  // namespace

void FailCall(Call call, int error, int64_t passed) {
  Failure& failure = Failure::Instance();
  MutexLock lock(failure.mutex);
  failure.call = call;
  failure.error = static_cast<cudaError_t>(error);
  failure.passed = passed;
}

cudaError_t TakeFailure(Call call) {
  Failure& failure = Failure::Instance();
  MutexLock lock(failure.mutex);
  if (failure.error == cudaSuccess || failure.call != call || failure.passed-- > 0) {
    return cudaSuccess;
  }
  const cudaError_t error = failure.error;
  failure.error = cudaSuccess;
  return Report(error);
}

}  // namespace pergola::emulator
