#include "worker/weights/loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/cut.h"
#include "model/packed_size.h"
#include "model/shape_spec.h"
#include "worker/weights/convert.h"
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
  int64_t tensor_columns = 1;  // of one row of the file
  DType held = DType::kF32;    // of a matrix: what it is packed as

  bool matrix() const { return binding->shape.size() == 2; }
  DType dtype() const { return tensor->dtype; }
  bool converted() const { return matrix() && held != dtype(); }
  int64_t columns() const { return matrix() ? binding->shape[1] : 1; }
  // What must be read of each row: to be rounded, all of it.
  Range read_columns() const { return converted() ? Range{0, columns()} : cut.columns; }
  int64_t row_bytes() const { return DTypeBytes(dtype(), tensor_columns); }
  int64_t read_bytes() const {
    return (binding->transposed ? read_columns() : cut.rows).size() * row_bytes();
  }
  // The row of the tensor that holds row `row` of the cut (its column, if it is transposed).
  int64_t TensorRow(int64_t row) const { return binding->rows.Of(cut.rows.begin + row); }
  // How many rows of the cut, from `row` on, lie one after the other, at most `most`.
  int64_t Together(int64_t row, int64_t most) const {
    const int64_t group = binding->rows.group;
    const int64_t left = cut.rows.size() - row;
    return std::min({most, left, group == 0 ? left : group - (cut.rows.begin + row) % group});
  }
  // Values of the first block that lie before the cut.
  int lead() const { return static_cast<int>(cut.columns.begin % BlockValues(held)); }
};

bool Packable(DType dtype) {
  return dtype != DType::kI32;
}

absl::StatusOr<Item> MakeItem(const Checkpoint& checkpoint, const RankLayout& layout,
                              const WeightBinding& binding, WeightFormat format) {
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
  item.held = HeldDType(format, dtype, IsProjection(KindOf(binding.role)));
  if (matrix && item.held == DType::kInt8 && binding.shape[1] > kMostInt8Columns) {
    return absl::InvalidArgumentError(
        absl::StrCat("--dtype int8: tensor ", binding.tensor, " has ", binding.shape[1],
                     " inputs; sums of int8 products hold at most ", kMostInt8Columns));
  }
  item.tensor_columns = matrix ? item.tensor->shape[1] : 1;
  item.cut = CutOf(binding, checkpoint.spec(), layout);
  const int64_t file_rows = item.tensor->shape[0];
  if (item.tensor_columns % BlockValues(dtype) != 0 ||
      item.tensor->bytes != file_rows * item.row_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", binding.tensor, " has ", item.tensor->bytes, " bytes, not the ",
                     file_rows, " rows of ", item.tensor_columns, " ", ToAbsl(DTypeName(dtype)),
                     " values of ", RoleName(binding.role, binding.layer)));
  }
  if (binding.transposed && BlockValues(dtype) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", binding.tensor, " is ", ToAbsl(DTypeName(dtype)),
        ", whose blocks cannot be transposed to be ", RoleName(binding.role, binding.layer)));
  }
  return item;
}

