// Bounds. In f32 a golden has its own against transformers (golden.json, derived in
// scripts/goldens_*.py); the CPU keeps it too, so GPU and CPU differ by twice that at most.
//
// With 16-bit activations the judge is the CPU in f32 with the same weights, rounded to 16 bits
// where the checkpoint has f32. What is left is the rounding of activations, before and after each
// product: two errors uniform in +-half a step. As noise they have half the variance of an error
// uniform in +-1 step; so each weight is disturbed by that, in three draws, and twice the largest
// change of a logit bounds the difference. (The test of weight formats,
// tests/worker/format_golden_test.cc, argues in the same way.) Where the CPU's best token leads by
// more than twice the bound, the GPU's must be the same.
#include "tests/gpu/parity.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/shape_spec.h"
#include "tests/gpu/report.h"
#include "tests/worker/executor_group.h"
#include "tests/worker/golden.h"
#include "tests/worker/plan_builder.h"
#include "tests/worker/rounded_checkpoint.h"
#include "worker/weights/convert.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr uint32_t kBlocks = 8;

struct Precision {
  Device device = Device::kCuda;
  WeightFormat weights = WeightFormat::kAuto;
  DType activation = DType::kF32;
};

struct Answer {
  std::vector<float> logits;    // [prompt, vocabulary]
  std::vector<int32_t> greedy;  // as many as the golden's
};

Answer Run(const Checkpoint& checkpoint, const Golden& golden, const Precision& precision,
           bool with_greedy) {
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlockTokens;
  options.step_tokens = 64;
  options.context_length = kBlockTokens * kBlocks;
  options.weights = precision.weights;
  options.kv_dtype = precision.activation;
  options.kv_dtype_set = true;
  options.activation_dtype = precision.activation;
  options.activation_dtype_set = true;
  options.block_count = kBlocks;
  ExecutorGroup group(checkpoint, 1, 1, options, 1, precision.device);
  group.KeepLogits(true);
  Answer answer;
  BuiltPlan first(1);
  first.Start(0);
  BuiltPlan::WantAll(first.Add(0, golden.prompt, 0, Blocks(0, kBlocks)));
  std::vector<v1::EntryResult> results = group.Execute(first.plan, first.ids);
  for (size_t row = 0; row < golden.prompt.size(); ++row) {
    const absl::Span<const float> logits = group.last().Logits(static_cast<int64_t>(row));
    answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
  }
  auto position = static_cast<int64_t>(golden.prompt.size());
  for (uint64_t plan_id = 2; with_greedy; ++plan_id) {
    if (results.size() != 1 || results[0].ids_size() == 0) return answer;
    answer.greedy.push_back(*results[0].ids().rbegin());
    if (answer.greedy.size() >= golden.greedy.size()) break;
    BuiltPlan next(plan_id);
    next.Add(0, {answer.greedy.back()}, position++);
    results = group.Execute(next.plan, next.ids);
  }
  return answer;
}

// NaN, or logits of another number: infinite.
double Worst(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::abs(static_cast<double>(a[i]) - b[i]);
    if (std::isnan(off)) return INFINITY;
    worst = std::max(worst, off);
  }
  return worst;
}

// What the goldens of one family and precision came to.
struct Tally {
  int goldens = 0, wrong = 0;
  double worst = 0;          // difference over bound, against transformers (f32) or the CPU
  double worst_of_cpu = 0;   // the same against the CPU
  double worst_logit = 0;    // the largest difference itself
  int tokens = 0, same = 0;  // greedy tokens
  std::string first_wrong;
};

void Count(Tally* tally, const Golden& golden, bool right) {
  ++tally->goldens;
  if (right) return;
  ++tally->wrong;
  if (tally->first_wrong.empty()) tally->first_wrong = golden.name;
}

void CheckF32(const Checkpoint& checkpoint, const Golden& golden, Tally* tally) {
  const Answer gpu = Run(checkpoint, golden, {}, true);
  const Answer cpu = Run(checkpoint, golden, {Device::kCpu}, false);
  const double off = Worst(gpu.logits, golden.logits);
  const double off_cpu = Worst(gpu.logits, cpu.logits);
  tally->worst = std::max(tally->worst, off / golden.bound);
  tally->worst_of_cpu = std::max(tally->worst_of_cpu, off_cpu / (2 * golden.bound));
  tally->worst_logit = std::max(tally->worst_logit, off);
  tally->tokens += static_cast<int>(golden.greedy.size());
  for (size_t i = 0; i < gpu.greedy.size(); ++i) {
    if (gpu.greedy[i] == golden.greedy[i]) ++tally->same;
  }
  Count(tally, golden,
        off <= golden.bound && off_cpu <= 2 * golden.bound && gpu.greedy == golden.greedy);
}

// The distance of neighbouring numbers of a 16-bit type at `value`.
float Step(DType type, float value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  return type == DType::kBF16 ? std::ldexp(1.0F, exponent - 8)
                              : std::ldexp(1.0F, std::max(exponent - 11, -24));
}

