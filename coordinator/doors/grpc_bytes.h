// Between gRPC's byte buffers and statuses and ours. The only place that knows both.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "coordinator/engine/time.h"
#include "google/protobuf/message_lite.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "grpcpp/support/status.h"

namespace pergola {

// The buffer's bytes in one piece.
std::string Flatten(const grpc::ByteBuffer& buffer);

grpc::ByteBuffer ToByteBuffer(const google::protobuf::MessageLite& message);

// With the details as grpc-status-details-bin.
grpc::Status ToGrpc(const google::rpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

// Now on the engine's clock.
TimeUs NowUs();
// The call's deadline on the engine's clock; kNever if it has none.
TimeUs DeadlineUs(const grpc::CallbackServerContext& context);
// The first value of a metadata key; empty if the call has none.
std::string MetadataValue(const grpc::CallbackServerContext& context, const char* key);

}  // namespace pergola
