#include "model/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace pergola {
namespace {

absl::Status CheckRange(const ByteSource& source, int64_t offset, size_t bytes) {
  const int64_t size = source.size();
  if (offset < 0 || offset > size || static_cast<uint64_t>(size - offset) < bytes) {
    return absl::DataLossError(absl::StrCat(source.name(), ": ", bytes, " bytes wanted at offset ",
                                            offset, ", but it ends at ", size));
  }
  return absl::OkStatus();
}

class FileSource final : public ByteSource {
 public:
  FileSource(std::string path, int fd, int64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  ~FileSource() override { close(fd_); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  const std::string& name() const override { return path_; }
  int64_t size() const override { return size_; }
  void Prefetch(int64_t offset, int64_t bytes) const override {
    // What is refused here is found by the read.
    (void)posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                        POSIX_FADV_WILLNEED);
  }
  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const override {
    RETURN_IF_ERROR(CheckRange(*this, offset, out.size()));
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t n = pread(fd_, out.data() + done, out.size() - done,
                              static_cast<off_t>(offset + static_cast<int64_t>(done)));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        return absl::InternalError(absl::StrCat(path_, ": read failed: ", std::strerror(errno)));
      }
      if (n == 0) {
        return absl::DataLossError(absl::StrCat(path_, ": ends at ", offset + done, ", but had ",
                                                size_, " bytes when opened"));
      }
      done += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int fd_;
  const int64_t size_;
};

class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, absl::Span<const uint8_t> bytes)
      : name_(std::move(name)), bytes_(bytes) {}
  const std::string& name() const override { return name_; }
  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }
  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const override {
    RETURN_IF_ERROR(CheckRange(*this, offset, out.size()));
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return absl::OkStatus();
  }

 private:
  const std::string name_;
  const absl::Span<const uint8_t> bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(const std::string& path) {
  // O_NONBLOCK: a FIFO in the place of a file must not hang the open.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    const std::string text = absl::StrCat(path, ": cannot open: ", std::strerror(error));
    if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(text);
    return absl::InvalidArgumentError(text);
  }
  struct stat info = {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  }
  return std::unique_ptr<ByteSource>(
      std::make_unique<FileSource>(path, fd, static_cast<int64_t>(info.st_size)));
}

std::unique_ptr<ByteSource> MakeMemorySource(std::string name, absl::Span<const uint8_t> bytes) {
  return std::make_unique<MemorySource>(std::move(name), bytes);
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const auto source, OpenFileSource(path));
  if (source->size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", source->size(), " bytes; at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(source->size()), '\0');
  RETURN_IF_ERROR(
      source->ReadAt(0, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  return text;
}

std::string Printable(std::string_view text) {
  constexpr size_t kMaxShown = 120;
  const std::string_view shown = text.substr(0, std::min(text.size(), kMaxShown));
  std::string escaped = absl::CHexEscape(ToAbsl(shown));
  if (escaped.size() > kMaxShown) escaped.resize(kMaxShown);
  if (escaped.size() == kMaxShown || shown.size() < text.size()) escaped += "...";
  return escaped;
}

}  // namespace pergola
