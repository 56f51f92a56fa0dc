#include "coordinator/doors/grpc_bytes.h"

#include <chrono>
#include <vector>

#include "base/status.h"
#include "coordinator/doors/call_status.h"

namespace pergola {

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return bytes;
  bytes.reserve(buffer.Length());
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

grpc::ByteBuffer ToByteBuffer(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.ByteSizeLong());
  // A fresh slice has one owner, so its bytes may be written.
  auto* bytes = const_cast<uint8_t*>(slice.begin());
  message.SerializeWithCachedSizesToArray(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

grpc::Status ToGrpc(const google::rpc::Status& status) {
  if (status.code() == 0) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), status.message(),
                      status.details_size() > 0 ? status.SerializeAsString() : std::string());
}

grpc::Status ToGrpc(const absl::Status& status) {
  return ToGrpc(ToRpcStatus(status));
}

TimeUs NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

TimeUs DeadlineUs(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return kNever;
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
      deadline - std::chrono::system_clock::now());
  return NowUs() + left.count();
}

std::string MetadataValue(const grpc::CallbackServerContext& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(key);
  return it == metadata.end() ? std::string() : std::string(it->second.data(), it->second.size());
}

}  // namespace pergola
