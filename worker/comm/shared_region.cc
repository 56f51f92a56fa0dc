#include "worker/comm/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr size_t kAlignment = 4096;

absl::Status SystemError(const char* call, const std::string& name, int64_t bytes, int error) {
  return absl::ResourceExhaustedError(absl::StrCat(call, " of shared memory ", name, ", ", bytes,
                                                   " bytes: ", std::strerror(error),
                                                   " (is /dev/shm large enough?)"));
}

absl::StatusOr<uint8_t*> Map(int fd, const std::string& name, int64_t bytes) {
  const int flags = fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) return SystemError("mmap", name, bytes, errno);
  return static_cast<uint8_t*>(data);
}

}  // namespace

std::shared_ptr<SharedRegion> SharedRegion::OnHeap(int64_t bytes) {
  const size_t rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  auto* data = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
  PERGOLA_CHECK(data != nullptr);
  std::memset(data, 0, rounded);
  return std::shared_ptr<SharedRegion>(new SharedRegion(data, bytes, false));
}

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::MapAnonymous(int64_t bytes) {
  ASSIGN_OR_RETURN(uint8_t * data, Map(-1, "(anonymous)", bytes));
  return std::shared_ptr<SharedRegion>(new SharedRegion(data, bytes, true));
}

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::Create(const std::string& name,
                                                                   int64_t bytes) {
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return SystemError("shm_open", name, bytes, errno);
  // Reserved now: a full /dev/shm is an error here instead of a SIGBUS in the middle of a step.
  const int error = posix_fallocate(fd, 0, bytes);
  absl::StatusOr<uint8_t*> data =
      error == 0 ? Map(fd, name, bytes) : SystemError("posix_fallocate", name, bytes, error);
  close(fd);
  if (!data.ok()) {
    Unlink(name);
    return data.status();
  }
  return std::shared_ptr<SharedRegion>(new SharedRegion(*data, bytes, true));
}

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::Open(const std::string& name,
                                                                 int64_t bytes) {
  const int fd = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) return SystemError("shm_open", name, bytes, errno);
  struct stat info = {};
  if (fstat(fd, &info) != 0 || info.st_size != bytes) {
    close(fd);
    return absl::InternalError(
        absl::StrCat("shared memory ", name, " has ", info.st_size, " bytes, expected ", bytes));
  }
  absl::StatusOr<uint8_t*> data = Map(fd, name, bytes);
  close(fd);
  if (!data.ok()) return data.status();
  return std::shared_ptr<SharedRegion>(new SharedRegion(*data, bytes, true));
}

void SharedRegion::Unlink(const std::string& name) {
  shm_unlink(name.c_str());
}

SharedRegion::~SharedRegion() {
  if (mapped_) {
    munmap(data_, bytes_);
  } else {
    std::free(data_);
  }
}

}  // namespace pergola
