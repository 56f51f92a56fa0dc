#include "coordinator/doors/call_status.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/engine/overload.h"
#include "google/rpc/error_details.pb.h"

namespace pergola {
namespace {

constexpr char kDomain[] = "pergola";
// Far more than a person reads; a request with 80 wrong stops costs no more memory than this.
constexpr size_t kMaxItems = 64;
constexpr size_t kMaxDescriptionBytes = 256;
constexpr int64_t kRetryUs = 1'000'000;  // where nothing better is known

}  // namespace

std::string Violations::Path(std::string_view field) const {
  if (!field.empty()) return absl::StrCat(prefix_, ToAbsl(field));
  return prefix_.substr(0, prefix_.find_last_not_of('.') + 1);  // the whole message
}

void Violations::Add(std::string_view field, std::string description) {
  AddAt(Path(field), std::move(description));
}

void Violations::AddAt(std::string path, std::string description) {
  if (items_.size() == kMaxItems) {
    ++dropped_;
    return;
  }
  items_.push_back({std::move(path), CutText(std::move(description), kMaxDescriptionBytes)});
}

google::rpc::Status Violations::ToStatus() const {
  google::rpc::BadRequest details;
  std::string message;
  size_t bytes = 0;
  size_t listed = 0;
  for (const Item& item : items_) {
    bytes += item.field.size() + item.description.size() + 8;  // 8: tags and lengths
    if (bytes > kMaxDetailBytes) break;
    auto* violation = details.add_field_violations();
    violation->set_field(item.field);
    violation->set_description(item.description);
    absl::StrAppend(&message, message.empty() ? "" : "; ", item.field,
                    item.field.empty() ? "" : ": ", item.description);
    ++listed;
  }
  const size_t unlisted = items_.size() - listed + dropped_;
  if (unlisted > 0) {
    auto* violation = details.add_field_violations();
    violation->set_field(Path(""));
    violation->set_description(absl::StrCat("and ", unlisted, " more"));
  }
  google::rpc::Status status;
  status.set_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  status.set_message(CutText(std::move(message), kMaxStatusMessageBytes));
  status.add_details()->PackFrom(details);
  return status;
}

google::rpc::Status ToRpcStatus(const absl::Status& status, std::string_view reason) {
  google::rpc::Status result;
  result.set_code(static_cast<int>(status.code()));
  if (status.ok()) return result;
  result.set_message(CutText(std::string(ToStd(status.message())), kMaxStatusMessageBytes));
  const bool retry = absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
  std::string why = reason.empty() ? RefusalReason(status) : std::string(reason);
  if (!retry && why.empty()) return result;
  if (retry) {
    const int64_t stated_us = RetryDelayUs(status);
    const int64_t delay_us = stated_us < 0 ? kRetryUs : stated_us;
    google::rpc::RetryInfo info;
    info.mutable_retry_delay()->set_seconds(delay_us / 1'000'000);
    info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay_us % 1'000'000 * 1000));
    result.add_details()->PackFrom(info);
  }
  google::rpc::ErrorInfo info;
  info.set_reason(why.empty() ? absl::StatusCodeToString(status.code()) : std::move(why));
  info.set_domain(kDomain);
  result.add_details()->PackFrom(info);
  return result;
}

std::string CutText(std::string text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text;
}

std::string Shown(std::string_view value, size_t max_bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string shown = "'";
  for (const char c : value.substr(0, max_bytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && c != '\'' && c != '\\') {
      shown += c;
    } else {
      shown += "\\x";
      shown += kHex[byte >> 4];
      shown += kHex[byte & 15];
    }
  }
  shown += value.size() > max_bytes ? "...'" : "'";
  return shown;
}

}  // namespace pergola
