#include "tests/gpu/model_bench.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
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
#include "worker/comm/shm_communicator.h"
#include "worker/step/step_loop.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 32;
constexpr double kPrefillGoal = 0.60;  // of cuBLASLt's rate
constexpr double kSweepGoal = 1.6;     // times the floor

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Plans of one kind of work, and the times of their results: both ends of a step loop.
class Work final : public PlanSource, public ResultSink {
 public:
  // A plan, given the number of plans before it.
  using MakePlan = std::function<v1::StepPlan(int64_t before)>;

  // The times of the last `measured` of `plans` plans count.
  Work(int64_t plans, int64_t measured, MakePlan make)
      : plans_(plans), first_measured_(plans - measured), make_(std::move(make)) {}

  // As many ahead of the results as a coordinator sends to one stage.
  absl::StatusOr<Next> Take(bool /*wait*/, v1::StepPlan* plan) override {
    if (finished_ == plans_ || !failure_.ok()) return Next::kEnd;
    if (sent_ == plans_ || sent_ == finished_ + 2) return Next::kNone;
    *plan = make_(sent_++);
    return Next::kPlan;
  }
  void Push(v1::StepResult result) override {
    for (const v1::EntryResult& entry : result.entries()) {
      if (entry.status() == v1::ENTRY_STATUS_OK && entry.ids_size() == 1) continue;
      failure_ = absl::InternalError(absl::StrCat(
          "plan ", result.plan_id(),
          " has an entry without a token: ", v1::EntryStatus_Name(entry.status()).c_str()));
    }
    const double now = Now();
    if (finished_++ >= first_measured_) seconds_.push_back(now - last_);
    last_ = now;
  }

  const absl::Status& failure() const { return failure_; }
  // Between results.
  double MedianSeconds() const { return Median(seconds_); }

 private:
  const int64_t plans_, first_measured_;
  const MakePlan make_;
  int64_t sent_ = 0, finished_ = 0;
  double last_ = 0;
  std::vector<double> seconds_;
  absl::Status failure_;
};

// One rank on the GPU, with a worker's step loop.
class Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelCase& model, bool tiny);

  const ExecutorInfo& info() const { return executor_->info(); }
  const ShapeSpec& shape() const { return shape_; }
  // Seconds of a step with one token for each of `batch` sequences, which begin with `prompt`
  // tokens; the median of `steps`, after some that warm up.
  absl::StatusOr<double> Decode(int64_t batch, int64_t prompt, int64_t steps);
  // Seconds of a prompt alone, the median of `repeats`.
  absl::StatusOr<double> Prefill(int64_t tokens, int64_t repeats);

 private:
  explicit Model(ShapeSpec shape) : shape_(std::move(shape)) {}
  v1::StepPlan NewPlan(int64_t before) const {
    v1::StepPlan plan;
    plan.set_plan_id(static_cast<uint64_t>(before) + 1);
    plan.set_epoch(epoch_);
    return plan;
  }
  // A sequence begins in `slot` with random ids and so many blocks, from the slot's first on.
  void Begin(v1::StepPlan* plan, int64_t slot, int64_t tokens, int64_t blocks);
  absl::StatusOr<double> Run(Work load);

  const ShapeSpec shape_;  // as held
  std::unique_ptr<CpuStream> host_;
  std::unique_ptr<Stream> gpu_;
  std::unique_ptr<StageExecutor> executor_;
  std::mt19937 random_{7};
  uint64_t epoch_ = 0;
  int64_t blocks_per_slot_ = 0;
  int64_t step_tokens_ = 0;
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
  made->step_tokens_ = options.step_tokens = tiny ? 64 : 2048;
  options.context_length = tiny ? 128 : 4096;
  options.weights = model.format;
  // 128 positions of each slot, and a long prompt in slot 0.
  made->blocks_per_slot_ = 128 / kBlockTokens;
  options.block_count =
      std::max(options.slot_count * made->blocks_per_slot_, options.context_length / kBlockTokens);
  host.workspace_bytes = host.threads * SampleWorkspaceBytes(spec.vocabulary, spec.context_length);
  made->host_ = CpuStream::Create(host);
  ASSIGN_OR_RETURN(made->gpu_, OpenCudaStream(0, *made->host_));
  ASSIGN_OR_RETURN(const RankLayout layout, MakeLayout(spec, 1, 1, 0));
  ASSIGN_OR_RETURN(made->executor_,
                   StageExecutor::Load(checkpoint, layout, options, *made->gpu_, nullptr, nullptr));
  return made;
}

