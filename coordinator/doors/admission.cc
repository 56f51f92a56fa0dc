#include "coordinator/doors/admission.h"

#include <ctime>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/chat_prompt.h"
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

BuildInputs InputsFor(const DoorContext& context, const CallFacts& call) {
  BuildInputs inputs;
  inputs.served = context.served;
  inputs.limits = LimitsFor(*context.served.parts, context.engine->limits());
  inputs.request_id = absl::StrFormat("%016x", DrawSeed());
  inputs.deadline = call.deadline;
  inputs.tenant = call.tenant;
  inputs.draw_seed = DrawSeed;
  return inputs;
}

google::rpc::Status Submit(const DoorContext& context, const v1::GenerateRequest& request,
                           const BuildInputs& inputs, const std::function<void()>& notify,
                           RunningRequest* running) {
  if (inputs.tenant.size() > kMaxTenantBytes) {
    Violations violations(inputs.field_prefix);
    violations.Add("", absl::StrCat("metadata ", kTenantKey, " has ", inputs.tenant.size(),
                                    " bytes, the limit is ", kMaxTenantBytes));
    return Invalid(context, request, violations.ToStatus());
  }
  BuiltRequest built;
  google::rpc::Status status = BuildRequest(request, inputs, &built);
  if (status.code() != 0) return Invalid(context, request, std::move(status));
  return ToRpcStatus(running->Submit(context.engine, context.results, std::move(built), notify));
}

// As people here write it: what transformers tells a template, too.
std::tm LocalTime() {
  const std::time_t now = std::time(nullptr);
  std::tm time = {};
  localtime_r(&now, &time);
  return time;
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
  BuildInputs inputs = InputsFor(context, call);
  inputs.field_prefix = field_prefix;
  return Submit(context, request, inputs, notify, running);
}

google::rpc::Status AdmitChat(const DoorContext& context, std::string_view bytes,
                              const CallFacts& call, const std::function<void()>& notify,
                              RunningRequest* running) {
  v1::ChatRequest chat;
  v1::GenerateRequest request;
  Violations violations;
  if (!ParseChat(bytes, &chat, &violations)) {
    return Invalid(context, request, violations.ToStatus());
  }
  BuildInputs inputs = InputsFor(context, call);
  inputs.field_prefix = kChatFieldPrefix;
  inputs.prompt_path = kChatPromptPath;
  google::rpc::Status status =
      BuildChatPrompt(inputs.served, inputs.limits.vocabulary_size, LocalTime(), &chat, &request);
  if (status.code() != 0) return Invalid(context, request, std::move(status));
  return Submit(context, request, inputs, notify, running);
}

}  // namespace pergola
