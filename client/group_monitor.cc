#include "client/group_monitor.h"

#include <utility>

#include "client/admin_client.h"
#include "client/channel.h"
#include "client/error_text.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {
namespace {

constexpr std::chrono::milliseconds kStatusInterval{100};
constexpr std::chrono::milliseconds kStatusTimeout{2000};
// One token of a large model on a slow machine, behind a page cache that is still cold.
constexpr std::chrono::seconds kProbeTimeout{120};

bool AnyGroupReady(const v1::StatusResponse& status) {
  for (const v1::GroupStatus& group : status.groups()) {
    if (group.state() == v1::GROUP_STATE_READY) return true;
  }
  return false;
}

}  // namespace

GroupMonitor::GroupMonitor(const std::string& public_address, const std::string& internal_address,
                           const std::string& token, bool probe)
    : public_address_(public_address),
      admin_(std::make_unique<AdminClient>(internal_address, token)),
      thread_([this, probe] { Run(probe); }) {}

GroupMonitor::~GroupMonitor() {
  std::shared_ptr<grpc::ClientContext> probe;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    probe = probe_;
    stopped_.NotifyAll();
  }
  if (probe != nullptr) probe->TryCancel();
  thread_.join();
}

GroupMonitor::View GroupMonitor::Look() const {
  MutexLock lock(mutex_);
  return view_;
}

bool GroupMonitor::SleepUnlessStopping(std::chrono::milliseconds duration) {
  const auto until = std::chrono::steady_clock::now() + duration;
  MutexLock lock(mutex_);
  while (!stopping_ && std::chrono::steady_clock::now() < until) {
    stopped_.WaitUntil(mutex_, until);
  }
  return !stopping_;
}

void GroupMonitor::Run(bool probe) {
  bool ready = !probe;
  while (SleepUnlessStopping(kStatusInterval)) {
    absl::StatusOr<v1::StatusResponse> status = admin_->Status(kStatusTimeout);
    if (!status.ok()) continue;
    const bool group_ready = AnyGroupReady(*status);
    {
      MutexLock lock(mutex_);
      view_.status = *std::move(status);
      view_.ready = ready;
    }
    if (ready || !group_ready || !Probe()) continue;
    ready = true;
    MutexLock lock(mutex_);
    view_.ready = true;
  }
}

bool GroupMonitor::Probe() {
  const auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kProbeTimeout);
  {
    MutexLock lock(mutex_);
    if (stopping_) return false;
    probe_ = context;
  }
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(0);  // every vocabulary has an id 0
  request.mutable_stop()->set_max_new_tokens(1);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  request.set_request_id("pergola-up-probe");
  const auto stub = v1::Generation::NewStub(Dial(public_address_));
  const auto reader = stub->Generate(context.get(), request);
  bool token = false;
  v1::GenerateResponse message;
  while (reader->Read(&message)) token = token || message.ids_size() > 0;
  const grpc::Status status = reader->Finish();
  MutexLock lock(mutex_);
  probe_ = nullptr;
  if (!status.ok()) view_.probe_error = ErrorText(status);
  return status.ok() && token;
}

}  // namespace pergola
