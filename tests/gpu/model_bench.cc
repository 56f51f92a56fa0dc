#include "tests/gpu/model_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/sample.h"
#include "model/shape_spec.h"
#include "tests/gpu/random_checkpoint.h"
#include "tests/gpu/report.h"
#include "tests/gpu/timing.h"
#include "worker/step/stage_executor.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 32;
constexpr double kPrefillGoal = 0.60;  // of cuBLASLt's rate
constexpr double kSweepGoal = 1.6;     // times the floor

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One rank on the GPU, driven as a step loop drives it.
class Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelCase& model, bool tiny);

  const ExecutorInfo& info() const { return executor_->info(); }
  const ShapeSpec& shape() const { return shape_; }
  // New sequences in slots 0 .. batch-1, `tokens` of prompt each.
  absl::Status Start(int64_t batch, int64_t tokens);
  // One token of each; seconds.
  absl::StatusOr<double> Decode();
  // A prompt alone in slot 0; seconds.
  absl::StatusOr<double> Prefill(int64_t tokens);
  int64_t position() const { return position_; }

 private:
  explicit Model(ShapeSpec shape) : shape_(std::move(shape)) {}
  v1::StepPlan NewPlan() {
    v1::StepPlan plan;
    plan.set_plan_id(++plan_id_);
    plan.set_epoch(1);
    return plan;
  }
  int32_t RandomId() { return static_cast<int32_t>(random_() % shape_.spec.vocabulary); }
  void Add(v1::StepPlan* plan, int64_t slot, int64_t tokens, std::vector<int32_t>* ids);
  absl::StatusOr<double> Execute(const v1::StepPlan& plan, const std::vector<int32_t>& ids);

  const ShapeSpec shape_;  // as held
  std::unique_ptr<CpuStream> host_;
  std::unique_ptr<Stream> gpu_;
  std::unique_ptr<StageExecutor> executor_;
  std::mt19937 random_{7};
  std::vector<float> hidden_;
  std::vector<v1::EntryResult> results_;
  std::vector<int32_t> last_;  // token of each slot
  int64_t position_ = 0;       // of the next token of every slot
  int64_t blocks_per_slot_ = 0;
  int64_t step_tokens_ = 0;
  uint64_t plan_id_ = 0;
};

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ModelCase& model, bool tiny) {
  ASSIGN_OR_RETURN(ModelSpec spec, BenchSpec(model.shape, tiny));
  if (model.layers > 0) spec.layers = std::min(spec.layers, model.layers);
  // Four bits are repeated as they are; eight are made of bf16 while loading.
  const bool int4 = model.format == WeightFormat::kInt4;
  const RandomCheckpoint checkpoint(spec, int4 ? DType::kQ4_1 : DType::kBF16);
  ASSIGN_OR_RETURN(ShapeSpec in_file, ShapeOfCheckpoint(checkpoint));
  ASSIGN_OR_RETURN(ShapeSpec held, WithWeightFormat(std::move(in_file), model.format));
  std::unique_ptr<Model> made(new Model(std::move(held)));
  StreamOptions host;
  host.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U));
  ExecutorOptions options;
  options.block_tokens = kBlockTokens;
  options.slot_count = *std::max_element(model.batches.begin(), model.batches.end());
  options.step_tokens = tiny ? 64 : 2048;
  options.context_length = tiny ? 128 : 4096;
  options.weights = model.format;
  made->step_tokens_ = options.step_tokens;
  // 128 positions of each slot, and a prompt in slot 0.
  made->blocks_per_slot_ = 128 / kBlockTokens;
  options.block_count =
      std::max(options.slot_count * made->blocks_per_slot_, options.context_length / kBlockTokens);
  host.workspace_bytes = host.threads * SampleWorkspaceBytes(spec.vocabulary, spec.context_length);
  made->host_ = CpuStream::Create(host);
  ASSIGN_OR_RETURN(made->gpu_, OpenCudaStream(0, *made->host_));
  ASSIGN_OR_RETURN(const RankLayout layout, MakeLayout(spec, 1, 1, 0));
  ASSIGN_OR_RETURN(made->executor_,
                   StageExecutor::Load(checkpoint, layout, options, *made->gpu_, nullptr, nullptr));
  made->hidden_.resize(static_cast<size_t>(options.step_tokens * spec.hidden));
  made->last_.resize(static_cast<size_t>(options.slot_count));
  return made;
}

