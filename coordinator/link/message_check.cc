#include "coordinator/link/message_check.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/call_status.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/doors/wire.h"

namespace pergola {
namespace {

// Printed on terminals and written to logs: a line of text, without control characters.
absl::Status CheckLine(std::string_view field, const std::string& text, size_t limit) {
  if (text.size() > limit) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " has ", text.size(),
                                                   " bytes, more than the limit of ", limit));
  }
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != 0x7F) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), " has a control character at byte ", i, ": ", Shown(text)));
  }
  return absl::OkStatus();
}

absl::Status CheckCount(std::string_view field, int count, uint32_t limit) {
  if (static_cast<uint32_t>(count) <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " has ", count, " items, more than the layout's ", limit));
}

}  // namespace

absl::Status ParseBytes(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  Violations violations;
  if (ParseMessage(Flatten(bytes), message, &violations)) return absl::OkStatus();
  return absl::InvalidArgumentError(violations.ToStatus().message());
}

absl::Status ParseControlMessage(const grpc::ByteBuffer& bytes,
                                 google::protobuf::Message* message) {
  if (bytes.Length() > kMaxControlMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", message->GetDescriptor()->full_name(), " of ", bytes.Length(),
                     " bytes, more than the limit of ", kMaxControlMessageBytes));
  }
  return ParseBytes(bytes, message);
}

absl::Status CheckGroupName(const std::string& name) {
  if (name.empty() || name.size() > kMaxGroupNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group name has 1 to ", kMaxGroupNameBytes, " bytes, not ", name.size()));
  }
  return CheckLine("group", name, kMaxGroupNameBytes);
}

absl::Status CheckProgress(const v1::Progress& progress) {
  RETURN_IF_ERROR(CheckGroupName(progress.group()));
  return CheckLine("progress.phase", progress.phase(), kMaxNameBytes);
}

absl::Status CheckHelloSizes(const v1::Hello& hello) {
  RETURN_IF_ERROR(CheckGroupName(hello.group()));
  RETURN_IF_ERROR(CheckLine("hello.fingerprint", hello.fingerprint(), kMaxHashBytes));
  RETURN_IF_ERROR(CheckLine("hello.text_hash", hello.text_hash(), kMaxHashBytes));
  RETURN_IF_ERROR(CheckLine("hello.numerics_id", hello.numerics_id(), kMaxHashBytes));
  RETURN_IF_ERROR(CheckLine("hello.model", hello.model(), kMaxNameBytes));
  RETURN_IF_ERROR(CheckLine("hello.architecture", hello.architecture(), kMaxNameBytes));
  const v1::Layout& layout = hello.layout();
  RETURN_IF_ERROR(
      CheckCount("hello.layout.stages", layout.stages_size(), layout.pipeline_parallel()));
  for (int i = 0; i < layout.stages_size(); ++i) {
    const v1::Stage& stage = layout.stages(i);
    const std::string name = absl::StrCat("hello.layout.stages[", i, "].");
    RETURN_IF_ERROR(CheckLine(name + "host", stage.host(), kMaxNameBytes));
    RETURN_IF_ERROR(CheckCount(name + "pids", stage.pids_size(), layout.tensor_parallel()));
  }
  return absl::OkStatus();
}

absl::Status TakeFault(v1::Fault* fault) {
  RETURN_IF_ERROR(CheckGroupName(fault->group()));
  fault->set_operation(CutText(std::move(*fault->mutable_operation()), kMaxNameBytes));
  fault->set_text(CutText(std::move(*fault->mutable_text()), kMaxFaultTextBytes));
  return absl::OkStatus();
}

}  // namespace pergola
