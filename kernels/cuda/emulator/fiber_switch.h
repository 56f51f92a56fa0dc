// Stacks to switch between: the scheduler's, which is the OS thread's own, and any number of
// fibers, all of one OS thread.
#pragma once

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/emulator/sanitizer.h"

namespace pergola::emulator {

struct Fiber {
  boost::context::fiber suspended;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
};

class FiberSet {
 public:
  // Each fiber calls `run` when it is resumed after Take, and again after GiveBack and Take.
  explicit FiberSet(std::function<void()> run) : run_(std::move(run)) {}
  FiberSet(const FiberSet&) = delete;
  FiberSet& operator=(const FiberSet&) = delete;
  ~FiberSet() {
    stopping_ = true;
    for (const auto& fiber : all_) Resume(fiber.get());
  }

  // A fiber that does nothing now.
  Fiber* Take() {
    if (idle_.empty()) idle_.push_back(Make());
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }
  void GiveBack(Fiber* fiber) { idle_.push_back(fiber); }

  // From the scheduler: returns when the fiber yields or `run` returns.
  void Resume(Fiber* fiber) {
    void* fake_stack = nullptr;
    running_ = fiber;
    AsanLeaveStack(&fake_stack, fiber->stack_bottom, fiber->stack_bytes);
    fiber->suspended = std::move(fiber->suspended).resume();
    AsanEnterStack(fake_stack, nullptr, nullptr);
  }
  // From a fiber: back to the scheduler until the next Resume of this fiber.
  void Yield() {
    Fiber* self = running_;
    AsanLeaveStack(&self->asan_fake_stack, scheduler_bottom_, scheduler_bytes_);
    scheduler_ = std::move(scheduler_).resume();
    AsanEnterStack(self->asan_fake_stack, &scheduler_bottom_, &scheduler_bytes_);
  }

 private:
  // Kernels keep little on the stack, but AddressSanitizer widens their frames.
  static constexpr size_t kStackBytes = 256 << 10;
  static constexpr size_t kStackShift = 576;  // 9 cache lines
  static constexpr size_t kLargestShift = 64 << 10;

  Fiber* Make() {
    boost::context::protected_fixedsize_stack allocator(kStackBytes);
    const boost::context::stack_context stack = allocator.allocate();
    all_.push_back(std::make_unique<Fiber>());
    Fiber* fiber = all_.back().get();
    // Not all tops at the same place of a page, or they fight for the same lines of the caches: a
    // block of 1024 threads then takes five times as long.
    const size_t skip = all_.size() * kStackShift % kLargestShift;
    char* top = static_cast<char*>(stack.sp) - skip;
    fiber->stack_bytes = stack.size - skip;
    fiber->stack_bottom = top - fiber->stack_bytes;
    fiber->suspended = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(top, fiber->stack_bytes, stack), allocator,
        [this](boost::context::fiber&& scheduler) {
          scheduler_ = std::move(scheduler);
          AsanEnterStack(nullptr, &scheduler_bottom_, &scheduler_bytes_);
          while (!stopping_) {
            run_();
            Yield();
          }
          AsanLeaveStack(nullptr, scheduler_bottom_, scheduler_bytes_);
          return std::move(scheduler_);
        });
    return fiber;
  }

  std::function<void()> run_;
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> idle_;
  boost::context::fiber scheduler_;
  Fiber* running_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
  bool stopping_ = false;
};

}  // namespace pergola::emulator
