// What AddressSanitizer must be told of fibers and of memory that only seems to be there. Nothing
// in other builds.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
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

}  // namespace pergola::emulator
