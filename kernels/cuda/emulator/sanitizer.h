// What AddressSanitizer and ThreadSanitizer must be told of fibers, and of memory that only seems
// to be there. Nothing in other builds.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace pergola::emulator {

#ifdef __SANITIZE_ADDRESS__
inline void AsanPoison(const void* memory, int64_t bytes) {
  __asan_poison_memory_region(memory, static_cast<size_t>(bytes));
}
inline void AsanUnpoison(const void* memory, int64_t bytes) {
  __asan_unpoison_memory_region(memory, static_cast<size_t>(bytes));
}
inline void AsanLeaveStack(void** fake_stack, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
}
inline void AsanEnterStack(void* fake_stack, const void** left_bottom, size_t* left_size) {
  __sanitizer_finish_switch_fiber(fake_stack, left_bottom, left_size);
}
#else
inline void AsanPoison(const void* /*memory*/, int64_t /*bytes*/) {}
inline void AsanUnpoison(const void* /*memory*/, int64_t /*bytes*/) {}
inline void AsanLeaveStack(void** /*fake_stack*/, const void* /*bottom*/, size_t /*size*/) {}
inline void AsanEnterStack(void* /*fake_stack*/, const void** /*bottom*/, size_t* /*size*/) {}
#endif

#ifdef __SANITIZE_THREAD__
inline void* TsanMakeFiber() {
  return __tsan_create_fiber(0);
}
inline void* TsanThisFiber() {
  return __tsan_get_current_fiber();
}
inline void TsanDestroyFiber(void* fiber) {
  __tsan_destroy_fiber(fiber);
}
// Inlined, for the caller's frame is still the old fiber's.
__attribute__((always_inline)) inline void TsanSwitchTo(void* fiber) {
  __tsan_switch_to_fiber(fiber, 0);
}
#else
inline void* TsanMakeFiber() {
  return nullptr;
}
inline void* TsanThisFiber() {
  return nullptr;
}
inline void TsanDestroyFiber(void* /*fiber*/) {}
inline void TsanSwitchTo(void* /*fiber*/) {}
#endif

}  // namespace pergola::emulator
