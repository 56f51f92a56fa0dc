#include "client/plan_maker.h"

#include <algorithm>
#include <filesystem>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/checkpoint.h"

namespace pergola {
namespace {

constexpr int64_t kCpuSlots = 64;   // the worker's default
constexpr int64_t kGpuSlots = 512;  // the largest batch that is predicted
constexpr int64_t kLargestStep = 512;
// How far suggestions look for machines that are enough.
constexpr int kMostNodes = 64;

absl::StatusOr<DType> ParseDType(const char* flag, const std::string& name,
                                 const std::vector<DType>& known) {
  std::vector<std::string> names;
  for (const DType dtype : known) {
    if (name == DTypeName(dtype)) return dtype;
    names.emplace_back(DTypeName(dtype));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", name, "'; known are ", absl::StrJoin(names, ", ")));
}

absl::Status CheckOptions(const ShapeSpec& shape, const PlanOptions& options) {
  const int64_t block = options.block_tokens;
  if (block != 16 && block != 32 && block != 64 && block != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("--block-tokens is ", block, "; it must be 16, 32, 64 or 128"));
  }
  if (options.context_length > shape.spec.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("--context is ", options.context_length, "; ",
                                                   shape.spec.name, " is made for at most ",
                                                   shape.spec.context_length));
  }
  const int64_t context =
      options.context_length > 0 ? options.context_length : shape.spec.context_length;
  if (options.length > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--length is ", options.length, "; the context has ", context, " tokens"));
  }
  if (!options.gpu.empty() && options.kv_bytes > 0) {
    return absl::InvalidArgumentError(
        "--kv-mib is set beside --gpu; on a GPU the KV takes all that is left");
  }
  return absl::OkStatus();
}

// Everything of the limits that does not follow from the memory.
absl::StatusOr<MemoryLimits> LimitsOf(const ShapeSpec& shape, const PlanOptions& options) {
  MemoryLimits limits;
  limits.slot_count = options.slot_count;
  if (limits.slot_count == 0) limits.slot_count = options.gpu.empty() ? kCpuSlots : kGpuSlots;
  limits.block_tokens = options.block_tokens;
  limits.step_tokens = options.step_tokens;
  limits.on_gpu = !options.gpu.empty();
  const bool f32 = shape.AllMatricesAreF32();
  limits.kv_dtype = f32 ? DType::kF32 : DType::kF16;
  if (!options.kv_dtype.empty()) {
    ASSIGN_OR_RETURN(limits.kv_dtype, ParseDType("--kv-dtype", options.kv_dtype,
                                                 {DType::kF32, DType::kBF16, DType::kF16}));
  }
  // On the CPU activations are f32; on a GPU they have the width of what is multiplied.
  limits.activation_dtype = options.gpu.empty() || f32 ? DType::kF32 : DType::kBF16;
  limits.context_length =
      options.context_length > 0 ? options.context_length : shape.spec.context_length;
  return limits;
}

// A layout on GPUs, with as many blocks as fit.
struct Fit {
  PlanCandidate candidate;
  MemoryLimits limits;
  std::string shortened;
  std::vector<RankLayout> layouts;
  std::vector<MemoryPlan> ranks;
};

std::vector<MemoryPlan> PlanRanks(const ShapeSpec& shape, const std::vector<RankLayout>& layouts,
                                  const MemoryLimits& limits) {
  std::vector<MemoryPlan> ranks;
  ranks.reserve(layouts.size());
  for (const RankLayout& layout : layouts) ranks.push_back(PlanRank(shape, layout, limits));
  return ranks;
}

// The most bytes any rank lacks for `blocks` blocks beside the rest.
int64_t MissingBytes(const std::vector<MemoryPlan>& ranks, int64_t blocks, int64_t budget) {
  int64_t missing = 0;
  for (const MemoryPlan& plan : ranks) {
    missing = std::max(missing, plan.fixed() + blocks * plan.block_bytes - budget);
  }
  return missing;
}

Fit FitLayout(const ShapeSpec& shape, const PlanOptions& options, const Cluster& cluster, int tp,
              int pp, MemoryLimits limits) {
  Fit fit;
  fit.candidate.tensor_parallel = tp;
  fit.candidate.pipeline_parallel = pp;
  absl::StatusOr<std::vector<RankLayout>> layouts = GroupLayouts(shape.spec, tp, pp);
  if (!layouts.ok()) {
    fit.candidate.refused = std::string(layouts.status().message());
    return fit;
  }
  fit.layouts = *std::move(layouts);
  limits.peer_bytes = GpuReserveBytes(tp, pp);
  const int64_t budget = cluster.gpu.memory_bytes;
  std::vector<MemoryPlan> ranks = PlanRanks(shape, fit.layouts, limits);
  const int64_t blocks = LargestBlockCount(ranks, budget);
  const int64_t per_sequence = limits.BlocksOf(limits.context_length);
  const int64_t needed = options.context_length > 0 ? per_sequence : 1;
  if (blocks < needed) {
    fit.candidate.missing_bytes = MissingBytes(ranks, needed, budget);
    fit.candidate.refused = absl::StrFormat(
        "does not fit: %d bytes are missing per GPU for the weights and %d tokens of KV",
        fit.candidate.missing_bytes,
        options.context_length > 0 ? limits.context_length : limits.block_tokens);
    return fit;
  }
  limits.block_count = blocks;
  if (blocks < per_sequence) {
    limits.context_length = blocks * limits.block_tokens;
    fit.shortened =
        absl::StrCat("the context served is ", limits.context_length, " tokens, not the model's ",
                     shape.spec.context_length, ": the KV that fits holds no more");
  }
  fit.candidate.fits = true;
  fit.limits = limits;
  fit.ranks = PlanRanks(shape, fit.layouts, limits);
  return fit;
}

int64_t LengthOf(const PlanOptions& options, int64_t context) {
  return options.length > 0 ? std::min(options.length, context) : std::max<int64_t>(1, context / 2);
}

int64_t LargestBatch(const MemoryLimits& limits, int64_t length) {
  return std::min(limits.slot_count, limits.block_count / limits.BlocksOf(length));
}

// The layouts to look at: all GPUs in use, or what was asked for.
absl::StatusOr<std::vector<std::pair<int, int>>> LayoutsToTry(const PlanOptions& options,
                                                              const Cluster& cluster) {
  const int gpus = cluster.nodes * cluster.gpus_per_node;
  std::vector<std::pair<int, int>> layouts;
  for (int tp = 1; tp <= cluster.gpus_per_node; ++tp) {
    if (cluster.gpus_per_node % tp != 0) continue;
    if (options.tensor_parallel > 0 && tp != options.tensor_parallel) continue;
    const int pp = options.pipeline_parallel > 0 ? options.pipeline_parallel : gpus / tp;
    if (tp * pp > gpus) continue;
    // All GPUs, unless both are stated.
    if (tp * pp < gpus && options.tensor_parallel == 0) continue;
    layouts.emplace_back(tp, pp);
  }
  if (!layouts.empty()) return layouts;
  return absl::InvalidArgumentError(absl::StrFormat(
      "no layout of --tp %d and --pp %d (0: any) uses the %d x %d GPUs; --tp must divide the %d "
      "GPUs of a node, and --tp times --pp be at most %d",
      options.tensor_parallel, options.pipeline_parallel, cluster.nodes, cluster.gpus_per_node,
      cluster.gpus_per_node, gpus));
}

// The fits of all layouts of this cluster.
absl::StatusOr<std::vector<Fit>> FitAll(const ShapeSpec& shape, const PlanOptions& options,
                                        const Cluster& cluster) {
  ASSIGN_OR_RETURN(const MemoryLimits limits, LimitsOf(shape, options));
  ASSIGN_OR_RETURN(const auto layouts, LayoutsToTry(options, cluster));
  std::vector<Fit> fits;
  fits.reserve(layouts.size());
  for (const auto& [tp, pp] : layouts) {
    fits.push_back(FitLayout(shape, options, cluster, tp, pp, limits));
  }
  return fits;
}

bool AnyFits(const absl::StatusOr<std::vector<Fit>>& fits) {
  return fits.ok() &&
         std::any_of(fits->begin(), fits->end(), [](const Fit& fit) { return fit.candidate.fits; });
}

// The layout of a rank that holds everything; a model that was opened always has one.
RankLayout OneRank(const ShapeSpec& shape) {
  return MakeLayout(shape.spec, 1, 1, 0).value_or(RankLayout());
}

// The widest format narrower than the model's for which `fits` holds; empty if none does.
std::string SmallerDType(const ShapeSpec& shape,
                         const std::function<bool(const ShapeSpec&)>& fits) {
  const int64_t bytes = PlanRank(shape, OneRank(shape), MemoryLimits()).weights();
  for (const WeightFormat format :
       {WeightFormat::kBF16, WeightFormat::kInt8, WeightFormat::kInt4}) {
    const absl::StatusOr<ShapeSpec> smaller = WithWeightFormat(shape, format);
    if (!smaller.ok()) continue;
    const int64_t smaller_bytes = PlanRank(*smaller, OneRank(shape), MemoryLimits()).weights();
    if (smaller_bytes < bytes && fits(*smaller)) return WeightFormatName(format);
  }
  return "";
}

// What would fit, by trying it: more nodes, a shorter context, a smaller dtype.
std::string SuggestionsFor(const ShapeSpec& shape, const PlanOptions& options,
                           const Cluster& cluster) {
  std::vector<std::string> suggestions;
  PlanOptions changed = options;
  changed.tensor_parallel = changed.pipeline_parallel = 0;
  Cluster larger = cluster;
  for (larger.nodes *= 2; larger.nodes <= kMostNodes; larger.nodes *= 2) {
    if (!AnyFits(FitAll(shape, changed, larger))) continue;
    suggestions.push_back(absl::StrCat("more ranks (--nodes ", larger.nodes, ")"));
    break;
  }
  if (options.context_length > 0) {
    changed = options;
    changed.context_length = 0;
    const absl::StatusOr<std::vector<Fit>> fits = FitAll(shape, changed, cluster);
    int64_t longest = 0;
    if (fits.ok()) {
      for (const Fit& fit : *fits) {
        if (fit.candidate.fits) longest = std::max(longest, fit.limits.context_length);
      }
    }
    if (longest > 0) {
      suggestions.push_back(absl::StrCat("a shorter context (--context ", longest, ")"));
    }
  }
  const std::string dtype = SmallerDType(
      shape, [&](const ShapeSpec& smaller) { return AnyFits(FitAll(smaller, options, cluster)); });
  if (!dtype.empty()) suggestions.push_back(absl::StrCat("a smaller dtype (--dtype ", dtype, ")"));
  if (suggestions.empty()) {
    return absl::StrCat("neither ", kMostNodes,
                        " nodes nor a shorter context nor 4-bit weights "
                        "would fit");
  }
  return absl::StrCat(absl::StrJoin(suggestions, ", or "), " would fit");
}

absl::Status Refused(const std::vector<Fit>& fits, const ShapeSpec& shape,
                     const PlanOptions& options, const Cluster& cluster) {
  const Fit* nearest = nullptr;
  for (const Fit& fit : fits) {
    if (fit.candidate.missing_bytes == 0) continue;
    if (nearest == nullptr || fit.candidate.missing_bytes < nearest->candidate.missing_bytes) {
      nearest = &fit;
    }
  }
  if (nearest == nullptr) return absl::InvalidArgumentError(fits[0].candidate.refused);
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s in %s does not fit %d x %d %s: with tensor parallel %d x pipeline parallel %d the "
      "fullest GPU of %d bytes lacks %d bytes for its weights, workspaces and %s of KV; %s",
      shape.spec.name, shape.MatrixDTypes(), cluster.nodes, cluster.gpus_per_node,
      cluster.gpu.title, nearest->candidate.tensor_parallel, nearest->candidate.pipeline_parallel,
      cluster.gpu.memory_bytes, nearest->candidate.missing_bytes,
      options.context_length > 0 ? absl::StrCat(options.context_length, " tokens") : "one block",
      SuggestionsFor(shape, options, cluster)));
}

