#include "worker/step/internal_client.h"

#include <algorithm>
#include <chrono>

#include "base/limits.h"

namespace pergola {
namespace {

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // The links pace their own attempts; gRPC's own pause of up to two minutes would hide a
  // coordinator that is back.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // Ranks and coordinator belong together; a proxy of the environment is for other traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace

InternalClient::InternalClient(const std::string& address, const std::string& join_token)
    : address_(address),
      join_token_(join_token),
      channel_(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), Arguments())),
      stub_(v1::Worker::NewStub(channel_)) {}

void InternalClient::Authorize(grpc::ClientContext* context) const {
  if (!join_token_.empty()) context->AddMetadata(kJoinTokenKey, join_token_);
}

absl::Status InternalClient::ReportFault(const v1::Fault& fault) {
  grpc::ClientContext context;
  Authorize(&context);
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(kFaultDeadlineMs));
  v1::FaultAck ack;
  return FromGrpc(stub_->ReportFault(&context, fault, &ack));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

int64_t Redial::NextDelayMs() {
  const int64_t delay_ms = next_ms_;
  next_ms_ = std::min(options_.longest_ms, next_ms_ + (next_ms_ + 1) / 2);
  return delay_ms;
}

}  // namespace pergola
