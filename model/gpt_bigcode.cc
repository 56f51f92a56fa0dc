#include "model/gpt_bigcode.h"

#include "base/status.h"
#include "model/gpt2.h"

namespace pergola {
namespace {

absl::StatusOr<ModelSpec> GptBigCodeFromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, GptSpecFromHf(config, "gelu_pytorch_tanh"));
  spec.architecture = "gpt_bigcode";
  ASSIGN_OR_RETURN(const bool multi_query, config.Bool("multi_query", true));
  if (multi_query) spec.kv_heads = 1;
  // They say where 16-bit scores are widened; here all of attention is f32 anyway.
  for (const char* key : {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}) {
    RETURN_IF_ERROR(config.Bool(key, true).status());
  }
  return spec;
}

// With one KV head the rows of c_attn are [q | k | v], else [q k v] of each head in turn.
absl::Status BindGptBigCode(FileFormat /*format*/, const TensorTable& table, ModelSpec* spec,
                            std::vector<WeightBinding>* weights) {
  const bool multi_query = spec->kv_heads == 1;
  const auto adjust = [=](Role role, WeightPlacement* placement) {
    if (multi_query) {
      PlaceStackedQkv(*spec, role, placement);
    } else {
      PlaceInterleavedQkv(*spec, role, placement);
    }
  };
  return BindHfWeights(table, kGptNames, adjust, spec, weights);
}

}  // namespace

const Family kGptBigCodeFamily = {"gpt_bigcode",    "",      50256,         50256,
                                  GptBigCodeFromHf, nullptr, BindGptBigCode};

}  // namespace pergola
