// The decoder described by data: what a family file makes of a configuration, and all that kernels
// and layout need. One decoder executes every family; what it cannot execute a family refuses by
// name and value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pergola {

// Rotary embedding, half-split style of Hugging Face (dimension i pairs with i + dims/2); formula:
// Su et al., RoFormer, arXiv:2104.09864, section 3.4.2.
struct RopeSpec {
  int64_t dims = 0;  // rotated dimensions of a head, even, <= head_dim
  // Angular frequency of pair i, radians per position; dims / 2 values. Scaling (linear, llama3) is
  // already applied.
  std::vector<float> inverse_frequency;
};

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
  float norm_epsilon = 0;  // RMSNorm
  RopeSpec rope;
  float attention_scale = 0;     // multiplies q.k
  int64_t sliding_window = 0;    // positions a token sees, itself included; 0: all
  bool tied_embeddings = false;  // the LM head is the token embedding
  bool qkv_bias = false;
  bool output_bias = false;  // of the attention output projection
  bool mlp_bias = false;
};

// What a weight is for.
enum class Role : uint8_t {
  kTokenEmbedding,  // [vocabulary, hidden]
  kAttentionNorm,   // [hidden]
  kQuery,           // [heads * head_dim, hidden]
  kKey,             // [kv_heads * head_dim, hidden]
  kValue,           // [kv_heads * head_dim, hidden]
  kQueryBias,       // [heads * head_dim]
  kKeyBias,
  kValueBias,
  kAttentionOutput,      // [hidden, heads * head_dim]
  kAttentionOutputBias,  // [hidden], added once per stage
  kMlpNorm,              // [hidden]
  kGate,                 // [ffn, hidden]
  kUp,                   // [ffn, hidden]
  kDown,                 // [hidden, ffn]
  kGateBias,             // [ffn]
  kUpBias,
  kDownBias,   // [hidden], added once per stage
  kFinalNorm,  // [hidden]
  kLmHead,     // [vocabulary, hidden]; absent if tied
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
};
Split SplitOf(Role role);
// "layers.3.attention.query": for messages.
std::string RoleName(Role role, int64_t layer);
// The shape a weight of this role has, outermost first.
std::vector<int64_t> ShapeOf(const ModelSpec& spec, Role role);
// The weights every layer of this model has, in the order of computation.
std::vector<Role> LayerRoles(const ModelSpec& spec);

// The order of rows in the file.
enum class RowOrder : uint8_t {
  kPlain,
  kGgufInterleavedRope,  // llama.cpp's q and k: within a head, row 2i+j holds Hugging Face's row i
                         // + j*head_dim/2
};

// One weight of the model and the tensor of the checkpoint that holds it.
struct WeightBinding {
  Role role;
  int64_t layer = -1;          // -1: not in a layer
  std::string tensor;          // name in the checkpoint
  std::vector<int64_t> shape;  // outermost first: [rows, columns] or [rows]
  RowOrder row_order = RowOrder::kPlain;
};

}  // namespace pergola
