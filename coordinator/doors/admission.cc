#include "coordinator/doors/admission.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

void Admitted::Complete(v1::StreamInfo* info) const {
  info->set_request_id(request_id_);
  info->set_model(model_);
  info->set_prompt_token_count(prompt_token_count_);
  if (!prompt_.ids().empty()) *info->mutable_prompt() = prompt_;
}

google::rpc::Status Admit(const DoorContext& context, std::string_view bytes,
                          const std::string& field_prefix, TimeUs deadline,
                          std::shared_ptr<Mailbox> mailbox, Admitted* admitted) {
  v1::GenerateRequest request;
  Violations violations(field_prefix);
  if (!ParseMessage(bytes, &request, &violations)) return violations.ToStatus();

  BuildInputs inputs;
  inputs.served = context.served;
  inputs.limits = LimitsFor(*context.served.parts, context.engine->limits());
  inputs.field_prefix = field_prefix;
  inputs.request_id = absl::StrFormat("%016x", DrawSeed());
  inputs.deadline = deadline;
  inputs.draw_seed = DrawSeed;
  SequenceRequest sequence;
  google::rpc::Status built = BuildRequest(request, inputs, &sequence);
  if (built.code() != 0) return built;

  admitted->request_id_ = sequence.request_id;
  admitted->model_ = context.served.parts->model_name;
  admitted->prompt_token_count_ = static_cast<uint32_t>(sequence.prompt_ids.size());
  if (request.resumable()) {
    admitted->prompt_.mutable_ids()->Add(sequence.prompt_ids.begin(), sequence.prompt_ids.end());
  }
  sequence.mailbox = std::move(mailbox);
  absl::StatusOr<SequenceId> id = context.engine->Submit(std::move(sequence));
  if (!id.ok()) return ToRpcStatus(id.status());
  admitted->id = *id;
  return {};
}

}  // namespace pergola