void Model::Add(v1::StepPlan* plan, int64_t slot, int64_t tokens, std::vector<int32_t>* ids) {
  auto* entry = plan->add_entries();
  entry->set_slot(static_cast<uint32_t>(slot));
  entry->set_first_position(static_cast<uint32_t>(position_));
  for (int64_t i = 0; i < tokens; ++i) {
    const int32_t id = position_ == 0 ? RandomId() : last_[static_cast<size_t>(slot)];
    entry->add_ids(id);
    ids->push_back(id);
  }
  entry->add_logits_at(static_cast<uint32_t>(tokens - 1));
}

absl::StatusOr<double> Model::Execute(const v1::StepPlan& plan, const std::vector<int32_t>& ids) {
  const double begin = Now();
  RETURN_IF_ERROR(executor_->Validate(plan));
  results_.clear();
  RETURN_IF_ERROR(executor_->Execute(plan, ids, hidden_.data(), &results_));
  const double seconds = Now() - begin;
  for (int i = 0; i < plan.entries_size(); ++i) {
    const v1::EntryResult& result = results_[static_cast<size_t>(i)];
    if (result.status() != v1::ENTRY_STATUS_OK || result.ids_size() != 1) {
      return absl::InternalError(absl::StrCat("slot ", plan.entries(i).slot(), " has no token: ",
                                              v1::EntryStatus_Name(result.status()).c_str()));
    }
    last_[plan.entries(i).slot()] = result.ids(0);
  }
  return seconds;
}

absl::Status Model::Start(int64_t batch, int64_t tokens) {
  last_.resize(static_cast<size_t>(batch));
  const int64_t at_once = std::max<int64_t>(1, step_tokens_ / tokens);
  for (int64_t first = 0; first < batch; first += at_once) {
    position_ = 0;
    v1::StepPlan plan = NewPlan();
    std::vector<int32_t> ids;
    for (int64_t slot = first; slot < std::min(batch, first + at_once); ++slot) {
      auto* start = plan.add_starts();
      start->set_slot(static_cast<uint32_t>(slot));
      start->mutable_sampling()->set_top_p(1);
      Add(&plan, slot, tokens, &ids);
      for (int64_t i = 0; i < blocks_per_slot_; ++i) {
        plan.mutable_entries()->rbegin()->add_block_ids(
            static_cast<uint32_t>(slot * blocks_per_slot_ + i));
      }
    }
    RETURN_IF_ERROR(Execute(plan, ids).status());
  }
  position_ = tokens;
  return absl::OkStatus();
}

absl::StatusOr<double> Model::Decode() {
  v1::StepPlan plan = NewPlan();
  std::vector<int32_t> ids;
  for (size_t slot = 0; slot < last_.size(); ++slot) {
    Add(&plan, static_cast<int64_t>(slot), 1, &ids);
  }
  ++position_;
  return Execute(plan, ids);
}

absl::StatusOr<double> Model::Prefill(int64_t tokens) {
  position_ = 0;
  v1::StepPlan plan = NewPlan();
  std::vector<int32_t> ids;
  plan.add_starts()->mutable_sampling()->set_top_p(1);
  Add(&plan, 0, tokens, &ids);
  for (int64_t i = 0; i * kBlockTokens < tokens; ++i) {
    plan.mutable_entries(0)->add_block_ids(static_cast<uint32_t>(i));
  }
  return Execute(plan, ids);
}

// What a step must read and compute.
struct Work {
  double matrix_bytes = 0;   // of all products' weights
  double matrix_values = 0;  // a product's multiply-adds per row
  double head_values = 0;    // of these, the LM head's
  double kv_bytes = 0;       // per position
};

Work WorkOf(const Model& model) {
  const ModelSpec& spec = model.shape().spec;
  const auto layout = MakeLayout(spec, 1, 1, 0);
  Work work;
  for (const HeldMatrix& matrix : HeldBy(model.shape(), *layout).matrices) {
    const bool embedding = matrix.kind == WeightKind::kEmbedding;
    const bool table = matrix.rows == spec.vocabulary;  // not the positions
    // A tied head is the embedding.
    if (embedding && !(spec.tied_embeddings && table)) continue;
    const double values = static_cast<double>(matrix.rows) * static_cast<double>(matrix.columns);
    work.matrix_bytes += static_cast<double>(matrix.bytes(true));
    work.matrix_values += values;
    if (embedding || matrix.kind == WeightKind::kLmHead) work.head_values += values;
  }
  work.kv_bytes = static_cast<double>(model.info().allocated.block_bytes) / kBlockTokens;
  return work;
}

