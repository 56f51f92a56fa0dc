#include "model/shape_spec.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"
#include "model/cuda_packed_size.h"
#include "model/cut.h"
#include "model/packed_size.h"

namespace pergola {
namespace {

// The projections of a layer whose weights are stacked; 0 is none.
enum Stack : int { kNoStack, kQkv, kGateUp };

struct RoleShape {
  WeightKind kind;
  Stack stack;
};

RoleShape RoleShapeOf(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
    case Role::kPositionEmbedding:
      return {WeightKind::kEmbedding, kNoStack};
    case Role::kLmHead:
      return {WeightKind::kLmHead, kNoStack};
    case Role::kEmbeddingNorm:
    case Role::kEmbeddingNormBias:
    case Role::kAttentionNorm:
    case Role::kAttentionNormBias:
    case Role::kQueryNorm:
    case Role::kKeyNorm:
    case Role::kAttentionPostNorm:
    case Role::kMlpNorm:
    case Role::kMlpNormBias:
    case Role::kMlpPostNorm:
    case Role::kFinalNorm:
    case Role::kFinalNormBias:
      return {WeightKind::kNorms, kNoStack};
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kQueryBias:
    case Role::kKeyBias:
    case Role::kValueBias:
      return {WeightKind::kAttention, kQkv};
    case Role::kAttentionOutput:
    case Role::kAttentionOutputBias:
      return {WeightKind::kAttention, kNoStack};
    case Role::kGate:
    case Role::kUp:
    case Role::kGateBias:
    case Role::kUpBias:
      return {WeightKind::kMlp, kGateUp};
    case Role::kDown:
    case Role::kDownBias:
      return {WeightKind::kMlp, kNoStack};
  }
  PERGOLA_CHECK(false);
}

WeightShape ShapeOfRole(const ModelSpec& spec, Role role, int64_t layer, DType dtype) {
  WeightShape weight;
  weight.kind = RoleShapeOf(role).kind;
  weight.stack = RoleShapeOf(role).stack;
  weight.place = PlaceOf(spec, role);
  weight.layer = layer;
  weight.split = SplitOf(role);
  weight.shape = ShapeOf(spec, role);
  weight.dtype = weight.matrix() ? dtype : DType::kF32;
  return weight;
}

// A public model's configuration.
struct KnownModel {
  const char* name;
  const char* architecture;
  int64_t layers, hidden, heads, kv_heads, ffn, vocabulary, context_length;
  bool rope;
  bool gated_mlp;
  bool biases;          // of every projection
  bool layer_norm;      // norms have a bias too
  bool embedding_norm;  // a norm after the embedding
  bool tied;
  bool learned_positions;
};

constexpr KnownModel kKnownModels[] = {
    // huggingface.co/bigscience/bloom, config.json: n_layer 70, hidden_size 14336, n_head 112,
    // vocab_size 250880, seq_length 2048; ALiBi, MLP of 4 * hidden (modeling_bloom.py).
    {"bloom-176b", "bloom", 70, 14336, 112, 112, 57344, 250880, 2048, false, false, true, true,
     true, true, false},
    // huggingface.co/bigcode/starcoder, config.json: n_layer 40, n_embd 6144, n_head 48,
    // multi_query true, n_inner 24576, vocab_size 49152, n_positions 8192.
    {"starcoder-15.5b", "gpt_bigcode", 40, 6144, 48, 1, 24576, 49152, 8192, false, false, true,
     true, false, true, true},
    // huggingface.co/meta-llama/Meta-Llama-3-8B, config.json: num_hidden_layers 32, hidden_size
    // 4096, num_attention_heads 32, num_key_value_heads 8, intermediate_size 14336, vocab_size
    // 128256, max_position_embeddings 8192.
    {"llama-3-8b", "llama", 32, 4096, 32, 8, 14336, 128256, 8192, true, true, false, false, false,
     false, false},
    // huggingface.co/meta-llama/Meta-Llama-3-70B, config.json: num_hidden_layers 80, hidden_size
    // 8192, num_attention_heads 64, num_key_value_heads 8, intermediate_size 28672, vocab_size
    // 128256, max_position_embeddings 8192.
    {"llama-3-70b", "llama", 80, 8192, 64, 8, 28672, 128256, 8192, true, true, false, false, false,
     false, false},
};

const KnownModel* FindKnown(const std::string& name) {
  for (const KnownModel& model : kKnownModels) {
    if (name == model.name) return &model;
  }
  return nullptr;
}

ModelSpec SpecOf(const KnownModel& model) {
  ModelSpec spec;
  spec.architecture = model.architecture;
  spec.name = model.name;
  spec.layers = model.layers;
  spec.hidden = model.hidden;
  spec.heads = model.heads;
  spec.kv_heads = model.kv_heads;
  spec.head_dim = model.hidden / model.heads;
  spec.ffn = model.ffn;
  spec.vocabulary = model.vocabulary;
  spec.context_length = model.context_length;
  spec.rope.dims = model.rope ? spec.head_dim : 0;
  spec.gated_mlp = model.gated_mlp;
  spec.norm = model.layer_norm ? NormKind::kLayer : NormKind::kRms;
  spec.embedding_norm = model.embedding_norm;
  spec.learned_positions = model.learned_positions;
  spec.tied_embeddings = model.tied;
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = model.biases;
  return spec;
}

ShapeSpec ShapeOfKnown(const KnownModel& model, DType dtype) {
  ShapeSpec shape;
  shape.spec = SpecOf(model);
  for (const auto& [role, layer] : ModelRoles(shape.spec)) {
    shape.weights.push_back(ShapeOfRole(shape.spec, role, layer, dtype));
  }
  return shape;
}

}  // namespace

