// One Generate or Chat call: text work on the pool, headers after admission, then one write in
// flight at a time, each carrying all that gathered of one sequence since the last. Not for what a
// request means (request_builder.h) nor for what its sequences say (running_request.h).
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "base/mutex.h"
#include "coordinator/doors/admission.h"
#include "coordinator/doors/call_handle.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/doors/write_watch.h"

namespace pergola {

class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public MailReceiver,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  enum class Kind : uint8_t { kGenerate, kChat };  // what the bytes are

  // The reactor of one call; it owns itself until OnDone. `context` and `bytes` are gRPC's and
  // valid until then.
  static GenerateCall* Start(const DoorContext& door, grpc::CallbackServerContext* context,
                             const grpc::ByteBuffer* bytes, Kind kind);
  GenerateCall(const DoorContext& door, grpc::CallbackServerContext* context, Kind kind)
      : door_(door), kind_(kind), place_(door), call_(context) {}

  void OnSendInitialMetadataDone(bool ok) override { Continue(ok); }
  void OnWriteDone(bool ok) override { Continue(ok); }
  void OnCancel() override;
  void OnDone() override;
  void TakeMail() override;

 private:
  // On the text pool.
  void Admission(std::string_view bytes, const CallFacts& facts);
  bool Cancelled();
  // The client does not read.
  void OnOverdue(const absl::Status& why);
  // On the engine thread: the mailbox has something.
  void OnMail();
  // After an operation of ours ended.
  void Continue(bool ok);
  void Deliver();
  // The next message or the end; nullopt: nothing to do now.
  struct Next {
    std::optional<v1::GenerateResponse> message;
    std::optional<grpc::Status> end;  // with a message: sent together
  };
  std::optional<Next> TakeNext() REQUIRES(mutex_);

  const DoorContext& door_;
  const Kind kind_;
  const CallPlace place_;
  const CallHandle call_;
  std::shared_ptr<WriteWatch> watch_;   // the second owner is its alarm, while that runs
  std::shared_ptr<GenerateCall> self_;  // the second owner is any job or queue; released in OnDone
  std::atomic<bool> mail_posted_{false};

  Mutex mutex_;
  RunningRequest running_ GUARDED_BY(mutex_);
  std::deque<v1::GenerateResponse> messages_ GUARDED_BY(mutex_);  // at most one per sequence
  bool cancelled_ GUARDED_BY(mutex_) = false;
  // An operation is in flight, or none may start any more: who sets it owns out_ and the stream.
  bool busy_ GUARDED_BY(mutex_) = true;
  bool mail_waits_ GUARDED_BY(mutex_) = false;  // some came while busy_
  bool broken_ GUARDED_BY(mutex_) = false;  // a write failed: what comes is dropped until the end
  std::optional<absl::Status> end_ GUARDED_BY(mutex_);  // to be sent after messages_
  grpc::ByteBuffer out_;
};

}  // namespace pergola