// Decode at each batch size. The sequences stand at 64 to 100 positions.
absl::Status BenchDecode(const ModelCase& c, const std::string& name, const Roofs& roofs, bool tiny,
                         Model* model) {
  const Work work = WorkOf(*model);
  double worst = 0;
  int64_t worst_batch = 0;
  std::string sweep;
  for (const int64_t batch : c.batches) {
    RETURN_IF_ERROR(model->Start(batch, tiny ? 8 : 64));
    std::vector<double> seconds;
    const int warm = 6, repeats = tiny ? 3 : 30;
    for (int i = 0; i < warm + repeats; ++i) {
      ASSIGN_OR_RETURN(const double s, model->Decode());
      if (i >= warm) seconds.push_back(s);
    }
    const double s = Median(std::move(seconds));
    const auto rows = static_cast<double>(batch);
    const double bytes =
        work.matrix_bytes + rows * work.kv_bytes * static_cast<double>(model->position());
    const double memory = bytes / roofs.read_bytes;
    const double compute = 2 * work.matrix_values * rows / roofs.bf16_flops;
    const std::string what =
        Text("%s decode, batch %lld", name.c_str(), static_cast<long long>(batch));
    const std::string time = Text("%.2f ms, %.0f tokens/s", s * 1e3, rows / s);
    if (batch == 1) {
      ReportShare("model", what, bytes / s / roofs.read_bytes, c.goal, time);
    } else {
      Report("model", what, Text("%.2f x floor, ", s / std::max(memory, compute)) + time, "",
             Verdict::kInfo);
    }
    if (s / std::max(memory, compute) > worst) {
      worst = s / std::max(memory, compute);
      worst_batch = batch;
    }
  }
  if (c.batches.size() < 4) return absl::OkStatus();
  Report("model", Text("%s sweep to %lld", name.c_str(), static_cast<long long>(c.batches.back())),
         Text("%.2f x floor at worst, batch %lld", worst, static_cast<long long>(worst_batch)),
         Text("%.1f x", kSweepGoal), worst <= kSweepGoal ? Verdict::kReached : Verdict::kBelow);
  return absl::OkStatus();
}

absl::Status BenchPrefill(const std::string& name, int64_t tokens, const Roofs& roofs, bool tiny,
                          Model* model) {
  std::vector<double> seconds;
  for (int i = 0; i < (tiny ? 2 : 12); ++i) {
    ASSIGN_OR_RETURN(const double s, model->Prefill(tokens));
    if (i >= 1) seconds.push_back(s);
  }
  const double s = Median(std::move(seconds));
  const Work work = WorkOf(*model);
  const ModelSpec& spec = model->shape().spec;
  const auto rows = static_cast<double>(tokens);
  // The head computes the last row alone; a row sees half of the prompt on average.
  const double products = 2 * (rows * (work.matrix_values - work.head_values) + work.head_values);
  const double attention =
      2 * rows * rows * static_cast<double>(spec.layers * spec.heads * spec.head_dim);
  ReportShare("model",
              Text("%s prefill of %lld, of cuBLASLt", name.c_str(), static_cast<long long>(tokens)),
              (products + attention) / s / roofs.bf16_flops, kPrefillGoal,
              Text("%.1f ms, %.0f TFLOP/s", s * 1e3, (products + attention) / s * 1e-12));
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchModel(const ModelCase& model, const Roofs& roofs, bool tiny) {
  const double begin = Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> loaded, Model::Load(model, tiny));
  std::string name = model.shape + " " + WeightFormatName(model.format);
  if (model.layers > 0) name += Text(", %lld layers", static_cast<long long>(model.layers));
  Report("model", name + " load", Text("%.1f s, %s", Now() - begin, loaded->info().dtypes.c_str()),
         "", Verdict::kInfo);
  RETURN_IF_ERROR(BenchDecode(model, name, roofs, tiny, loaded.get()));
  if (model.prefill == 0) return absl::OkStatus();
  return BenchPrefill(name, tiny ? 48 : model.prefill, roofs, tiny, loaded.get());
}

}  // namespace pergola
