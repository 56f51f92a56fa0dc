#include "kernels/tensor.h"

#include <sys/mman.h>

#include <cstring>
#include <string>

namespace pergola {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

uint8_t* AllocateHostMemory(int64_t bytes) {
  PERGOLA_CHECK(bytes >= 0);
  if (bytes == 0) return nullptr;
  // Weights are streamed once per step: with 4 KiB pages the page walks cost a good part of the
  // bandwidth.
  const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
  PERGOLA_CHECK_MSG(memory != nullptr, "no memory for " + std::to_string(bytes) + " bytes");
  if (alignment == kHugePage) (void)madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);
  std::memset(memory, 0, static_cast<size_t>(rounded));
  return static_cast<uint8_t*>(memory);
}

HostBuffer::HostBuffer(int64_t bytes) : size_(bytes) {
  if (bytes < 2 * kHugePage) {
    data_ = {AllocateHostMemory(bytes), Free{0}};
    return;
  }
  // Mapped a huge page too long, and cut to begin on one.
  const auto rounded = static_cast<size_t>((bytes + kHugePage - 1) / kHugePage * kHugePage);
  constexpr auto kSlack = static_cast<size_t>(kHugePage);
  void* mapped =
      mmap(nullptr, rounded + kSlack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PERGOLA_CHECK_MSG(mapped != MAP_FAILED, "no memory for " + std::to_string(bytes) + " bytes");
  auto* first = static_cast<uint8_t*>(mapped);
  const size_t before = (kSlack - reinterpret_cast<uintptr_t>(first) % kSlack) % kSlack;
  if (before > 0) (void)munmap(first, before);
  (void)munmap(first + before + rounded, kSlack - before);
  (void)madvise(first + before, rounded, MADV_HUGEPAGE);
  data_ = {first + before, Free{rounded}};
}

void HostBuffer::Free::operator()(uint8_t* p) const {
  if (mapped > 0) {
    (void)munmap(p, mapped);
  } else {
    std::free(p);
  }
}

}  // namespace pergola