absl::StatusOr<std::vector<Item>> ItemsOf(const Checkpoint& checkpoint, const RankLayout& layout,
                                          WeightFormat format) {
  std::vector<Item> items;
  for (const WeightBinding& binding : checkpoint.weights()) {
    if (!Holds(binding, checkpoint.spec(), layout)) continue;
    ASSIGN_OR_RETURN(Item item, MakeItem(checkpoint, layout, binding, format));
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

// Rows in memory, as runs count them: row `first` of the cut and those after it, each from column
// `first_column` of the tensor on.
struct Chunk {
  const uint8_t* data = nullptr;
  int64_t row_bytes = 0;
  int64_t first = 0;
  int64_t first_column = 0;
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
         Stream& stream, const ByteProgress& progress)
      : checkpoint_(checkpoint),
        layout_(layout),
        items_(std::move(items)),
        stream_(stream),
        progress_(progress) {
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
  absl::StatusOr<NormWeights> LoadNorm(Role role, std::optional<Role> bias, int64_t layer);
  absl::Status LoadLayerNorms(int64_t layer, LayerWeights* weights);
  absl::Status Pack(const Item& item, PackedMatrix* matrix, int64_t first_row);
  absl::Status PackTransposed(const Item& item, PackedMatrix* matrix, int64_t first_row);
  absl::Status PackRun(const Item& item, const Run& run, const Chunk& chunk, PackedMatrix* matrix);
  absl::Status ReadFile(const Item& item, int64_t first, int64_t count);
  absl::Status ReadRows(const Item& item, int64_t first, int64_t count);
  absl::Status CheckFinite(const Item& item, int64_t first, int64_t count) const;
  std::string Dtypes() const;

  const Checkpoint& checkpoint_;
  const RankLayout& layout_;
  const std::vector<Item> items_;
  Stream& stream_;
  const ByteProgress& progress_;
  absl::flat_hash_map<std::pair<Role, int64_t>, const Item*> by_role_;
  std::vector<uint8_t> chunk_;
  std::vector<uint8_t> converted_;  // rows of a chunk, in the held dtype
  std::vector<float> row_;
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
};

absl::StatusOr<const Item*> Loader::Need(Role role, int64_t layer) const {
  const Item* item = Find(role, layer);
  if (item != nullptr) return item;
  return absl::InvalidArgumentError(absl::StrCat("the checkpoint has no ", RoleName(role, layer)));
}

// Fills chunk_ with rows [first, first + count) of the tensor.
absl::Status Loader::ReadFile(const Item& item, int64_t first, int64_t count) {
  const int64_t bytes = count * item.row_bytes();
  if (static_cast<int64_t>(chunk_.size()) < bytes) chunk_.resize(bytes);
  RETURN_IF_ERROR(checkpoint_.Read(*item.tensor, first * item.row_bytes(),
                                   absl::MakeSpan(chunk_.data(), bytes)));
  bytes_done_ += bytes;
  if (progress_) progress_(bytes_done_, bytes_total_);
  return absl::OkStatus();
}

// Fills chunk_ with rows [first, first + count) of the cut, which lie together, in file order.
absl::Status Loader::ReadRows(const Item& item, int64_t first, int64_t count) {
  RETURN_IF_ERROR(ReadFile(item, item.TensorRow(first), count));
  return CheckFinite(item, first, count);
}

absl::Status NotFinite(const Item& item, int64_t row, int64_t column) {
  const bool block = BlockValues(item.dtype()) > 1;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", item.binding->tensor, " has a NaN or Inf at row ", row, ", ",
      block ? "in the block of column " : "column ", column, "; weights must be finite"));
}

absl::Status Loader::CheckFinite(const Item& item, int64_t first, int64_t count) const {
  const int64_t block = BlockValues(item.dtype());
  const Range columns = item.read_columns();
  const int64_t begin = columns.begin / block * block;
  const int64_t end = (columns.end + block - 1) / block * block;
  // Rows that are held whole are one stretch of values.
  const bool whole = begin == 0 && end == item.tensor_columns;
  const int64_t stretches = whole ? 1 : count;
  const int64_t values = whole ? count * item.tensor_columns : end - begin;
  for (int64_t i = 0; i < stretches; ++i) {
    const uint8_t* source = chunk_.data() + i * item.row_bytes() + DTypeBytes(item.dtype(), begin);
    const int64_t bad = FirstNonFinite(item.dtype(), source, values);
    if (bad < 0) continue;
    return NotFinite(item, item.TensorRow(first) + i + bad / item.tensor_columns,
                     begin + bad % item.tensor_columns);
  }
  return absl::OkStatus();
}

absl::Status NotHeld(const Item& item, const std::vector<float>& row, int64_t output,
                     int64_t column) {
  const bool group = BlockValues(item.held) > 1;
  int64_t at = column;
  // Of a group the largest value by size says why.
  for (int64_t k = column; group && k < std::min<int64_t>(column + 32, item.columns()); ++k) {
    if (std::abs(row[k]) > std::abs(row[at])) at = k;
  }
  const int64_t line = item.TensorRow(output);
  const bool turned = item.binding->transposed;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", item.binding->tensor, " has ", row[at], " at row ", turned ? at : line,
      ", column ", turned ? line : at, ", which ", group ? "a group of " : "",
      ToAbsl(DTypeName(item.held)), " cannot hold; use --dtype auto or f32"));
}

// A run of rows as they are in the file, or through f32 as they are held.
absl::Status Loader::PackRun(const Item& item, const Run& run, const Chunk& chunk,
                             PackedMatrix* matrix) {
  if (!item.converted()) {
    const int64_t block = BlockValues(item.dtype());
    const int64_t begin = item.cut.columns.begin - chunk.first_column;
    matrix->PackRows(
        run.first_row, run.count,
        chunk.data + run.source * chunk.row_bytes + begin / block * BlockBytes(item.dtype()),
        run.stride_rows * chunk.row_bytes);
    return absl::OkStatus();
  }
  const int64_t columns = item.columns();
  const int64_t out_bytes = ConvertedRowBytes(item.held, item.cut.columns);
  converted_.resize(run.count * out_bytes);
  row_.resize(columns);
  for (int64_t i = 0; i < run.count; ++i) {
    const int64_t row = run.source + i * run.stride_rows;
    DecodeToF32(item.dtype(), chunk.data + row * chunk.row_bytes, columns, row_.data());
    const int64_t bad = ConvertRow(row_.data(), columns, item.cut.columns, item.held,
                                   converted_.data() + i * out_bytes);
    if (bad >= 0) return NotHeld(item, row_, chunk.first + row, bad);
  }
  matrix->PackRows(run.first_row, run.count, converted_.data(), out_bytes);
  return absl::OkStatus();
}