void Model::Begin(v1::StepPlan* plan, int64_t slot, int64_t tokens, int64_t blocks) {
  auto* start = plan->add_starts();
  start->set_slot(static_cast<uint32_t>(slot));
  start->mutable_sampling()->set_top_p(1);
  auto* entry = plan->add_entries();
  entry->set_slot(static_cast<uint32_t>(slot));
  for (int64_t i = 0; i < tokens; ++i) {
    entry->add_ids(static_cast<int32_t>(random_() % shape_.spec.vocabulary));
  }
  for (int64_t i = 0; i < blocks; ++i) {
    entry->add_block_ids(static_cast<uint32_t>(slot * blocks_per_slot_ + i));
  }
  entry->add_logits_at(static_cast<uint32_t>(tokens - 1));
}

absl::StatusOr<double> Model::Run(Work load) {
  ASSIGN_OR_RETURN(const RankLayout layout, MakeLayout(shape_.spec, 1, 1, 0));
  WaitBoard waits;
  ShmOptions stage;
  stage.board = &waits;
  const auto region = SharedRegion::OnHeap(ShmCommunicator::RegionBytes(stage));
  ShmCommunicator::Format(*region);
  ShmCommunicator communicator(region, stage);
  StepLoopParts parts;
  parts.plans = &load;
  parts.results = &load;
  parts.communicator = &communicator;
  parts.executor = executor_.get();
  parts.board = &waits;
  StepLoopOptions options;
  options.layout = layout;
  options.hidden = shape_.spec.hidden;
  options.step_tokens = step_tokens_;
  options.now_us = WaitBoard::SteadyMicroseconds;
  RETURN_IF_ERROR(StepLoop(options, parts).Run());
  RETURN_IF_ERROR(load.failure());
  return load.MedianSeconds();
}

absl::StatusOr<double> Model::Decode(int64_t batch, int64_t prompt, int64_t steps) {
  constexpr int64_t kWarm = 6;
  ++epoch_;
  const int64_t at_once = std::max<int64_t>(1, step_tokens_ / prompt);
  const int64_t prompts = (batch + at_once - 1) / at_once;
  return Run(Work(prompts + kWarm + steps, steps, [&](int64_t before) {
    v1::StepPlan plan = NewPlan(before);
    for (int64_t slot = before * at_once; slot < std::min(batch, (before + 1) * at_once); ++slot) {
      Begin(&plan, slot, prompt, blocks_per_slot_);
    }
    for (int64_t slot = 0; before >= prompts && slot < batch; ++slot) {
      auto* entry = plan.add_entries();
      entry->set_slot(static_cast<uint32_t>(slot));
      entry->set_first_position(static_cast<uint32_t>(prompt + before - prompts));
      const bool first = before == prompts;
      entry->mutable_from()->set_plan_id(
          static_cast<uint64_t>(first ? slot / at_once + 1 : before));
      entry->mutable_from()->set_entry(static_cast<uint32_t>(first ? slot % at_once : slot));
      entry->add_logits_at(0);
    }
    return plan;
  }));
}

absl::StatusOr<double> Model::Prefill(int64_t tokens, int64_t repeats) {
  ++epoch_;
  return Run(Work(repeats + 2, repeats, [&](int64_t before) {
    v1::StepPlan plan = NewPlan(before);
    Begin(&plan, 0, tokens, (tokens + kBlockTokens - 1) / kBlockTokens);
    return plan;
  }));
}

// What a step must read and compute.
struct Cost {
  double matrix_bytes = 0;   // of all products' weights
  double matrix_values = 0;  // a product's multiply-adds per row
  double head_values = 0;    // of these, the LM head's
  double kv_bytes = 0;       // per position
};

Cost CostOf(const Model& model) {
  const ModelSpec& spec = model.shape().spec;
  const auto layout = MakeLayout(spec, 1, 1, 0);
  Cost work;
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

// Decode at each batch size. The sequences stand at 64 to 100 positions, counted as if at 94.
absl::Status BenchDecode(const ModelCase& c, const std::string& name, const Roofs& roofs, bool tiny,
                         Model* model) {
  const Cost work = CostOf(*model);
  double worst = 0;
  int64_t worst_batch = 0;
  std::string sweep;
  for (const int64_t batch : c.batches) {
    const int64_t prompt = tiny ? 8 : 64, steps = tiny ? 3 : 30;
    ASSIGN_OR_RETURN(const double s, model->Decode(batch, prompt, steps));
    const auto rows = static_cast<double>(batch);
    const double bytes =
        work.matrix_bytes + rows * work.kv_bytes * static_cast<double>(prompt + steps);
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
  ASSIGN_OR_RETURN(const double s, model->Prefill(tokens, tiny ? 1 : 10));
  const Cost work = CostOf(*model);
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
