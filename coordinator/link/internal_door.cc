#include "coordinator/link/internal_door.h"

#include "absl/strings/str_cat.h"
#include "coordinator/doors/call_status.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/link/message_check.h"

namespace pergola {
namespace {

class Refused final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refused(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

UnaryCall::UnaryCall(std::unique_ptr<google::protobuf::Message> request, Handle handle)
    : request_(std::move(request)), handle_(std::move(handle)) {
  StartRead(&in_);
}

void UnaryCall::OnReadDone(bool ok) {
  const absl::Status parsed = ok ? ParseControlMessage(in_, request_.get())
                                 : absl::InvalidArgumentError("the call carries no request");
  in_.Clear();
  if (parsed.ok()) {
    handle_(this);
  } else {
    Finish(ToGrpc(parsed));
  }
}

void UnaryCall::Answer(const google::protobuf::Message& response, std::function<void()> then) {
  then_ = std::move(then);
  out_ = ToByteBuffer(response);
  StartWriteAndFinish(&out_, grpc::WriteOptions(), grpc::Status::OK);
}

void UnaryCall::Refuse(const google::rpc::Status& status) {
  Finish(ToGrpc(status));
}

void UnaryCall::OnDone() {
  if (then_) then_();
  delete this;
}

grpc::ServerGenericBidiReactor* RefusedCall(const absl::Status& status) {
  return new Refused(status);
}

void InternalDoor::Add(const char* service, const char* method, Method start) {
  methods_[absl::StrCat("/", service, "/", method)] = std::move(start);
}

grpc::ServerGenericBidiReactor* InternalDoor::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const auto method = methods_.find(context->method());
  if (method == methods_.end()) {
    return RefusedCall(
        absl::UnimplementedError(absl::StrCat("no method ", Shown(context->method()))));
  }
  const absl::Status allowed = token_->Check(*context);
  return allowed.ok() ? method->second(context) : RefusedCall(allowed);
}

}  // namespace pergola
