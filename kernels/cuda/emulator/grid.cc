#include "kernels/cuda/emulator/grid.h"

#include <cuda_runtime.h>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/emulator/block_threads.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/fiber_switch.h"
#include "kernels/cuda/emulator/peers.h"
#include "kernels/cuda/emulator/shared_memory.h"

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace pergola::emulator {
namespace {

enum class State : uint8_t { kReady, kInWarp, kAtBarrier, kDone };

struct PendingCopy {
  void* shared;
  const void* global;  // nullptr: zeros
  int64_t group;
};

// One CUDA thread of the running block.
struct Thread {
  State state = State::kReady;
  const char* operation = nullptr;  // what it waits in
  void* request = nullptr;
  void (*compute)(void* const*) = nullptr;
  int predicate = 0;
  Fiber* fiber = nullptr;  // has its stack, once it has waited
  std::vector<PendingCopy> copies;
  int64_t committed_groups = 0;
};

struct OrderSetting {
  Order order = Order::kAscending;
  uint64_t seed = 0;
};
thread_local OrderSetting current_order;

// splitmix64 (Steele, Lea, Flood 2014).
uint64_t NextRandom(uint64_t* state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

constexpr char kAwaitPrevious[] = "AwaitPrevious";

// 0 .. count - 1 in the order that is set.
void FillOrder(std::vector<int64_t>* order, int64_t count, uint64_t* random) {
  order->resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    (*order)[static_cast<size_t>(i)] =
        current_order.order == Order::kDescending ? count - 1 - i : i;
  }
  if (current_order.order != Order::kShuffled) return;
  for (int64_t i = count - 1; i > 0; --i) {
    const auto j = static_cast<int64_t>(NextRandom(random) % static_cast<uint64_t>(i + 1));
    std::swap((*order)[static_cast<size_t>(i)], (*order)[static_cast<size_t>(j)]);
  }
}

std::string Place(int thread) {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + "), thread " + std::to_string(thread) + ": ";
}

// One per OS thread that launches. Its scheduler and the fibers take turns on that OS thread.
class Engine {
 public:
  void RunGrid(const KernelCall& call, const LaunchShape& shape,
               const std::function<void()>& previous);
  // One block of a grid whose other blocks run on other threads.
  void RunOne(const KernelCall& call, const LaunchShape& shape, int64_t block, uint64_t seed);
  int compute_capability() const { return compute_capability_; }
  Thread& current() { return threads_[static_cast<size_t>(current_)]; }
  int current_index() const { return current_; }
  bool running() const { return current_ >= 0; }
  SharedMemory& shared() { return shared_; }

  int WaitBlock(const char* operation, int predicate);
  void AwaitPrevious();
  void WaitWarp(const char* operation, void* request, void (*compute)(void* const*));

 private:
  void RunWarpOperation();
  void Begin(const KernelCall& call, const LaunchShape& shape, uint64_t seed);
  void RunBlockAt(int64_t block, const LaunchShape& shape);
  void CheckAwaited(const LaunchShape& shape, int64_t blocks);
  void RunBlock(int threads);
  void RunWarp(int warp);
  void RunLane(int thread);
  void ReleaseBarrier();
  // The loop of every fiber: runs threads that have not begun, one after the other on its stack,
  // and goes back to the scheduler when there is none.
  void WorkerLoop();
  bool TakeFreshThread();
  Thread& thread(int64_t index) { return threads_[static_cast<size_t>(index)]; }
  [[noreturn]] void Fail(int thread, const std::string& what);
  [[noreturn]] void FailBarrier(int warps);
  std::string Describe(int thread);

  KernelCall call_;
  const std::function<void()>* previous_ = nullptr;  // that has not run
  int64_t awaited_ = 0;                              // threads that called AwaitPrevious
  int compute_capability_ = 0;
  uint64_t random_ = 0;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  int current_ = -1;  // the running thread; -1 outside of a launch
  int barrier_count_ = 0;

  // The warp that runs: its first thread, how many of its lanes wait for the warp, the order of
  // this round, how far the round is.
  int64_t warp_begin_ = 0;
  int lanes_waiting_ = 0;
  std::vector<int64_t> lane_order_;
  size_t round_position_ = 0;
  bool first_round_ = false;
  std::vector<int64_t> block_order_, warp_order_;

  FiberSet fibers_{[this] { WorkerLoop(); }};
};

void Engine::Fail(int thread, const std::string& what) {
  CheckFailed(__FILE__, __LINE__, "the kernel keeps CUDA's rules", Place(thread) + what);
}

void Engine::Begin(const KernelCall& call, const LaunchShape& shape, uint64_t seed) {
  PERGOLA_CHECK_MSG(!running(), "a kernel launches a kernel");
  previous_ = nullptr;
  awaited_ = 0;
  call_ = call;
  compute_capability_ = shape.compute_capability;
  random_ = seed;
  threads_.resize(static_cast<size_t>(shape.threads));
  blockDim = {static_cast<unsigned>(shape.threads), 1, 1};
  gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
}

void Engine::RunBlockAt(int64_t block, const LaunchShape& shape) {
  const dim3& grid = shape.grid;
  const int64_t plane = int64_t{grid.x} * grid.y;
  blockIdx = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block % plane / grid.x),
              static_cast<unsigned>(block / plane)};
  shared_.Begin(shape.shared_bytes);
  RunBlock(shape.threads);
  if (shared_.WrittenBeyond()) {
    Fail(0, "some thread wrote beyond the launch's " + std::to_string(shape.shared_bytes) +
                " bytes of dynamic shared memory");
  }
}

