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

}  // namespace

google::rpc::Status CallPlace::Refusal() const {
  return ToRpcStatus(absl::ResourceExhaustedError(absl::StrCat(
                         "as many calls as allowed are in progress: ", context_.max_calls)),
                     "TOO_MANY_CALLS");
}

google::rpc::Status TextPoolFull() {
  return ToRpcStatus(
      absl::ResourceExhaustedError("as many requests as allowed wait for the tokenizer"),
      "TEXT_POOL_FULL");
}

google::rpc::Status Admit(const DoorContext& context, std::string_view bytes,
                          const std::string& field_prefix, const CallFacts& call,
                          const std::function<void()>& notify, RunningRequest* running) {
  v1::GenerateRequest request;
  Violations violations(field_prefix);
  if (!ParseMessage(bytes, &request, &violations)) return violations.ToStatus();
  if (call.tenant.size() > kMaxTenantBytes) {
    violations.Add("", absl::StrCat("metadata ", kTenantKey, " has ", call.tenant.size(),
                                    " bytes, the limit is ", kMaxTenantBytes));
    return violations.ToStatus();
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
  if (status.code() != 0) return status;
  return ToRpcStatus(running->Submit(context.engine, context.results, std::move(built), notify));
}

}  // namespace pergola
