#include "worker/weights/loader.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/cut.h"
#include "worker/weights/finite.h"

namespace pergola {
namespace {

// Large enough that a read costs its bytes and not its call, small beside any model.
constexpr int64_t kChunkBytes = 4 << 20;

// A weight this rank needs, where it lies and which part of it.
struct Item {
  const WeightBinding* binding = nullptr;
  const TensorInfo* tensor = nullptr;
  Cut cut;
  int64_t tensor_columns = 1;

  bool matrix() const { return binding->shape.size() == 2; }
  DType dtype() const { return tensor->dtype; }
  int64_t row_bytes() const { return DTypeBytes(dtype(), tensor_columns); }
  int64_t read_bytes() const { return cut.rows.size() * row_bytes(); }
  // Values of the first block that lie before the cut.
  int lead() const { return static_cast<int>(cut.columns.begin % BlockValues(dtype())); }
};

bool Packable(DType dtype) {
  return dtype != DType::kI32;
}

absl::StatusOr<Item> MakeItem(const Checkpoint& checkpoint, const RankLayout& layout,
                              const WeightBinding& binding) {
  Item item;
  item.binding = &binding;
  item.tensor = checkpoint.Find(binding.tensor);
  if (item.tensor == nullptr) {
    return absl::InternalError(absl::StrCat("tensor ", binding.tensor, " is bound to ",
                                            RoleName(binding.role, binding.layer),
                                            " but not in the checkpoint"));
  }
  const bool matrix = binding.shape.size() == 2;
  const DType dtype = item.tensor->dtype;
  if (matrix ? !Packable(dtype) : (BlockValues(dtype) != 1 || dtype == DType::kI32)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", binding.tensor, " is ", ToAbsl(DTypeName(dtype)), ", which ",
                     RoleName(binding.role, binding.layer), " cannot be"));
  }
  item.tensor_columns = matrix ? binding.shape[1] : 1;
  item.cut = CutOf(binding, checkpoint.spec(), layout);
  if (item.tensor_columns % BlockValues(dtype) != 0 ||
      item.tensor->bytes != binding.shape[0] * item.row_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", binding.tensor, " has ", item.tensor->bytes, " bytes, not the ",
        binding.shape[0], " rows of ", item.tensor_columns, " ", ToAbsl(DTypeName(dtype)),
        " values of ", RoleName(binding.role, binding.layer)));
  }
  return item;
}

absl::StatusOr<std::vector<Item>> ItemsOf(const Checkpoint& checkpoint, const RankLayout& layout) {
  std::vector<Item> items;
  for (const WeightBinding& binding : checkpoint.weights()) {
    if (!Holds(binding, checkpoint.spec(), layout)) continue;
    ASSIGN_OR_RETURN(Item item, MakeItem(checkpoint, layout, binding));
    items.push_back(item);
  }
  return items;
}

// Source rows in the order in which they were read, as runs that PackRows takes: `count` output
// rows from `first_row` on, the source of each `stride_rows` file rows after the one before,
// beginning with file row `source`.
struct Run {
  int64_t first_row, count, source, stride_rows;
};

// Rows [begin, begin + count) of the cut, whole heads if the file has them interleaved.
std::vector<Run> RunsOf(RowOrder order, int64_t begin, int64_t count, int64_t head_dim) {
  if (order == RowOrder::kPlain) return {Run{begin, count, 0, 1}};
  std::vector<Run> runs;
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < count / head_dim; ++head) {
    // File row 2i + j is row i + j * half.
    runs.push_back(Run{begin + head * head_dim, half, head * head_dim, 2});
    runs.push_back(Run{begin + head * head_dim + half, half, head * head_dim + 1, 2});
  }
  return runs;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const RankLayout& layout, std::vector<Item> items,
         const ByteProgress& progress)
      : checkpoint_(checkpoint), layout_(layout), items_(std::move(items)), progress_(progress) {
    for (const Item& item : items_) {
      bytes_total_ += item.read_bytes();
      by_role_[{item.binding->role, item.binding->layer}] = &item;
    }
  }

  absl::StatusOr<StageWeights> Load();

 private:
  const Item* Find(Role role, int64_t layer) const {
    const auto found = by_role_.find({role, layer});
    return found == by_role_.end() ? nullptr : found->second;
  }
  absl::StatusOr<const Item*> Need(Role role, int64_t layer) const;
  absl::StatusOr<LayerWeights> LoadLayer(int64_t layer);
  absl::StatusOr<PackedMatrix> LoadMatrix(Role role);
  absl::StatusOr<Projection> LoadProjection(int64_t layer, const std::vector<Role>& roles,
                                            const std::vector<Role>& bias_roles);
  absl::StatusOr<std::vector<float>> LoadVector(const Item& item);
  absl::StatusOr<std::vector<float>> LoadNorm(Role role, int64_t layer);
  absl::Status Pack(const Item& item, PackedMatrix* matrix, int64_t first_row);
  absl::Status ReadRows(const Item& item, int64_t first, int64_t count);
  absl::Status CheckFinite(const Item& item, int64_t first, int64_t count) const;
  std::string Dtypes() const;

  const Checkpoint& checkpoint_;
  const RankLayout& layout_;
  const std::vector<Item> items_;
  const ByteProgress& progress_;
  absl::flat_hash_map<std::pair<Role, int64_t>, const Item*> by_role_;
  std::vector<uint8_t> chunk_;
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
};

