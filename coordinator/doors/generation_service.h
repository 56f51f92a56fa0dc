// The public door pergola.v1.Generation over gRPC's callback API. Methods are raw: requests are
// parsed on the text pool, after their bytes were reserved, with errors in words (wire.h). Not for
// health or reflection (server.h).
#pragma once

#include "coordinator/doors/admission.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {

using GenerationBase = v1::Generation::WithRawCallbackMethod_Generate<
    v1::Generation::WithRawCallbackMethod_Chat<v1::Generation::WithRawCallbackMethod_GenerateBatch<
        v1::Generation::WithRawCallbackMethod_Tokenize<
            v1::Generation::WithRawCallbackMethod_Detokenize<
                v1::Generation::WithRawCallbackMethod_ModelInfo<v1::Generation::Service>>>>>>;

class GenerationService final : public GenerationBase {
 public:
  // `door` must outlive the service and its calls.
  explicit GenerationService(const DoorContext& door) : door_(door) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* GenerateBatch(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelInfo(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;

 private:
  const DoorContext& door_;
};

}  // namespace pergola
