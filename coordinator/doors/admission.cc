#include "coordinator/doors/admission.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/wire.h"

namespace pergola {
namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

google::rpc::Status Refuse(const DoorContext& context, Refusal refusal,
                           const absl::Status& status) {
  context.engine->CountRefusal(refusal, "", status);
  return ToRpcStatus(status, RefusalName(refusal));
}

// The request is at fault: counted with the id that it names, if it was read that far.
google::rpc::Status Invalid(const DoorContext& context, const v1::GenerateRequest& request,
                            google::rpc::Status status) {
  context.engine->CountRefusal(
      Refusal::kInvalidRequest, request.request_id().substr(0, kMaxRequestIdBytes),
      absl::Status(static_cast<absl::StatusCode>(status.code()), status.message()));
  return status;
}

}  // namespace

google::rpc::Status CallPlace::Refusal() const {
  return Refuse(context_, pergola::Refusal::kTooManyCalls,
                absl::ResourceExhaustedError(absl::StrCat(
                    "as many calls as allowed are in progress: ", context_.max_calls)));
}

google::rpc::Status TextPoolFull(const DoorContext& context) {
  return Refuse(context, Refusal::kTextPoolFull,
                absl::ResourceExhaustedError("as many requests as allowed wait for the tokenizer"));
}

google::rpc::Status Admit(const DoorContext& context, std::string_view bytes,
                          const std::string& field_prefix, const CallFacts& call,
                          const std::function<void()>& notify, RunningRequest* running) {
  v1::GenerateRequest request;
  Violations violations(field_prefix);
  if (!ParseMessage(bytes, &request, &violations)) {
    return Invalid(context, request, violations.ToStatus());
  }
  if (call.tenant.size() > kMaxTenantBytes) {
    violations.Add("", absl::StrCat("metadata ", kTenantKey, " has ", call.tenant.size(),
                                    " bytes, the limit is ", kMaxTenantBytes));
    return Invalid(context, request, violations.ToStatus());
  }

  BuildInputs inputs;
  inputs.served = context.served;
  inputs.limits = LimitsFor(*context.served.parts, context.engine->limits());
  inputs.field_prefix = field_prefix;
  inputs.request_id = absl::StrFormat("%016x", DrawSeed());
  inputs.deadline = call.deadline;
  inputs.tenant = call.tenant;
  inputs.draw_seed = DrawSeed;
  BuiltRequest built;
  google::rpc::Status status = BuildRequest(request, inputs, &built);
  if (status.code() != 0) return Invalid(context, request, std::move(status));
  return ToRpcStatus(running->Submit(context.engine, context.results, std::move(built), notify));
}

}  // namespace pergola
