#include "coordinator/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

constexpr size_t kMaxTokenBytes = 1024;

absl::Status SystemError(const std::string& what, const std::string& path, int error) {
  return absl::FailedPreconditionError(absl::StrCat(what, " ", path, ": ", strerror(error)));
}

absl::Status WriteAll(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(fd, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return absl::FailedPreconditionError(strerror(errno));
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckToken(const std::string& token, const std::string& source) {
  if (token.empty() || token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the join token of ", source, " has ",
                                                   token.size(), " bytes; it needs 1 to ",
                                                   kMaxTokenBytes));
  }
  const bool visible =
      std::all_of(token.begin(), token.end(), [](char c) { return c > 0x20 && c < 0x7F; });
  if (visible) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the join token of ", source, " holds bytes that are not visible ASCII"));
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("cannot read join token file", path, errno);
  struct stat info {};
  std::string token(kMaxTokenBytes + 2, '\0');
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const ssize_t count = regular ? read(fd, token.data(), token.size()) : -1;
  close(fd);
  if (count < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot read join token file ", path, ": not a readable regular file"));
  }
  if ((info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("join token file %s has mode %04o; others must have no access (chmod 600)",
                        path, info.st_mode & 07777));
  }
  token.resize(static_cast<size_t>(count));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  const absl::Status valid = CheckToken(token, path);
  if (!valid.ok()) return valid;
  return token;
}

absl::Status WriteRunFile(const std::string& path, const CoordinatorRun& run) {
  const nlohmann::json json = {{"pid", run.pid},
                               {"public_address", run.public_address},
                               {"internal_address", run.internal_address},
                               {"http_address", run.http_address},
                               {"join_token_file", run.join_token_file},
                               {"started_us", run.started_us}};
  // A path from the command line may hold any bytes; what is no UTF-8 is replaced, not thrown.
  const std::string text =
      json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const std::string temporary = absl::StrCat(path, ".", run.pid, ".tmp");
  unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return SystemError("cannot write run file", temporary, errno);
  absl::Status written = WriteAll(fd, text);
  close(fd);
  if (written.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    written = SystemError("cannot rename the run file to", path, errno);
  }
  if (!written.ok()) unlink(temporary.c_str());
  return written;
}

void RemoveRunFile(const std::string& path, int64_t pid) {
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  const auto found = json.find("pid");
  if (found != json.end() && found->is_number_integer() && *found == pid) unlink(path.c_str());
}

}  // namespace pergola