void Predict(const CostModel& model, const PlanOptions& options, int64_t length, Fit* fit) {
  PlanCandidate& candidate = fit->candidate;
  candidate.largest_batch = LargestBatch(fit->limits, length);
  candidate.one_step_ms = model.Decode(1, length).step_seconds * 1e3;
  candidate.chosen_batch = std::clamp<int64_t>(options.batch, 1, candidate.largest_batch);
  candidate.chosen_token_ms = model.Decode(candidate.chosen_batch, length).token_seconds() * 1e3;
}

absl::StatusOr<PlanReport> PlanGpu(const ShapeSpec& shape, const PlanOptions& options) {
  Cluster cluster;
  absl::StatusOr<GpuSpec> gpu = FindGpu(options.gpu);
  if (!gpu.ok()) return Prefixed(gpu.status(), "--gpu");
  cluster.gpu = *gpu;
  cluster.nodes = options.nodes;
  cluster.gpus_per_node = options.gpus_per_node;
  ASSIGN_OR_RETURN(std::vector<Fit> fits, FitAll(shape, options, cluster));
  // All are compared at one length: the shortest context's.
  int64_t length = LengthOf(options, shape.spec.context_length);
  for (const Fit& fit : fits) {
    if (!fit.candidate.fits) continue;
    length = std::min(length, LengthOf(options, fit.limits.context_length));
  }
  Fit* best = nullptr;
  for (Fit& fit : fits) {
    if (!fit.candidate.fits) continue;
    ASSIGN_OR_RETURN(const CostModel model,
                     CostModel::Make(shape, cluster, fit.candidate.tensor_parallel,
                                     fit.candidate.pipeline_parallel, fit.limits.kv_dtype));
    Predict(model, options, length, &fit);
    if (best == nullptr || fit.candidate.chosen_token_ms < best->candidate.chosen_token_ms) {
      best = &fit;
    }
  }
  if (best == nullptr) return Refused(fits, shape, options, cluster);
  PlanReport report;
  report.shape = shape;
  report.gpu = true;
  report.cluster = cluster;
  report.tensor_parallel = best->candidate.tensor_parallel;
  report.pipeline_parallel = best->candidate.pipeline_parallel;
  report.limits = best->limits;
  report.budget_bytes = cluster.gpu.memory_bytes;
  report.shortened = best->shortened;
  report.largest_batch = LargestBatch(best->limits, best->limits.context_length);
  report.length = length;
  report.largest_batch_at_length = LargestBatch(best->limits, report.length);
  for (const Fit& fit : fits) report.candidates.push_back(fit.candidate);
  ASSIGN_OR_RETURN(const CostModel model,
                   CostModel::Make(shape, cluster, report.tensor_parallel, report.pipeline_parallel,
                                   report.limits.kv_dtype));
  for (int64_t batch = 1; batch <= kLargestStep; batch *= 2) {
    report.steps.push_back(
        {batch <= report.largest_batch_at_length, model.Decode(batch, report.length)});
  }
  report.published = FindPublishedRun(shape.spec.name, cluster);
  for (const PublishedTime& time : report.published.times) {
    const DecodeCost floor = model.Decode(time.batch, report.published.length);
    report.compared.push_back({time, floor.token_seconds() * 1e3});
  }
  report.layouts = std::move(best->layouts);
  report.ranks = std::move(best->ranks);
  return report;
}

