// A scene of attention in the memory of a device, and what its result may differ from the
// reference's by.
#pragma once

#include <numeric>

#include "tests/kernels/attention_scene.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/op_device.h"

namespace pergola {

// Which rows of a scene are a step, and how it is planned.
struct AttentionStep {
  int64_t begin = 0, end = -1;  // rows; -1: all
  int64_t longest_context = 0;  // 0: the plan's
  bool all_decode = false;      // prompts too go through the decode kernel
};

class PlacedAttention {
 public:
  PlacedAttention(OpDevice& device, AttentionScene* scene, const AttentionStep& step = {})
      : activation_(device.dtype()) {
    const int64_t begin = step.begin, end = step.end < 0 ? scene->Rows() : step.end;
    std::vector<float> out;
    args_ = scene->Args(begin, end, &out);
    PlanWork(device, *scene, step, end - begin);
    const std::vector<float> rows(args_.qkv.f32(), args_.qkv.f32() + args_.qkv.values());
    qkv_ = Bytes(device, ToBytes(activation_, rows));
    out_ = Bytes(device, ToBytes(activation_, out));
    k_ = Bytes(device, scene->k);
    v_ = Bytes(device, scene->v);
    kv_of_head_ = Ints(device, scene->kv_of_head);
    tables_ = Ints(device, scene->tables);
    positions_ = Ints(device, {args_.positions, args_.positions + (end - begin)});
    table_of_row_ = Ints(device, {args_.table_of_row, args_.table_of_row + (end - begin)});
    slopes_ = std::make_unique<OnDevice<float>>(device, scene->slopes);
    args_.qkv = Tensor(qkv_->data(), activation_, {end - begin, scene->RowValues()});
    args_.out = Tensor(out_->data(), activation_, {end - begin, args_.heads * args_.head_dim});
    args_.k_cache = k_->data();
    args_.v_cache = v_->data();
    args_.kv_of_head = kv_of_head_->data();
    args_.block_tables = tables_->data();
    args_.alibi_slopes = scene->slopes.empty() ? nullptr : slopes_->data();
    args_.positions = positions_->data();
    args_.table_of_row = table_of_row_->data();
  }
  const AttentionArgs& args() const { return args_; }
  // The result as f32; a GPU's counters must be back at zero.
  std::vector<float> Read() const {
    for (const int32_t count : done_->Read()) EXPECT_EQ(count, 0);
    return ToFloats(activation_, out_->Read());
  }

 private:
  using BytesThere = std::unique_ptr<OnDevice<uint8_t>>;
  using IntsThere = std::unique_ptr<OnDevice<int32_t>>;
  static BytesThere Bytes(OpDevice& device, const std::vector<uint8_t>& values) {
    return std::make_unique<OnDevice<uint8_t>>(device, values);
  }
  static IntsThere Ints(OpDevice& device, const std::vector<int32_t>& values) {
    return std::make_unique<OnDevice<int32_t>>(device, values);
  }

  // The plan of a GPU's work, with a row and a tile of padding as a recorded step has them.
  void PlanWork(OpDevice& device, const AttentionScene& scene, const AttentionStep& step,
                int64_t rows) {
    AttentionPlan plan;
    PlanAttention(args_.positions, args_.table_of_row, rows, &plan);
    if (step.all_decode) {
      plan.prefill_tiles.clear();
      plan.decode_rows.resize(static_cast<size_t>(rows));
      std::iota(plan.decode_rows.begin(), plan.decode_rows.end(), 0);
      plan.longest_context = *std::max_element(scene.lengths.begin(), scene.lengths.end());
    }
    plan.decode_rows.push_back(-1);
    plan.prefill_tiles.insert(plan.prefill_tiles.end(), {-1, 5});
    const std::vector<int32_t> groups = PlanHeadGroups(args_.kv_of_head, args_.heads);
    tiles_ = Ints(device, plan.prefill_tiles);
    decode_rows_ = Ints(device, plan.decode_rows);
    groups_ = Ints(device, groups);
    done_ = Ints(device, std::vector<int32_t>(plan.decode_rows.size() * groups.size()));
    AttentionWork& work = args_.work;
    work.prefill_tiles = tiles_->data();
    work.prefill_tile_count = static_cast<int64_t>(plan.prefill_tiles.size()) / 2;
    work.longest_prompt = plan.longest_prompt;
    work.decode_rows = decode_rows_->data();
    work.decode_row_count = static_cast<int64_t>(plan.decode_rows.size());
    work.longest_context = std::max(step.longest_context, plan.longest_context);
    work.head_groups = groups_->data();
    work.head_group_count = static_cast<int64_t>(groups.size()) / 2;
    work.largest_head_group = LargestHeadGroup(groups);
    work.decode_done = done_->data();
  }

