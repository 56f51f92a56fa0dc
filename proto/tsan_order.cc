// Part of every program that links gRPC in the thread-sanitizer build, and of no other build. gRPC
// hands work from thread to thread under absl::Mutex and in its own lock-free queues, all in
// Debian's libraries, which the sanitizer does not see (DESIGN section 10): every reactor would
// look like a race. These definitions take the place of the libraries' functions and tell the
// sanitizer that what was done before a lock was released, or before operations were handed to
// gRPC, is seen by whoever takes a lock or gRPC's work next. That is more order than there is, so a
// race between two gRPC callbacks may stay hidden; one between threads of ours does not.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <cerrno>

#include "absl/synchronization/mutex.h"

namespace {

char order;

template <typename Function>
Function Original(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

using MutexCall = void (*)(absl::Mutex*);

// gRPC reads errno after taking locks; dlsym may change it.
class KeepErrno {
 public:
  ~KeepErrno() { errno = value_; }

 private:
  const int value_ = errno;
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  const KeepErrno keep;
  static const auto original = Original<MutexCall>("_ZN4absl7debian35Mutex4LockEv");
  original(this);
  __tsan_acquire(&order);
}

void Mutex::Unlock() {
  const KeepErrno keep;
  static const auto original = Original<MutexCall>("_ZN4absl7debian35Mutex6UnlockEv");
  __tsan_release(&order);
  original(this);
}

bool Mutex::TryLock() {
  const KeepErrno keep;
  static const auto original = Original<bool (*)(Mutex*)>("_ZN4absl7debian35Mutex7TryLockEv");
  const bool locked = original(this);
  if (locked) __tsan_acquire(&order);
  return locked;
}

void CondVar::Wait(Mutex* mutex) {
  static const auto original =
      Original<void (*)(CondVar*, Mutex*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  __tsan_release(&order);
  original(this, mutex);
  __tsan_acquire(&order);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto original = Original<bool (*)(CondVar*, Mutex*, Duration)>(
      "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(&order);
  const bool timed_out = original(this, mutex, timeout);
  __tsan_acquire(&order);
  return timed_out;
}

ABSL_NAMESPACE_END
}  // namespace absl

extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops,
                                                 size_t op_count, void* tag, void* reserved) {
  const KeepErrno keep;
  static const auto original = Original<decltype(&grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(&order);
  return original(call, ops, op_count, tag, reserved);
}

// grpc_core::ExecCtx::Flush(), which no installed header declares: work that gRPC queued for this
// thread is taken here, and callbacks run after it.
bool FlushExecCtx(void* context) asm("_ZN9grpc_core7ExecCtx5FlushEv");

bool FlushExecCtx(void* context) {
  const KeepErrno keep;
  static const auto original = Original<bool (*)(void*)>("_ZN9grpc_core7ExecCtx5FlushEv");
  const bool did_something = original(context);
  __tsan_acquire(&order);
  return did_something;
}

// What is left: the libraries' own memory, a shared absl::Status, whose references the library
// counts, and the end of a call, which gRPC counts down to with an atomic that it holds.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the name that the sanitizer looks for.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libgrpc.so\n"
         "called_from_lib:libgrpc++.so\n"
         "called_from_lib:libgrpc++_reflection.so\n"
         "called_from_lib:libgpr.so\n"
         "called_from_lib:libupb.so\n"
         "called_from_lib:libprotobuf.so\n"
         "called_from_lib:libabsl_synchronization.so\n"
         "called_from_lib:libabsl_graphcycles_internal.so\n"
         "called_from_lib:libabsl_status.so\n"
         "called_from_lib:libabsl_cord.so\n"
         "called_from_lib:libabsl_time_zone.so\n"
         "race:absl::debian3::Status::Unref\n"
         "race:grpc::internal::Callback*::CallOnDone\n"
         "race:grpc::internal::CallbackBidiHandler*::~ServerCallbackReaderWriterImpl\n";
}