WeightKind KindOf(Role role) {
  return RoleShapeOf(role).kind;
}

const char* WeightKindName(WeightKind kind) {
  static constexpr const char* kNames[kWeightKinds] = {"embedding", "attention", "MLP", "norms",
                                                       "LM head"};
  return kNames[static_cast<int>(kind)];
}

int64_t ShapeSpec::ParameterCount() const {
  int64_t count = 0;
  for (const WeightShape& weight : weights) {
    count += weight.shape[0] * (weight.matrix() ? weight.shape[1] : 1);
  }
  return count;
}

std::string ShapeSpec::MatrixDTypes() const {
  std::set<absl::string_view> names;
  for (const WeightShape& weight : weights) {
    if (weight.matrix()) names.insert(ToAbsl(DTypeName(weight.dtype)));
  }
  return absl::StrJoin(names, "+");
}

bool ShapeSpec::AllMatricesAreF32() const {
  return std::all_of(weights.begin(), weights.end(), [](const WeightShape& weight) {
    return !weight.matrix() || weight.dtype == DType::kF32;
  });
}

DType ShapeSpec::MatrixFloat() const {
  if (AllMatricesAreF32()) return DType::kF32;
  const auto some = [&](DType dtype) {
    return std::any_of(weights.begin(), weights.end(), [&](const WeightShape& weight) {
      return weight.matrix() && weight.dtype == dtype;
    });
  };
  return some(DType::kF16) && !some(DType::kBF16) ? DType::kF16 : DType::kBF16;
}

absl::StatusOr<ShapeSpec> ShapeOfCheckpoint(const Checkpoint& checkpoint) {
  ShapeSpec shape;
  shape.spec = checkpoint.spec();
  std::vector<const WeightBinding*> bindings;
  for (const WeightBinding& binding : checkpoint.weights()) bindings.push_back(&binding);
  // Roles are numbered in the order of computation, so what is stacked lies together.
  std::stable_sort(bindings.begin(), bindings.end(),
                   [](const WeightBinding* a, const WeightBinding* b) {
                     return std::pair(a->layer, a->role) < std::pair(b->layer, b->role);
                   });
  for (const WeightBinding* binding : bindings) {
    const TensorInfo* tensor = checkpoint.Find(binding->tensor);
    if (tensor == nullptr) {
      return absl::InternalError(absl::StrCat("tensor ", binding->tensor, " is bound to ",
                                              RoleName(binding->role, binding->layer),
                                              " but not in the checkpoint"));
    }
    shape.weights.push_back(ShapeOfRole(shape.spec, binding->role, binding->layer, tensor->dtype));
  }
  return shape;
}