double ActivationBound(const Checkpoint& rounded, const Golden& golden, DType type,
                       const std::vector<float>& want) {
  double worst = 0;
  for (uint32_t draw = 0; draw < 3; ++draw) {
    std::mt19937 random(draw);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const RoundedCheckpoint noisy(rounded, [&](std::vector<float>* row, DType, bool) {
      for (float& value : *row) value += Step(type, value) * uniform(random);
    });
    const Precision f32 = {Device::kCpu, WeightFormat::kF32};
    worst = std::max(worst, Worst(Run(noisy, golden, f32, false).logits, want));
  }
  return 2 * worst;
}

void Check16Bit(const Checkpoint& checkpoint, const Golden& golden, DType type, Tally* tally) {
  const auto shape = ShapeOfCheckpoint(checkpoint);
  const bool round = shape->AllMatricesAreF32();
  const RoundedCheckpoint rounded(checkpoint, [&](std::vector<float>* row, DType, bool) {
    for (float& value : *row) {
      if (!round) continue;
      value = type == DType::kBF16 ? BF16ToF32(F32ToBF16(value)) : F16ToF32(F32ToF16(value));
    }
  });
  const WeightFormat held = !round                 ? WeightFormat::kAuto
                            : type == DType::kBF16 ? WeightFormat::kBF16
                                                   : WeightFormat::kF16;
  const Answer cpu = Run(rounded, golden, {Device::kCpu, WeightFormat::kF32}, false);
  const double bound = ActivationBound(rounded, golden, type, cpu.logits) + 2 * golden.bound;
  const Answer gpu = Run(checkpoint, golden, {Device::kCuda, held, type}, true);
  const double off = Worst(gpu.logits, cpu.logits);
  tally->worst = tally->worst_of_cpu = std::max(tally->worst, off / bound);
  tally->worst_logit = std::max(tally->worst_logit, off);
  bool decided = true;
  const size_t vocabulary = cpu.logits.size() / golden.prompt.size();
  for (size_t row = 0; off <= bound && row < golden.prompt.size(); ++row) {
    const auto begin = cpu.logits.begin() + static_cast<int64_t>(row * vocabulary);
    std::vector<float> sorted(begin, begin + static_cast<int64_t>(vocabulary));
    std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
    if (sorted[0] - sorted[1] <= 2 * bound) continue;
    const auto end = begin + static_cast<int64_t>(vocabulary);
    const auto gpu_begin = gpu.logits.begin() + static_cast<int64_t>(row * vocabulary);
    const auto gpu_end = gpu_begin + static_cast<int64_t>(vocabulary);
    decided &=
        std::max_element(begin, end) - begin == std::max_element(gpu_begin, gpu_end) - gpu_begin;
  }
  tally->tokens += static_cast<int>(golden.greedy.size());
  for (size_t i = 0; i < gpu.greedy.size(); ++i) {
    if (gpu.greedy[i] == golden.greedy[i]) ++tally->same;
  }
  Count(tally, golden, off <= bound && decided && gpu.greedy.size() == golden.greedy.size());
}

// "bloom" of "bloom_post_norm", "gguf q4" and so on: what a line of the table stands for.
std::string FamilyOf(const std::string& golden) {
  if (golden.rfind("gguf", 0) == 0) return "GGUF formats";
  for (const char* family :
       {"bloom", "gpt_bigcode", "gpt2", "gemma3", "mistral", "qwen2", "qwen3"}) {
    if (golden.rfind(family, 0) == 0) return family;
  }
  return "llama";
}

}  // namespace

bool CheckParity(bool tiny) {
  std::vector<std::string> names;
  for (const auto* some : {&GoldenNames(), &FamilyGoldenNames(), &GgufGoldenNames()}) {
    names.insert(names.end(), some->begin(), some->end());
  }
  if (tiny) names = {"gqa_tied", "gpt_bigcode_mqa"};
  struct Type {
    const char* name;
    DType dtype;
  };
  bool right = true;
  for (const Type& type :
       {Type{"f32", DType::kF32}, Type{"bf16", DType::kBF16}, Type{"f16", DType::kF16}}) {
    std::map<std::string, Tally> families;
    for (const std::string& name : names) {
      const Golden golden = LoadGolden(name);
      const auto checkpoint = Checkpoint::Open(golden.checkpoint);
      Tally& tally = families[FamilyOf(name)];
      if (!checkpoint.ok()) {
        std::printf("%s\n", std::string(checkpoint.status().message()).c_str());
        Count(&tally, golden, false);
      } else if (type.dtype == DType::kF32) {
        CheckF32(**checkpoint, golden, &tally);
      } else {
        Check16Bit(**checkpoint, golden, type.dtype, &tally);
      }
    }
    for (const auto& [family, tally] : families) {
      right &= tally.wrong == 0;
      std::string result = Text("%d/%d goldens, %.2f of bound (%.1e), CPU %.2f, greedy %d/%d",
                                tally.goldens - tally.wrong, tally.goldens, tally.worst,
                                tally.worst_logit, tally.worst_of_cpu, tally.same, tally.tokens);
      if (tally.wrong > 0) result += ", first wrong: " + tally.first_wrong;
      Report("parity", family + " " + type.name, result, "all",
             tally.wrong == 0 ? Verdict::kPass : Verdict::kFail);
    }
  }
  // What EXPECTs of the helpers found.
  return right && !testing::UnitTest::GetInstance()->ad_hoc_test_result().Failed();
}

}  // namespace pergola