absl::StatusOr<PlanReport> PlanCpu(const ShapeSpec& shape, const PlanOptions& options) {
  PlanReport report;
  report.shape = shape;
  report.tensor_parallel = std::max(1, options.tensor_parallel);
  report.pipeline_parallel = std::max(1, options.pipeline_parallel);
  report.budget_bytes = options.available_memory;
  ASSIGN_OR_RETURN(report.limits, LimitsOf(shape, options));
  ASSIGN_OR_RETURN(report.layouts,
                   GroupLayouts(shape.spec, report.tensor_parallel, report.pipeline_parallel));
  KvRequest request;
  request.slot_count = report.limits.slot_count;
  request.block_tokens = report.limits.block_tokens;
  request.block_bytes = LargestBlockBytes(shape.spec, report.layouts, report.limits.block_tokens,
                                          report.limits.kv_dtype);
  request.model_context = shape.spec.context_length;
  request.context_length = options.context_length;
  request.kv_bytes = options.kv_bytes;
  ASSIGN_OR_RETURN(const KvPlan kv, PlanKv(request));
  report.limits.block_count = kv.block_count;
  report.limits.context_length = kv.context_length;
  report.shortened = kv.shortened;
  report.ranks = PlanRanks(shape, report.layouts, report.limits);
  report.largest_batch = LargestBatch(report.limits, report.limits.context_length);
  return report;
}