// The tensor is [inputs, outputs]: its rows are read one after the other and dealt to the rows of
// the weight, which are packed once all are there. So one matrix of one rank lies here beside its
// packed form for a moment; only GPT-2's files are like that.
absl::Status Loader::PackTransposed(const Item& item, PackedMatrix* matrix, int64_t first_row) {
  const int64_t size = DTypeBytes(item.dtype(), 1);
  const int64_t rows = item.cut.rows.size();
  const Range read = item.read_columns();
  const int64_t columns = read.size();
  const int64_t step = std::max<int64_t>(1, kChunkBytes / item.row_bytes());
  std::vector<uint8_t> turned(rows * columns * size);
  for (int64_t first = 0; first < columns; first += step) {
    const int64_t count = std::min(step, columns - first);
    RETURN_IF_ERROR(ReadFile(item, read.begin + first, count));
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* from = chunk_.data() + item.TensorRow(row) * size;
      uint8_t* to = turned.data() + (row * columns + first) * size;
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * size, from + i * item.row_bytes(), size);
      }
    }
  }
  const int64_t bad = FirstNonFinite(item.dtype(), turned.data(), rows * columns);
  if (bad >= 0) {
    return NotFinite(item, read.begin + bad % columns, item.TensorRow(bad / columns));
  }
  return PackRun(item, Run{first_row, rows, 0, 1},
                 Chunk{turned.data(), columns * size, 0, read.begin}, matrix);
}

absl::Status Loader::Pack(const Item& item, PackedMatrix* matrix, int64_t first_row) {
  if (item.binding->transposed) return PackTransposed(item, matrix, first_row);
  const int64_t head_dim = checkpoint_.spec().head_dim;
  const int64_t unit = item.binding->row_order == RowOrder::kPlain ? 1 : head_dim;
  const int64_t step = std::max<int64_t>(1, kChunkBytes / (item.row_bytes() * unit)) * unit;
  for (int64_t row = 0; row < item.cut.rows.size();) {
    const int64_t count = item.Together(row, step);
    RETURN_IF_ERROR(ReadRows(item, row, count));
    for (const Run& run : RunsOf(item.binding->row_order, first_row + row, count, head_dim)) {
      RETURN_IF_ERROR(PackRun(item, run, Chunk{chunk_.data(), item.row_bytes(), row, 0}, matrix));
    }
    row += count;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> Loader::LoadVector(const Item& item) {
  const int64_t total = item.cut.rows.size();
  std::vector<float> values(total);
  for (int64_t row = 0; row < total;) {
    const int64_t count = item.Together(row, total);
    RETURN_IF_ERROR(ReadRows(item, row, count));
    for (const Run& run :
         RunsOf(item.binding->row_order, row, count, checkpoint_.spec().head_dim)) {
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t source = run.source + i * run.stride_rows;
        DecodeToF32(item.dtype(), chunk_.data() + source * item.row_bytes(), 1,
                    &values[run.first_row + i]);
      }
    }
    row += count;
  }
  return values;
}

// Nothing where the model has no such norm.
absl::StatusOr<NormWeights> Loader::LoadNorm(Role role, std::optional<Role> bias, int64_t layer) {
  NormWeights norm;
  const Item* item = Find(role, layer);
  if (item == nullptr) return norm;
  ASSIGN_OR_RETURN(std::vector<float> weight, LoadVector(*item));
  if (checkpoint_.spec().norm_plus_one) {
    for (float& value : weight) value += 1;
  }
  norm.weight = DeviceVector<float>(stream_, weight);
  const Item* bias_item = bias.has_value() ? Find(*bias, layer) : nullptr;
  if (bias_item == nullptr) return norm;
  ASSIGN_OR_RETURN(const std::vector<float> values, LoadVector(*bias_item));
  norm.bias = DeviceVector<float>(stream_, values);
  return norm;
}

absl::Status Loader::LoadLayerNorms(int64_t layer, LayerWeights* weights) {
  RETURN_IF_ERROR(Need(Role::kAttentionNorm, layer).status());
  RETURN_IF_ERROR(Need(Role::kMlpNorm, layer).status());
  ASSIGN_OR_RETURN(weights->attention_norm,
                   LoadNorm(Role::kAttentionNorm, Role::kAttentionNormBias, layer));
  ASSIGN_OR_RETURN(weights->query_norm, LoadNorm(Role::kQueryNorm, std::nullopt, layer));
  ASSIGN_OR_RETURN(weights->key_norm, LoadNorm(Role::kKeyNorm, std::nullopt, layer));
  ASSIGN_OR_RETURN(weights->attention_post_norm,
                   LoadNorm(Role::kAttentionPostNorm, std::nullopt, layer));
  ASSIGN_OR_RETURN(weights->mlp_norm, LoadNorm(Role::kMlpNorm, Role::kMlpNormBias, layer));
  ASSIGN_OR_RETURN(weights->mlp_post_norm, LoadNorm(Role::kMlpPostNorm, std::nullopt, layer));
  return absl::OkStatus();
}

absl::StatusOr<PackedMatrix> Loader::LoadMatrix(Role role) {
  ASSIGN_OR_RETURN(const Item* item, Need(role, -1));
  PackedMatrix matrix = PackedMatrix::Allocate(stream_, item->held, item->cut.rows.size(),
                                               item->cut.columns.size(), item->lead());
  RETURN_IF_ERROR(Pack(*item, &matrix, 0));
  matrix.Upload(stream_);
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
    for (; end < items.size() && items[end]->held == items[begin]->held; ++end) {
      rows += items[end]->cut.rows.size();
    }
    PackedMatrix matrix = PackedMatrix::Allocate(stream_, items[begin]->held, rows,
                                                 projection.columns, items[begin]->lead());
    int64_t first_row = 0;
    for (; begin < end; ++begin) {
      RETURN_IF_ERROR(Pack(*items[begin], &matrix, first_row));
      first_row += items[begin]->cut.rows.size();
    }
    matrix.Upload(stream_);
    projection.rows += rows;
    projection.parts.push_back(std::move(matrix));
  }
  std::vector<float> biases;
  int64_t first_row = 0;
  for (size_t i = 0; i < bias_roles.size(); ++i) {
    const Item* bias = Find(bias_roles[i], layer);
    if (bias != nullptr) {
      biases.resize(projection.rows);
      ASSIGN_OR_RETURN(const std::vector<float> values, LoadVector(*bias));
      std::copy(values.begin(), values.end(), biases.begin() + first_row);
    }
    first_row += items[i]->cut.rows.size();
  }
  projection.bias = DeviceVector<float>(stream_, biases);
  return projection;
}