void Engine::CheckAwaited(const LaunchShape& shape, int64_t blocks) {
  if (shape.early && awaited_ != blocks * shape.threads) {
    Fail(0,
         "it may begin before the kernel before it has ended, and not every thread calls "
         "AwaitPrevious");
  }
}

void Engine::RunGrid(const KernelCall& call, const LaunchShape& shape,
                     const std::function<void()>& previous) {
  Begin(call, shape, current_order.seed);
  previous_ = previous ? &previous : nullptr;
  const int64_t blocks = int64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  FillOrder(&block_order_, blocks, &random_);
  for (const int64_t block : block_order_) RunBlockAt(block, shape);
  CheckAwaited(shape, blocks);
  current_ = -1;
}

void Engine::RunOne(const KernelCall& call, const LaunchShape& shape, int64_t block,
                    uint64_t seed) {
  Begin(call, shape, seed);
  RunBlockAt(block, shape);
  CheckAwaited(shape, 1);
  current_ = -1;
}

void Engine::RunBlock(int threads) {
  for (Thread& t : threads_) {
    t.state = State::kReady;
    t.copies.clear();
    t.committed_groups = 0;
  }
  const int warps = threads / kLanes;
  for (bool begin = true;; begin = false) {
    FillOrder(&warp_order_, warps, &random_);
    for (const int64_t warp : warp_order_) {
      first_round_ = begin;
      RunWarp(static_cast<int>(warp));
    }
    int at_barrier = 0;
    for (const Thread& t : threads_) at_barrier += t.state == State::kAtBarrier ? 1 : 0;
    if (at_barrier == 0) return;
    if (at_barrier != threads) FailBarrier(warps);
    ReleaseBarrier();
  }
}

void Engine::ReleaseBarrier() {
  if (previous_ != nullptr && threads_[0].operation == kAwaitPrevious) {
    std::thread(*std::exchange(previous_, nullptr)).join();
  }
  barrier_count_ = 0;
  for (Thread& t : threads_) {
    if (t.operation != threads_[0].operation) FailBarrier(static_cast<int>(threads_.size()));
    barrier_count_ += t.predicate != 0 ? 1 : 0;
    t.state = State::kReady;
  }
}

// Runs a warp until all of its lanes are done or wait for the block.
void Engine::RunWarp(int warp) {
  warp_begin_ = int64_t{warp} * kLanes;
  lanes_waiting_ = 0;
  for (;; first_round_ = false) {
    FillOrder(&lane_order_, kLanes, &random_);
    bool any = false;
    for (round_position_ = 0; round_position_ < kLanes;) {
      const int64_t index = warp_begin_ + lane_order_[round_position_++];
      if (thread(index).state != State::kReady) continue;
      any = true;
      RunLane(static_cast<int>(index));
    }
    if (!any) break;
  }
  for (int64_t i = warp_begin_; i < warp_begin_ + kLanes; ++i) {
    if (thread(i).state != State::kInWarp) continue;
    for (int64_t j = warp_begin_; j < warp_begin_ + kLanes; ++j) {
      if (thread(j).state == State::kInWarp && thread(j).operation == thread(i).operation) continue;
      Fail(static_cast<int>(i), Describe(static_cast<int>(i)) + " for all lanes of its warp, but " +
                                    "thread " + std::to_string(j) + " " +
                                    Describe(static_cast<int>(j)));
    }
  }
}

