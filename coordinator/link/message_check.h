// From a worker's or operator's bytes to messages within the limits of base/limits.h, before the
// engine sees them. Errors are INVALID_ARGUMENT and name field, value and limit. Not for what a
// Hello must mean to be welcome (engine_groups.cc).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

// Any message of at most gRPC's bound.
absl::Status ParseBytes(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
// One of at most kMaxControlMessageBytes.
absl::Status ParseControlMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

absl::Status CheckGroupName(const std::string& name);
absl::Status CheckProgress(const v1::Progress& progress);
// Lengths and counts only.
absl::Status CheckHelloSizes(const v1::Hello& hello);
// Its texts are cut to their limits: what a dying rank says is better known in part than not.
absl::Status TakeFault(v1::Fault* fault);

}  // namespace pergola