// Whether the ranks of a CPU plan fit this machine together, with what would fit if not.
absl::Status CheckMachine(const PlanReport& report, const PlanOptions& options) {
  const int64_t missing = report.total_bytes() - options.available_memory;
  if (options.available_memory == 0 || missing <= 0) return absl::OkStatus();
  std::vector<std::string> suggestions = {"ranks on more machines (pergola up --hosts)"};
  int64_t kv = 0;
  for (const MemoryPlan& plan : report.ranks) kv += plan.kv_bytes();
  const auto ranks = static_cast<int64_t>(report.ranks.size());
  const int64_t kv_mib = ((kv - missing) / ranks) >> 20;
  if (kv_mib > 0) {
    suggestions.push_back(absl::StrCat("a smaller KV cache (--kv-mib ", kv_mib,
                                       "), for a shorter context or fewer sequences"));
  }
  PlanOptions small = options;
  small.kv_bytes = 0;
  const std::string dtype = SmallerDType(report.shape, [&](const ShapeSpec& smaller) {
    const absl::StatusOr<PlanReport> plan = PlanCpu(smaller, small);
    return plan.ok() && plan->total_bytes() <= options.available_memory;
  });
  if (!dtype.empty()) suggestions.push_back(absl::StrCat("a smaller dtype (--dtype ", dtype, ")"));
  return absl::ResourceExhaustedError(absl::StrCat(
      report.shape.spec.name, " in ", report.shape.MatrixDTypes(),
      " does not fit this machine: ", ranks, " rank", ranks == 1 ? "" : "s", " of tensor parallel ",
      report.tensor_parallel, " x pipeline parallel ", report.pipeline_parallel, " take ",
      report.total_bytes(), " bytes, and ", options.available_memory, " are available: ", missing,
      " bytes are missing; ", absl::StrJoin(suggestions, ", or "), " would fit"));
}

}  // namespace