absl::StatusOr<const Item*> Loader::Need(Role role, int64_t layer) const {
  const Item* item = Find(role, layer);
  if (item != nullptr) return item;
  return absl::InvalidArgumentError(absl::StrCat("the checkpoint has no ", RoleName(role, layer)));
}

// Fills chunk_ with rows [first, first + count) of the cut, in file order.
absl::Status Loader::ReadRows(const Item& item, int64_t first, int64_t count) {
  const int64_t bytes = count * item.row_bytes();
  if (static_cast<int64_t>(chunk_.size()) < bytes) chunk_.resize(bytes);
  RETURN_IF_ERROR(checkpoint_.Read(*item.tensor, (item.cut.rows.begin + first) * item.row_bytes(),
                                   absl::MakeSpan(chunk_.data(), bytes)));
  bytes_done_ += bytes;
  if (progress_) progress_(bytes_done_, bytes_total_);
  return CheckFinite(item, first, count);
}

absl::Status Loader::CheckFinite(const Item& item, int64_t first, int64_t count) const {
  const int64_t block = BlockValues(item.dtype());
  const int64_t begin = item.cut.columns.begin / block * block;
  const int64_t end = (item.cut.columns.end + block - 1) / block * block;
  // Rows that are held whole are one stretch of values.
  const bool whole = begin == 0 && end == item.tensor_columns;
  const int64_t stretches = whole ? 1 : count;
  const int64_t values = whole ? count * item.tensor_columns : end - begin;
  for (int64_t i = 0; i < stretches; ++i) {
    const uint8_t* source = chunk_.data() + i * item.row_bytes() + DTypeBytes(item.dtype(), begin);
    const int64_t bad = FirstNonFinite(item.dtype(), source, values);
    if (bad < 0) continue;
    const int64_t row = item.cut.rows.begin + first + i + bad / item.tensor_columns;
    const int64_t column = begin + bad % item.tensor_columns;
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", item.binding->tensor, " has a NaN or Inf at row ", row, ", ",
        block > 1 ? "in the block of column " : "column ", column, "; weights must be finite"));
  }
  return absl::OkStatus();
}