absl::StatusOr<LayerWeights> Loader::LoadLayer(int64_t layer) {
  LayerWeights weights;
  RETURN_IF_ERROR(LoadLayerNorms(layer, &weights));
  ASSIGN_OR_RETURN(weights.qkv,
                   LoadProjection(layer, {Role::kQuery, Role::kKey, Role::kValue},
                                  {Role::kQueryBias, Role::kKeyBias, Role::kValueBias}));
  ASSIGN_OR_RETURN(weights.output,
                   LoadProjection(layer, {Role::kAttentionOutput}, {Role::kAttentionOutputBias}));
  const bool gated = checkpoint_.spec().gated_mlp;
  ASSIGN_OR_RETURN(weights.gate_up, gated ? LoadProjection(layer, {Role::kGate, Role::kUp},
                                                           {Role::kGateBias, Role::kUpBias})
                                          : LoadProjection(layer, {Role::kUp}, {Role::kUpBias}));
  ASSIGN_OR_RETURN(weights.down, LoadProjection(layer, {Role::kDown}, {Role::kDownBias}));
  return weights;
}

std::string Loader::Dtypes() const {
  std::set<absl::string_view> names;
  for (const Item& item : items_) {
    if (item.matrix()) names.insert(ToAbsl(DTypeName(item.held)));
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
    if (checkpoint_.spec().learned_positions) {
      ASSIGN_OR_RETURN(weights.positions, LoadMatrix(Role::kPositionEmbedding));
    }
    ASSIGN_OR_RETURN(weights.embedding_norm,
                     LoadNorm(Role::kEmbeddingNorm, Role::kEmbeddingNormBias, -1));
  }
  for (int64_t layer = layout_.layers.begin; layer < layout_.layers.end; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights layer_weights, LoadLayer(layer));
    weights.layer_weights.push_back(std::move(layer_weights));
  }
  if (layout_.last_stage()) {
    RETURN_IF_ERROR(Need(Role::kFinalNorm, -1).status());
    ASSIGN_OR_RETURN(weights.final_norm, LoadNorm(Role::kFinalNorm, Role::kFinalNormBias, -1));
    weights.head_is_embedding = tied && layout_.first_stage();
    if (!weights.head_is_embedding) {
      ASSIGN_OR_RETURN(weights.head, LoadMatrix(tied ? Role::kTokenEmbedding : Role::kLmHead));
    }
  }
  return weights;
}

}  // namespace

absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout, Stream& stream,
                                              const ByteProgress& progress, WeightFormat format) {
  ASSIGN_OR_RETURN(std::vector<Item> items, ItemsOf(checkpoint, layout, format));
  return Loader(checkpoint, layout, std::move(items), stream, progress).Load();
}

}  // namespace pergola
