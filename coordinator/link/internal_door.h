// The one door of the internal listener. Every call is taken as raw bytes, so that the join token
// is checked before the first byte of a message is read, and what cannot be decoded is refused in
// words. Not for what the methods do (worker_service.h, admin_service.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/link/token_check.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/generic/async_generic_service.h"

namespace pergola {

// One call with one request and one answer. Deletes itself when done.
class UnaryCall final : public grpc::ServerGenericBidiReactor {
 public:
  using Handle = std::function<void(UnaryCall*)>;

  // `handle` runs once, on a gRPC thread, when `request` has been read; unless it was refused as
  // too large or as no such message.
  UnaryCall(std::unique_ptr<google::protobuf::Message> request, Handle handle);

  // Exactly one of the two, once, from any thread. `then` runs on a gRPC thread after the answer
  // has gone out.
  void Answer(const google::protobuf::Message& response, std::function<void()> then = nullptr);
  void Refuse(const google::rpc::Status& status);

  google::protobuf::Message* request() { return request_.get(); }

  void OnReadDone(bool ok) override;
  void OnDone() override;

 private:
  const std::unique_ptr<google::protobuf::Message> request_;
  const Handle handle_;
  std::function<void()> then_;
  grpc::ByteBuffer in_;
  grpc::ByteBuffer out_;
};

// A stream that ends with `status` before anything is read. Deletes itself when done.
grpc::ServerGenericBidiReactor* RefusedCall(const absl::Status& status);

class InternalDoor final : public grpc::CallbackGenericService {
 public:
  using Method = std::function<grpc::ServerGenericBidiReactor*(grpc::CallbackServerContext*)>;

  // `token` is borrowed.
  explicit InternalDoor(const TokenCheck* token) : token_(token) {}

  // Before the server starts. `service` is the full name.
  void Add(const char* service, const char* method, Method start);
  template <typename Request>
  void AddUnary(const char* service, const char* method,
                std::function<void(Request*, UnaryCall*)> handle) {
    Add(service, method, [handle = std::move(handle)](grpc::CallbackServerContext*) {
      return new UnaryCall(std::make_unique<Request>(), [handle](UnaryCall* call) {
        handle(static_cast<Request*>(call->request()), call);
      });
    });
  }

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  const TokenCheck* const token_;
  std::map<std::string, Method> methods_;  // by path: "/package.Service/Method"
};

}  // namespace pergola