absl::Status Loader::Pack(const Item& item, PackedMatrix* matrix, int64_t first_row) {
  const int64_t head_dim = checkpoint_.spec().head_dim;
  const int64_t unit = item.binding->row_order == RowOrder::kPlain ? 1 : head_dim;
  const int64_t step = std::max<int64_t>(1, kChunkBytes / (item.row_bytes() * unit)) * unit;
  const int64_t skip =
      item.cut.columns.begin / BlockValues(item.dtype()) * BlockBytes(item.dtype());
  for (int64_t row = 0; row < item.cut.rows.size(); row += step) {
    const int64_t count = std::min(step, item.cut.rows.size() - row);
    RETURN_IF_ERROR(ReadRows(item, row, count));
    for (const Run& run : RunsOf(item.binding->row_order, first_row + row, count, head_dim)) {
      matrix->PackRows(run.first_row, run.count,
                       chunk_.data() + run.source * item.row_bytes() + skip,
                       run.stride_rows * item.row_bytes());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> Loader::LoadVector(const Item& item) {
  const int64_t count = item.cut.rows.size();
  RETURN_IF_ERROR(ReadRows(item, 0, count));
  std::vector<float> values(count);
  for (const Run& run : RunsOf(item.binding->row_order, 0, count, checkpoint_.spec().head_dim)) {
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t source = run.source + i * run.stride_rows;
      DecodeToF32(item.dtype(), chunk_.data() + source * item.row_bytes(), 1,
                  &values[run.first_row + i]);
    }
  }
  return values;
}

absl::StatusOr<std::vector<float>> Loader::LoadNorm(Role role, int64_t layer) {
  ASSIGN_OR_RETURN(const Item* item, Need(role, layer));
  return LoadVector(*item);
}

absl::StatusOr<PackedMatrix> Loader::LoadMatrix(Role role) {
  ASSIGN_OR_RETURN(const Item* item, Need(role, -1));
  PackedMatrix matrix = PackedMatrix::Allocate(item->dtype(), item->cut.rows.size(),
                                               item->cut.columns.size(), item->lead());
  RETURN_IF_ERROR(Pack(*item, &matrix, 0));
  return matrix;
}

absl::StatusOr<Projection> Loader::LoadProjection(int64_t layer, const std::vector<Role>& roles,
                                                  const std::vector<Role>& bias_roles) {
  Projection projection;
  std::vector<const Item*> items;
  for (Role role : roles) {
    ASSIGN_OR_RETURN(const Item* item, Need(role, layer));
    items.push_back(item);
  }
  projection.columns = items[0]->cut.columns.size();
  for (size_t begin = 0; begin < items.size();) {
    size_t end = begin;
    int64_t rows = 0;
    for (; end < items.size() && items[end]->dtype() == items[begin]->dtype(); ++end) {
      rows += items[end]->cut.rows.size();
    }
    PackedMatrix matrix = PackedMatrix::Allocate(items[begin]->dtype(), rows, projection.columns,
                                                 items[begin]->lead());
    int64_t first_row = 0;
    for (; begin < end; ++begin) {
      RETURN_IF_ERROR(Pack(*items[begin], &matrix, first_row));
      first_row += items[begin]->cut.rows.size();
    }
    projection.rows += rows;
    projection.parts.push_back(std::move(matrix));
  }
  int64_t first_row = 0;
  for (size_t i = 0; i < bias_roles.size(); ++i) {
    const Item* bias = Find(bias_roles[i], layer);
    if (bias != nullptr) {
      projection.bias.resize(projection.rows);
      ASSIGN_OR_RETURN(const std::vector<float> values, LoadVector(*bias));
      std::copy(values.begin(), values.end(), projection.bias.begin() + first_row);
    }
    first_row += items[i]->cut.rows.size();
  }
  return projection;
}

absl::StatusOr<LayerWeights> Loader::LoadLayer(int64_t layer) {
  LayerWeights weights;
  ASSIGN_OR_RETURN(weights.attention_norm, LoadNorm(Role::kAttentionNorm, layer));
  ASSIGN_OR_RETURN(weights.qkv,
                   LoadProjection(layer, {Role::kQuery, Role::kKey, Role::kValue},
                                  {Role::kQueryBias, Role::kKeyBias, Role::kValueBias}));
  ASSIGN_OR_RETURN(weights.output,
                   LoadProjection(layer, {Role::kAttentionOutput}, {Role::kAttentionOutputBias}));
  ASSIGN_OR_RETURN(weights.mlp_norm, LoadNorm(Role::kMlpNorm, layer));
  ASSIGN_OR_RETURN(weights.gate_up, LoadProjection(layer, {Role::kGate, Role::kUp},
                                                   {Role::kGateBias, Role::kUpBias}));
  ASSIGN_OR_RETURN(weights.down, LoadProjection(layer, {Role::kDown}, {Role::kDownBias}));
  return weights;
}

std::string Loader::Dtypes() const {
  std::set<absl::string_view> names;
  for (const Item& item : items_) {
    if (item.matrix()) names.insert(ToAbsl(DTypeName(item.dtype())));
  }
  return absl::StrJoin(names, "+");
}

absl::StatusOr<StageWeights> Loader::Load() {
  StageWeights weights;
  weights.layers = layout_.layers;
  weights.dtypes = Dtypes();
  const bool tied = checkpoint_.spec().tied_embeddings;
  if (layout_.first_stage()) {
    ASSIGN_OR_RETURN(weights.embedding, LoadMatrix(Role::kTokenEmbedding));
  }
  for (int64_t layer = layout_.layers.begin; layer < layout_.layers.end; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights layer_weights, LoadLayer(layer));
    weights.layer_weights.push_back(std::move(layer_weights));
  }
  if (layout_.last_stage()) {
    ASSIGN_OR_RETURN(weights.final_norm, LoadNorm(Role::kFinalNorm, -1));
    weights.head_is_embedding = tied && layout_.first_stage();
    if (!weights.head_is_embedding) {
      ASSIGN_OR_RETURN(weights.head, LoadMatrix(tied ? Role::kTokenEmbedding : Role::kLmHead));
    }
  }
  return weights;
}

}  // namespace

absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout,
                                              const ByteProgress& progress) {
  ASSIGN_OR_RETURN(std::vector<Item> items, ItemsOf(checkpoint, layout));
  return Loader(checkpoint, layout, std::move(items), progress).Load();
}

}  // namespace pergola