std::string KnownShapeNames() {
  return absl::StrJoin(kKnownModels, ", ", [](std::string* out, const KnownModel& model) {
    absl::StrAppend(out, model.name);
  });
}

bool IsKnownShape(const std::string& name) {
  return FindKnown(name) != nullptr;
}

absl::StatusOr<ShapeSpec> KnownShape(const std::string& name, DType dtype) {
  const KnownModel* model = FindKnown(name);
  if (model == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("'", name, "' is no known model; known are ", KnownShapeNames()));
  }
  return WithMatrixDType(ShapeOfKnown(*model, dtype), dtype);
}

absl::StatusOr<ShapeSpec> WithMatrixDType(ShapeSpec shape, DType dtype) {
  for (WeightShape& weight : shape.weights) {
    if (!weight.matrix()) continue;
    if (weight.shape[1] % BlockValues(dtype) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a matrix of ", weight.shape[0], " x ", weight.shape[1], " cannot be ",
          ToAbsl(DTypeName(dtype)), ": rows are whole blocks of ", BlockValues(dtype), " values"));
    }
    weight.dtype = dtype;
  }
  return shape;
}

absl::StatusOr<ShapeSpec> WithWeightFormat(ShapeSpec shape, WeightFormat format) {
  for (WeightShape& weight : shape.weights) {
    if (!weight.matrix()) continue;
    weight.dtype = HeldDType(format, weight.dtype, IsProjection(weight.kind));
    if (weight.dtype == DType::kInt8 && weight.shape[1] > kMostInt8Columns) {
      return absl::InvalidArgumentError(
          absl::StrCat("--dtype int8: a matrix of ", weight.shape[0], " x ", weight.shape[1],
                       " has more inputs than the ", kMostInt8Columns, " its sums hold"));
    }
  }
  return shape;
}

int64_t HeldMatrix::bytes(bool on_gpu) const {
  return on_gpu ? CudaMatrixBytes(dtype, rows, columns, lead)
                : PackedMatrixBytes(dtype, rows, columns, lead);
}

HeldWeights HeldBy(const ShapeSpec& shape, const RankLayout& layout) {
  HeldWeights held;
  const WeightShape* last_vector = nullptr;
  for (const WeightShape& weight : shape.weights) {
    if (!Holds(weight.place, weight.split, weight.layer, layout)) continue;
    const Cut cut = CutOf(weight.split, weight.shape, shape.spec.head_dim, layout);
    if (!weight.matrix()) {
      const int64_t bytes = cut.rows.size() * static_cast<int64_t>(sizeof(float));
      held.vector_bytes[static_cast<int>(weight.kind)] += bytes;
      if (last_vector != nullptr && weight.stack != kNoStack &&
          last_vector->stack == weight.stack && last_vector->layer == weight.layer) {
        held.vectors.back() += bytes;
      } else {
        held.vectors.push_back(bytes);
      }
      last_vector = &weight;
      continue;
    }
    HeldMatrix matrix;
    matrix.kind = weight.kind;
    matrix.layer = weight.layer;
    matrix.stack = weight.stack;
    matrix.split = weight.split;
    matrix.dtype = weight.dtype;
    matrix.rows = cut.rows.size();
    matrix.columns = cut.columns.size();
    matrix.lead = static_cast<int>(cut.columns.begin % BlockValues(weight.dtype));
    HeldMatrix* above = held.matrices.empty() ? nullptr : &held.matrices.back();
    if (above != nullptr && matrix.stack != kNoStack && above->stack == matrix.stack &&
        above->layer == matrix.layer && above->dtype == matrix.dtype) {
      above->rows += matrix.rows;
    } else {
      held.matrices.push_back(matrix);
    }
  }
  return held;
}

}  // namespace pergola
