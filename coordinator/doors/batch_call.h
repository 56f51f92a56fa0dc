// One GenerateBatch call: every item admitted alone through the same code as Generate
// (admission.h); the answer goes out when all have ended, in the order of the requests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "coordinator/doors/admission.h"
#include "coordinator/doors/call_handle.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/doors/write_watch.h"

namespace pergola {

class BatchCall final : public grpc::ServerUnaryReactor,
                        public MailReceiver,
                        public std::enable_shared_from_this<BatchCall> {
 public:
  // `bytes` and `response` are gRPC's and valid until OnDone.
  static BatchCall* Start(const DoorContext& door, grpc::CallbackServerContext* context,
                          const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response);
  BatchCall(const DoorContext& door, grpc::CallbackServerContext* context)
      : door_(door), place_(door), call_(context), held_(door.results, kMaxHeldPerCallBytes) {}

  void OnCancel() override;
  void OnDone() override;
  void TakeMail() override;

 private:
  struct Item {
    RunningRequest running;
    bool ended = false;
    bool expired = false;  // ended by the call's deadline
    v1::GenerateBatchResult result;
  };

  // On the text pool: admits item after item.
  void Admission(const std::string& bytes, const CallFacts& facts);
  void AdmitItem(std::string_view bytes, size_t index, const CallFacts& facts);
  void OnMail();
  // Empties the mailboxes; answers when every item has ended.
  void Collect();
  // An item whose results no longer fit ends with RESOURCE_EXHAUSTED and keeps what it has.
  void TakeFrom(Item* item) REQUIRES(mutex_);

  const DoorContext& door_;
  const CallPlace place_;
  const CallHandle call_;
  std::shared_ptr<WriteWatch> watch_;  // of the answer; the second owner is its alarm
  std::shared_ptr<BatchCall> self_;    // the second owner is any job or queue; released in OnDone
  grpc::ByteBuffer* response_ = nullptr;
  std::atomic<bool> mail_posted_{false};

  Mutex mutex_;
  std::vector<Item> items_ GUARDED_BY(mutex_);
  HeldResults held_ GUARDED_BY(mutex_);  // in the items' results
  bool all_admitted_ GUARDED_BY(mutex_) = false;
  bool finished_ GUARDED_BY(mutex_) = false;
  bool cancelled_ GUARDED_BY(mutex_) = false;
};

}  // namespace pergola
