// The decoder described by data: what a family file makes of a configuration, and all that kernels
// and layout need. One decoder executes every family; what it cannot execute a family refuses by
// name and value.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pergola {

// Rotary embedding, half-split style of Hugging Face (dimension i pairs with i + dims/2); formula:
// Su et al., RoFormer, arXiv:2104.09864, section 3.4.2.
struct RopeSpec {
  int64_t dims = 0;  // rotated dimensions of a head, even, <= head_dim; 0: nothing is rotated
  // Angular frequency of pair i, radians per position; dims / 2 values. Scaling (linear, llama3,
  // yarn) is already applied.
  std::vector<float> inverse_frequency;
  double magnitude = 1;  // multiplies cosine and sine (yarn's attention factor)
};

enum class NormKind : uint8_t {
  kRms,    // Zhang and Sennrich, arXiv:1910.07467
  kLayer,  // Ba et al., arXiv:1607.06450, with a bias
};

// Of the MLP. GELU is Hendrycks and Gimpel's, arXiv:1606.08415: exact, or its tanh approximation.
enum class Activation : uint8_t { kSilu, kGeluTanh, kGeluErf };

struct ModelSpec {
  std::string architecture;  // "llama"
  std::string name;          // for people: general.name, _name_or_path or the directory's name
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads
  int64_t head_dim = 0;  // may differ from hidden / heads
  int64_t ffn = 0;
  int64_t vocabulary = 0;
  int64_t context_length = 0;

  NormKind norm = NormKind::kRms;
  float norm_epsilon = 0;
  bool norm_plus_one = false;   // the file holds w - 1 of every RMSNorm (Gemma)
  bool embedding_norm = false;  // of what the embedding gives (BLOOM)
  bool post_norms = false;      // of what attention and MLP give, before it is added (Gemma)
  bool head_norms = false;      // RMSNorm of each head of q and k, before they are rotated (Qwen3)
  // What attention and MLP give is added to the norm's output and not to its input (BLOOM's
  // apply_residual_connection_post_layernorm).
  bool residual_after_norm = false;

  // Positions: any of these.
  RopeSpec rope;
  RopeSpec local_rope;              // of the windowed layers if it has dims; else `rope` is
  std::vector<float> alibi_slopes;  // [heads]; empty: none (Press et al., arXiv:2108.12409)
  bool learned_positions = false;   // a row of a table of context_length is added to the embedding

  float attention_scale = 0;             // multiplies q.k
  bool scale_by_layer = false;           // layer i multiplies q.k by attention_scale / (i + 1)
  int64_t sliding_window = 0;            // positions a token sees, itself included; 0: all
  std::vector<uint8_t> windowed_layers;  // [layers] 1: has the window; empty: every layer has it

  Activation activation = Activation::kSilu;
  bool gated_mlp = true;         // down(act(gate x) * up x); else down(act(up x))
  bool tied_embeddings = false;  // the LM head is the token embedding
  float embedding_scale = 1;     // multiplies the embedding
  float logit_cap = 0;           // c: logits become c tanh(logits / c); 0: they stay
  bool qkv_bias = false;
  bool output_bias = false;  // of the attention output projection
  bool mlp_bias = false;

  // Of one layer.
  int64_t WindowOf(int64_t layer) const { return Windowed(layer) ? sliding_window : 0; }
  bool UsesLocalRope(int64_t layer) const { return local_rope.dims > 0 && Windowed(layer); }
  float ScaleOf(int64_t layer) const {
    return scale_by_layer ? attention_scale / static_cast<float>(layer + 1) : attention_scale;
  }

 private:
  bool Windowed(int64_t layer) const {
    return sliding_window > 0 &&
           (windowed_layers.empty() || windowed_layers[static_cast<size_t>(layer)] != 0);
  }
};

// What a weight is for, in the order of computation.
enum class Role : uint8_t {
  kTokenEmbedding,     // [vocabulary, hidden]
  kPositionEmbedding,  // [context_length, hidden]
  kEmbeddingNorm,      // [hidden]
  kEmbeddingNormBias,
  kAttentionNorm,  // [hidden]
  kAttentionNormBias,
  kQuery,      // [heads * head_dim, hidden]
  kKey,        // [kv_heads * head_dim, hidden]
  kValue,      // [kv_heads * head_dim, hidden]
  kQueryBias,  // [heads * head_dim]
  kKeyBias,
  kValueBias,
  kQueryNorm,  // [head_dim]
  kKeyNorm,
  kAttentionOutput,      // [hidden, heads * head_dim]
  kAttentionOutputBias,  // [hidden], added once per stage
  kAttentionPostNorm,    // [hidden]
  kMlpNorm,              // [hidden]
  kMlpNormBias,
  kGate,      // [ffn, hidden]
  kUp,        // [ffn, hidden]
  kGateBias,  // [ffn]
  kUpBias,
  kDown,         // [hidden, ffn]
  kDownBias,     // [hidden], added once per stage
  kMlpPostNorm,  // [hidden]
  kFinalNorm,    // [hidden]
  kFinalNormBias,
  kLmHead,  // [vocabulary, hidden]; absent if tied
};

// How a weight is dealt to the tensor-parallel ranks of a stage.
enum class Split : uint8_t {
  kReplicated,
  kQueryHeadRows,     // output rows, by query head
  kKvHeadRows,        // output rows, by KV head, replicated where two ranks need the same head
  kQueryHeadColumns,  // input columns, by query head
  kFfnRows,
  kFfnColumns,
  kVocabularyRows,
  kPositionRows,
  kFirstRank,  // tp_rank 0 holds it whole, the others nothing: a row-parallel bias, added once
};
Split SplitOf(Role role);

// Which stages hold a weight.
enum class WeightPlace : uint8_t {
  kFirstStage,
  kLastStage,
  kBothEnds,  // a tied embedding; once where both are one stage
  kLayer,     // the stage that holds its layer
};
WeightPlace PlaceOf(const ModelSpec& spec, Role role);

// "layers.3.attention.query": for messages.
std::string RoleName(Role role, int64_t layer);
bool IsNorm(Role role);
// The shape a weight of this role has, outermost first.
std::vector<int64_t> ShapeOf(const ModelSpec& spec, Role role);
// The weights every layer of this model has, in the order of computation.
std::vector<Role> LayerRoles(const ModelSpec& spec);
// Every weight of this model and its layer (-1: not in a layer), in the order of computation.
std::vector<std::pair<Role, int64_t>> ModelRoles(const ModelSpec& spec);

// The order of rows within a head in the file.
enum class RowOrder : uint8_t {
  kPlain,
  kGgufInterleavedRope,  // llama.cpp's q and k: within a head, row 2i+j holds Hugging Face's row i
                         // + j*head_dim/2
};

// Which rows of its tensor a weight is: runs of `group` rows, each beginning `stride` rows after
// the one before, from row `first` on. Fused q, k and v are three weights of one tensor.
struct TensorRows {
  int64_t first = 0;
  int64_t group = 0;  // 0: one run of all rows
  int64_t stride = 0;

  int64_t Of(int64_t row) const {
    return first + (group == 0 ? row : row / group * stride + row % group);
  }
};

// One weight of the model and where the checkpoint holds it.
struct WeightBinding {
  Role role;
  int64_t layer = -1;          // -1: not in a layer
  std::string tensor;          // name in the checkpoint
  std::vector<int64_t> shape;  // outermost first: [rows, columns] or [rows]
  RowOrder row_order = RowOrder::kPlain;
  TensorRows rows = {};
  bool transposed = false;  // the tensor is [columns, rows of all weights it holds]
};

}  // namespace pergola