absl::StatusOr<ShapeSpec> OpenShape(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const WeightFormat format, ParseWeightFormat(options.dtype));
  if (options.gpu.empty()) RETURN_IF_ERROR(CheckOnCpu(format));
  std::error_code error;
  if (!std::filesystem::exists(options.model, error)) {
    if (IsKnownShape(options.model)) {
      ASSIGN_OR_RETURN(ShapeSpec shape, KnownShape(options.model, DType::kBF16));
      return WithWeightFormat(std::move(shape), format);
    }
    return absl::NotFoundError(absl::StrCat("model ", options.model,
                                            " is neither a path nor a known name; known are ",
                                            KnownShapeNames()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.model));
  ASSIGN_OR_RETURN(ShapeSpec shape, ShapeOfCheckpoint(*checkpoint));
  return WithWeightFormat(std::move(shape), format);
}

absl::StatusOr<PlanReport> MakePlan(const ShapeSpec& shape, const PlanOptions& options) {
  RETURN_IF_ERROR(CheckOptions(shape, options));
  if (!options.gpu.empty()) return PlanGpu(shape, options);
  ASSIGN_OR_RETURN(PlanReport report, PlanCpu(shape, options));
  RETURN_IF_ERROR(CheckMachine(report, options));
  return report;
}

}  // namespace pergola
