#include "coordinator/doors/generation_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/batch_call.h"
#include "coordinator/doors/generate_call.h"
#include "coordinator/doors/wire.h"

namespace pergola {
namespace {

google::rpc::Status DoTokenize(const DoorContext& door, const v1::TokenizeRequest& request,
                               v1::TokenizeResponse* response) {
  google::rpc::Status named = CheckModelName(request.model(), *door.served.parts);
  if (named.code() != 0) return named;
  Violations violations;
  if (!CheckText(request.text(), "text", &violations)) return violations.ToStatus();
  const bool add = !request.has_add_special_tokens() || request.add_special_tokens();
  auto ids = door.served.tokenizer->Encode(request.text(), add);
  if (!ids.ok()) {
    violations.Add("text", std::string(ToStd(ids.status().message())));
    return violations.ToStatus();
  }
  response->mutable_ids()->Add(ids->begin(), ids->end());
  return {};
}

google::rpc::Status DoDetokenize(const DoorContext& door, const v1::DetokenizeRequest& request,
                                 v1::DetokenizeResponse* response) {
  google::rpc::Status named = CheckModelName(request.model(), *door.served.parts);
  if (named.code() != 0) return named;
  Violations violations;
  const auto count = static_cast<size_t>(request.ids_size());
  const absl::Span<const int32_t> ids(request.ids().data(), count);
  const RequestLimits limits = LimitsFor(*door.served.parts, door.engine->limits());
  if (count > kMaxDetokenizeIds) {
    violations.Add("ids", absl::StrCat(count, " ids exceed the limit of ", kMaxDetokenizeIds));
  } else {
    CheckIds(ids, limits.vocabulary_size, "ids", &violations);
  }
  if (!violations.empty()) return violations.ToStatus();
  std::string text = door.served.tokenizer->Decode(ids, request.skip_special_tokens());
  // 16 bytes are enough for the field's tag and length.
  if (text.size() + 16 > static_cast<size_t>(kMaxMessageBytes)) {
    violations.Add("ids", absl::StrCat("decode to ", text.size(), " bytes; a message holds ",
                                       kMaxMessageBytes));
    return violations.ToStatus();
  }
  response->set_text(std::move(text));
  return {};
}

google::rpc::Status DoModelInfo(const DoorContext& door, const v1::ModelInfoRequest&,
                                v1::ModelInfoResponse* response) {
  const ServingLimits limits = door.engine->limits();
  const TextParts& parts = *door.served.parts;
  if (limits.context_length == 0) {
    return ToRpcStatus(absl::UnavailableError("no group of workers has attached yet"), "NO_GROUP");
  }
  response->set_model(parts.model_name);
  response->set_architecture(limits.architecture.empty() ? parts.architecture
                                                         : limits.architecture);
  response->set_vocabulary_size(limits.vocabulary_size);
  response->set_context_length(limits.context_length);
  const GenerationDefaults& defaults = parts.defaults;
  response->mutable_eos_ids()->Add(defaults.eos_ids.begin(), defaults.eos_ids.end());
  response->set_fingerprint(limits.fingerprint);
  response->set_numerics_id(limits.numerics_id);
  response->set_bitwise(limits.bitwise);
  v1::SamplingParameters* sampling = response->mutable_defaults();
  if (defaults.repetition_penalty) {
    sampling->set_repetition_penalty(*defaults.repetition_penalty);
  }
  if (defaults.no_repeat_ngram_size) {
    sampling->set_no_repeat_ngram_size(*defaults.no_repeat_ngram_size);
  }
  if (!defaults.do_sample.value_or(false)) return {};  // greedy: the filters do not count
  sampling->set_temperature(defaults.temperature.value_or(1.0F));
  if (defaults.top_k) sampling->set_top_k(*defaults.top_k);
  if (defaults.top_p) sampling->set_top_p(*defaults.top_p);
  if (defaults.min_p) sampling->set_min_p(*defaults.min_p);
  if (defaults.typical_p) sampling->set_typical_p(*defaults.typical_p);
  return {};
}

// Parses, computes and answers one short unary call on the text pool.
template <typename Request, typename Response>
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  using Handler = google::rpc::Status (*)(const DoorContext&, const Request&, Response*);

  static TextCall* Start(const DoorContext& door, const grpc::ByteBuffer* bytes,
                         grpc::ByteBuffer* response, Handler handler) {
    auto* call = new TextCall;  // deletes itself in OnDone
    const bool queued = door.text_pool->TryRun(bytes->Length(), [=, &door] {
      call->Finish(ToGrpc(Answer(door, Flatten(*bytes), response, handler)));
    });
    if (!queued) call->Finish(ToGrpc(TextPoolFull(door)));
    return call;
  }

  void OnDone() override { delete this; }

 private:
  static google::rpc::Status Answer(const DoorContext& door, const std::string& bytes,
                                    grpc::ByteBuffer* response, Handler handler) {
    Request request;
    Violations violations;
    if (!ParseMessage(bytes, &request, &violations)) return violations.ToStatus();
    Response message;
    google::rpc::Status status = handler(door, request, &message);
    if (status.code() == 0) *response = ToByteBuffer(message);
    return status;
  }
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return GenerateCall::Start(door_, context, request, GenerateCall::Kind::kGenerate);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Chat(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return GenerateCall::Start(door_, context, request, GenerateCall::Kind::kChat);
}

grpc::ServerUnaryReactor* GenerationService::GenerateBatch(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  return BatchCall::Start(door_, context, request, response);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext*,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return TextCall<v1::TokenizeRequest, v1::TokenizeResponse>::Start(door_, request, response,
                                                                    DoTokenize);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext*,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return TextCall<v1::DetokenizeRequest, v1::DetokenizeResponse>::Start(door_, request, response,
                                                                        DoDetokenize);
}

grpc::ServerUnaryReactor* GenerationService::ModelInfo(grpc::CallbackServerContext*,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return TextCall<v1::ModelInfoRequest, v1::ModelInfoResponse>::Start(door_, request, response,
                                                                      DoModelInfo);
}

}  // namespace pergola
