#include "worker/step/trace.h"

#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "base/status.h"

namespace pergola {
namespace {

constexpr size_t kBufferBytes = 4096;  // longer than any line

}  // namespace

absl::StatusOr<std::unique_ptr<Trace>> Trace::Open(const std::string& path, int pid,
                                                   const std::string& process) {
  FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("trace ", path, ": ", std::strerror(errno)));
  }
  // Line by line: a group ends by a signal, and the format does without the closing bracket then.
  std::setvbuf(file, nullptr, _IOLBF, kBufferBytes);
  std::fprintf(
      file, "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"%s\"}},\n",
      pid, process.c_str());
  return std::unique_ptr<Trace>(new Trace(file, pid));
}

Trace::~Trace() {
  std::fprintf(file_, "{\"name\":\"end\",\"ph\":\"M\",\"pid\":%d}]\n", pid_);
  std::fclose(file_);
}

void Trace::Complete(const char* name, int64_t begin_us, int64_t end_us, uint64_t plan_id,
                     int64_t rows) {
  std::fprintf(file_,
               "{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%" PRId64
               ",\"dur\":%" PRId64 ",\"args\":{\"plan\":%" PRIu64 ",\"rows\":%" PRId64 "}},\n",
               name, pid_, begin_us, end_us - begin_us, plan_id, rows);
}

}  // namespace pergola