std::string Engine::Describe(int index) {
  const Thread& t = thread(index);
  if (t.state == State::kDone) return "has returned";
  return std::string("waits in ") + t.operation;
}

void Engine::FailBarrier(int warps) {
  // The first thread that waits, and the first that does something else.
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (threads_[i].state != State::kAtBarrier) continue;
    for (size_t j = 0; j < threads_.size(); ++j) {
      if (threads_[j].state == State::kAtBarrier &&
          threads_[j].operation == threads_[i].operation) {
        continue;
      }
      Fail(static_cast<int>(i), Describe(static_cast<int>(i)) + " for all threads of its block, " +
                                    "but thread " + std::to_string(j) + " " +
                                    Describe(static_cast<int>(j)));
    }
  }
  Fail(0, "a barrier among " + std::to_string(warps) + " warps failed");
}

void Engine::RunLane(int index) {
  current_ = index;
  Thread& t = thread(index);
  threadIdx = {static_cast<unsigned>(index), 0, 0};
  Fiber* fiber = t.fiber;
  t.fiber = nullptr;
  if (fiber == nullptr) fiber = fibers_.Take();
  fibers_.Resume(fiber);
  // The fiber may have gone on to further threads: current_ is the one that waits now, if any does.
  if (current().state == State::kDone) {
    fibers_.GiveBack(fiber);
  } else {
    current().fiber = fiber;
  }
}

void Engine::WorkerLoop() {
  do {
    call_.body(call_.argument);
    current().state = State::kDone;
  } while (TakeFreshThread());
}

// In the first round of a warp nothing but fresh threads runs, in the order of the round.
bool Engine::TakeFreshThread() {
  if (!first_round_ || round_position_ == kLanes) return false;
  current_ = static_cast<int>(warp_begin_ + lane_order_[round_position_++]);
  threadIdx = {static_cast<unsigned>(current_), 0, 0};
  return true;
}

int Engine::WaitBlock(const char* operation, int predicate) {
  Thread& t = current();
  t.state = State::kAtBarrier;
  t.operation = operation;
  t.predicate = predicate;
  fibers_.Yield();
  return barrier_count_;
}

void Engine::AwaitPrevious() {
  ++awaited_;
  if (previous_ != nullptr) WaitBlock(kAwaitPrevious, 0);
}

void Engine::WaitWarp(const char* operation, void* request, void (*compute)(void* const*)) {
  Thread& t = current();
  t.state = State::kInWarp;
  t.operation = operation;
  t.request = request;
  t.compute = compute;
  if (++lanes_waiting_ == kLanes) RunWarpOperation();
  fibers_.Yield();
}

// If all lanes wait for the same.
void Engine::RunWarpOperation() {
  const Thread& first = thread(warp_begin_);
  void* requests[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const Thread& lane = thread(warp_begin_ + i);
    if (lane.operation != first.operation || lane.compute != first.compute) return;
    requests[i] = lane.request;
  }
  first.compute(requests);
  for (int i = 0; i < kLanes; ++i) thread(warp_begin_ + i).state = State::kReady;
  lanes_waiting_ = 0;
}

// CUDA C++ programming guide, table "Technical specifications per compute capability": maximum
// amount of shared memory per thread block.
int64_t MaxSharedBytes(int compute_capability) {
  if (compute_capability < 80) return 64 << 10;
  if (compute_capability == 86 || compute_capability == 89) return 99 << 10;
  return compute_capability < 90 ? 163 << 10 : kMaxDynamicSharedBytes;
}

Engine& ThisEngine() {
  static thread_local Engine engine;
  return engine;
}

BlockThreads& ThisBlockThreads() {
  static thread_local BlockThreads threads;
  return threads;
}

Engine& RunningEngine() {
  Engine& engine = ThisEngine();
  PERGOLA_CHECK_MSG(engine.running(), "a device function is called outside of a kernel");
  return engine;
}

}  // namespace