  const DType activation_;
  AttentionArgs args_;
  BytesThere qkv_, out_, k_, v_;
  IntsThere kv_of_head_, tables_, positions_, table_of_row_;
  IntsThere tiles_, decode_rows_, groups_, done_;
  std::unique_ptr<OnDevice<float>> slopes_;
};

// The queries become numbers of the activations' type, which the reference then sees too.
inline AttentionScene RoundedScene(const AttentionShape& shape, const std::vector<int64_t>& lengths,
                                   DType activation) {
  AttentionScene scene = MakeScene(shape, lengths);
  scene.qkv = Rounded(activation, scene.qkv);
  return scene;
}

// Unit roundoff.
inline double UnitOf(DType dtype) {
  return dtype == DType::kF32 ? kUnit : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// By what share of the mean of |v| errors of weights move the mean of v. A relative error e of
// every weight does by e, and the total's error by as much again.
//
// On the CPU a weight's e is the error of its score (a chain of head_dim products, the scaling of
// q, the difference to the largest; |score| and the difference are below 40 here) plus, per tile,
// an exponential (2 ulp = 4 u) of a difference; then T additions.
inline double CpuErrorOfWeights(const AttentionScene& s) {
  const double longest = static_cast<double>(*std::max_element(s.lengths.begin(), s.lengths.end()));
  const auto dim = static_cast<double>(s.shape.head_dim);
  // sum |q k| scale <= dim * 5 * 5 * scale for normal values within five deviations; typical sums
  // are dim * 0.64.
  const double score = (dim + 2) * kUnit * dim * static_cast<double>(s.scale);
  const double tiles = longest / static_cast<double>(s.shape.block_tokens) + 1;
  return 2 * (2 * score + (tiles + 1) * (4 + 40 + 1) * kUnit + (longest + 3) * kUnit);
}

// The weights of a GPU's fast kernels are rounded to the cache's type where it is the activations'
// (the total is that of the unrounded ones; f16 loses 2^-25 of weights below 2^-14 besides), else
// they are a sum of two such numbers, as are the queries.
inline double CudaErrorOfWeights(const AttentionScene& s, DType activation) {
  const double longest = static_cast<double>(*std::max_element(s.lengths.begin(), s.lengths.end()));
  const auto dim = static_cast<double>(s.shape.head_dim);
  // sum |q k| scale <= dim * scale for normal values (typically 0.64 of it). Products are exact; a
  // tensor core may cut each addition (2 u) and the query's rest has T's unit squared.
  const double unit = UnitOf(s.shape.kv_dtype);
  const double sum = dim * static_cast<double>(s.scale);
  double score = 2 * (dim + 3) * kUnit * sum;
  double rounding = 0;
  if (s.shape.kv_dtype != DType::kF32) {
    const double tiny = s.shape.kv_dtype == DType::kF16 ? longest * 0x1p-25 : 0;
    if (activation == s.shape.kv_dtype) {
      rounding = unit + tiny;
    } else {
      rounding = unit * unit + tiny;
      score += (unit * unit + (s.shape.kv_dtype == DType::kF16 ? 0x1p-25 : 0)) * sum;
    }
  }
  // Scores and slopes times log2(e) (two roundings of at most 40 that count), the difference to the
  // largest (below 2 * 60), an exponential (4 u); once for the weight, and for every step of the
  // online softmax and of adding up (the generic kernel's steps are 16 keys for a warp).
  const double step = (80 + 120 + 4 + 1) * kUnit;
  return 2 * score + rounding + 2 * (longest / 16 + 12) * step + 2 * (longest + 3) * kUnit;
}

inline double ErrorOfWeights(const OpDevice& device, const AttentionScene& scene) {
  return device.on_cpu() ? CpuErrorOfWeights(scene) : CudaErrorOfWeights(scene, device.dtype());
}

// The reference's output, and with |v| for v: the mean that errors of weights are relative to.
inline std::vector<float> AttentionReference(AttentionScene scene, bool absolute = false) {
  if (absolute) {
    const int64_t value_bytes = BlockBytes(scene.shape.kv_dtype);
    for (size_t i = 0; i < scene.v.size(); i += static_cast<size_t>(value_bytes)) {
      scene.v[i + static_cast<size_t>(value_bytes) - 1] &= 0x7f;  // the sign is the highest bit
    }
  }
  std::vector<float> want;
  PagedAttentionRef(scene.Args(0, scene.Rows(), &want));
  return want;
}

// `got`: of the rows from `begin` on.
inline testing::AssertionResult NearReference(const OpDevice& device, const AttentionScene& scene,
                                              const std::vector<float>& got, int64_t begin = 0) {
  std::vector<float> want = AttentionReference(scene);
  std::vector<float> magnitude = AttentionReference(scene, true);
  const int64_t first = begin * scene.shape.heads * scene.shape.head_dim;
  want.erase(want.begin(), want.begin() + first);
  magnitude.erase(magnitude.begin(), magnitude.begin() + first);
  want.resize(got.size());
  const double error = ErrorOfWeights(device, scene);
  const double unit = UnitOf(device.dtype());
  return CompareWith(got, want, [&](size_t i) {
    const double of_weights = error * static_cast<double>(magnitude[i]);
    // f16 rounds results below 2^-14 by up to 2^-25.
    return of_weights + unit * (std::abs(static_cast<double>(want[i])) + of_weights) + 0x1p-25 +
           kUnit * static_cast<double>(magnitude[i]);
  });
}

}  // namespace pergola