void SetOrder(Order order, uint64_t seed) {
  current_order = {order, seed};
}

void CheckLaunch(const LaunchShape& shape) {
  const dim3& grid = shape.grid;
  const int threads = shape.threads;
  const std::string text = std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                           std::to_string(grid.z) + " blocks of " + std::to_string(threads) +
                           " threads";
  PERGOLA_CHECK_MSG(grid.x >= 1 && grid.y >= 1 && grid.z >= 1, text);
  PERGOLA_CHECK_MSG(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, text);
  PERGOLA_CHECK_MSG(threads >= 1 && threads <= kMaxThreads, text);
  PERGOLA_CHECK_MSG(threads % kLanes == 0, text + ": not whole warps");
  const int64_t limit = MaxSharedBytes(shape.compute_capability);
  PERGOLA_CHECK_MSG(shape.shared_bytes >= 0 && shape.shared_bytes <= limit,
                    std::to_string(shape.shared_bytes) + " bytes of dynamic shared memory, " +
                        std::to_string(limit) + " are the limit");
}

void RunGrid(const KernelCall& call, const LaunchShape& shape,
             const std::function<void()>& previous) {
  ThisEngine().RunGrid(call, shape, previous);
}

void RunResidentGrid(const KernelCall& call, const LaunchShape& shape,
                     const std::function<void()>& previous) {
  if (previous) previous();
  uint64_t random = current_order.seed;
  std::vector<int64_t> order;
  FillOrder(&order, shape.grid.x, &random);
  const OrderSetting setting = current_order;
  const int device = CurrentDevice();
  ThisBlockThreads().Run(order, [&](int64_t block) {
    current_order = setting;
    SetCurrentDevice(device);
    ThisEngine().RunOne(call, shape, block, setting.seed + static_cast<uint64_t>(block));
  });
}

void RequireCapability(const char* operation, int capability) {
  const int own = RunningEngine().compute_capability();
  if (own >= capability) return;
  KernelError((std::string(operation) + " below sm_" + std::to_string(capability) + ", on sm_" +
               std::to_string(own))
                  .c_str());
}

void KernelError(const char* what) {
  CheckFailed(__FILE__, __LINE__, "the kernel keeps CUDA's rules",
              Place(RunningEngine().current_index()) + what);
}

void AwaitPreviousKernel() {
  RunningEngine().AwaitPrevious();
}

int BlockBarrier(const char* operation, int predicate) {
  return RunningEngine().WaitBlock(operation, predicate);
}

void WarpCollective(const char* operation, void* request, void (*compute)(void* const*)) {
  RunningEngine().WaitWarp(operation, request, compute);
}

void* DynamicSharedMemory() {
  return RunningEngine().shared().data();
}

void CheckAccess(const char* operation, const void* pointer, int64_t bytes, int64_t alignment) {
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(alignment) != 0) {
    KernelError((std::string(operation) + " at an address that is no multiple of " +
                 std::to_string(alignment))
                    .c_str());
  }
  if (RunningEngine().shared().Beyond(pointer, bytes)) {
    KernelError((std::string(operation) + " beyond the launch's dynamic shared memory").c_str());
  }
}

void CopyAsync(void* shared, const void* global, bool valid) {
  CheckAccess("CopyAsync16 (shared)", shared, 16, 16);
  if (valid) CheckAccess("CopyAsync16 (global)", global, 16, 16);
  Thread& t = RunningEngine().current();
  t.copies.push_back({shared, valid ? global : nullptr, t.committed_groups});
  std::memset(shared, 0xff, 16);
}

void CopyAsyncCommitGroup() {
  ++RunningEngine().current().committed_groups;
}

void CopyAsyncWaitGroup(int pending) {
  Thread& t = RunningEngine().current();
  size_t landed = 0;
  while (landed < t.copies.size() &&
         t.copies[landed].group < t.committed_groups - int64_t{pending}) {
    const PendingCopy& copy = t.copies[landed++];
    if (copy.global == nullptr) {
      std::memset(copy.shared, 0, 16);
    } else {
      std::memcpy(copy.shared, copy.global, 16);
    }
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<int64_t>(landed));
}

}  // namespace pergola::emulator
