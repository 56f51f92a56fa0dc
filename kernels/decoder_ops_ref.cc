#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/decoder_ops.h"
#include "kernels/kv_layout.h"

namespace pergola {

void RmsNormRef(const RmsNormArgs& args) {
  const int64_t rows = args.x.dim(0);
  const int64_t hidden = args.x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    float* x = args.x.f32() + r * hidden;
    float* y = args.y.f32() + r * hidden;
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      if (args.residual.data() != nullptr) x[i] += args.residual.f32()[r * hidden + i];
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    const double scale =
        1.0 / std::sqrt(squares / static_cast<double>(hidden) + static_cast<double>(args.epsilon));
    for (int64_t i = 0; i < hidden; ++i) {
      y[i] = static_cast<float>(static_cast<double>(x[i]) * scale *
                                static_cast<double>(args.weight[i]));
    }
  }
}

void LayerNormRef(const LayerNormArgs& args) {
  const int64_t rows = args.x.dim(0);
  const int64_t hidden = args.x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    float* x = args.x.f32() + r * hidden;
    float* y = args.y.f32() + r * hidden;
    double sum = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      if (args.residual.data() != nullptr) x[i] += args.residual.f32()[r * hidden + i];
      sum += static_cast<double>(x[i]);
    }
    const double mean = sum / static_cast<double>(hidden);
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      const double difference = static_cast<double>(x[i]) - mean;
      squares += difference * difference;
    }
    const double scale =
        1.0 / std::sqrt(squares / static_cast<double>(hidden) + static_cast<double>(args.epsilon));
    for (int64_t i = 0; i < hidden; ++i) {
      y[i] = static_cast<float>((static_cast<double>(x[i]) - mean) * scale *
                                    static_cast<double>(args.weight[i]) +
                                static_cast<double>(args.bias[i]));
    }
  }
}

void HeadNormRef(const HeadNormArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  const int64_t dim = args.head_dim;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < args.heads + args.kv_heads; ++h) {
      RmsNormArgs one;
      one.x = Tensor(args.qkv.f32() + r * args.qkv.dim(1) + h * dim, DType::kF32, {1, dim});
      one.weight = h < args.heads ? args.query_weight : args.key_weight;
      one.epsilon = args.epsilon;
      one.y = one.x;
      RmsNormRef(one);
    }
  }
}

namespace {

void RotateHeadRef(const RopeTable& rope, int64_t position, float* head) {
  const int64_t half = rope.dims / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double c = rope.cosine[position * half + i];
    const double s = rope.sine[position * half + i];
    const double a = head[i];
    const double b = head[i + half];
    head[i] = static_cast<float>(a * c - b * s);
    head[i + half] = static_cast<float>(b * c + a * s);
  }
}

void StoreHeadRef(DType dtype, const float* values, int64_t count, uint8_t* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = dtype == DType::kBF16 ? F32ToBF16(values[i]) : F32ToF16(values[i]);
    std::memcpy(to + 2 * i, &bits, sizeof(bits));
  }
}

}  // namespace

void RopeAndStoreRef(const RopeAndStoreArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  const int64_t row_values = (args.heads + 2 * args.kv_heads) * args.head_dim;
  const KvLayout layout{args.kv_heads, args.block_tokens, args.head_dim, args.kv_dtype};
  auto* k_cache = static_cast<uint8_t*>(args.k_cache);
  auto* v_cache = static_cast<uint8_t*>(args.v_cache);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = args.qkv.f32() + r * row_values;
    for (int64_t h = 0; h < args.heads + args.kv_heads; ++h) {
      RotateHeadRef(args.rope, args.positions[r], row + h * args.head_dim);
    }
    for (int64_t h = 0; h < args.kv_heads; ++h) {
      const int64_t offset = layout.OffsetOfSlot(args.slot_of_row[r], h);
      StoreHeadRef(args.kv_dtype, row + (args.heads + h) * args.head_dim, args.head_dim,
                   k_cache + offset);
      StoreHeadRef(args.kv_dtype, row + (args.heads + args.kv_heads + h) * args.head_dim,
                   args.head_dim, v_cache + offset);
    }
  }
}

void PagedAttentionRef(const AttentionArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  const int64_t row_values = (args.heads + 2 * args.kv_heads) * args.head_dim;
  const KvLayout layout{args.kv_heads, args.block_tokens, args.head_dim, args.kv_dtype};
  const auto* k_cache = static_cast<const uint8_t*>(args.k_cache);
  const auto* v_cache = static_cast<const uint8_t*>(args.v_cache);
  std::vector<float> cached(static_cast<size_t>(args.head_dim));
  std::vector<double> scores;
  std::vector<double> sum(static_cast<size_t>(args.head_dim));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t last = args.positions[r];
    const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
    const int32_t* table = args.block_tables + args.table_of_row[r] * args.table_stride;
    for (int64_t h = 0; h < args.heads; ++h) {
      const float* q = args.qkv.f32() + r * row_values + h * args.head_dim;
      const auto load = [&](const uint8_t* cache, int64_t p) {
        const int64_t slot =
            table[p / args.block_tokens] * args.block_tokens + p % args.block_tokens;
        DecodeToF32(args.kv_dtype, cache + layout.OffsetOfSlot(slot, args.kv_of_head[h]),
                    args.head_dim, cached.data());
      };
      scores.clear();
      double largest = -std::numeric_limits<double>::infinity();
      for (int64_t p = first; p <= last; ++p) {
        load(k_cache, p);
        double dot = 0;
        for (int64_t i = 0; i < args.head_dim; ++i) {
          dot += static_cast<double>(q[i]) * static_cast<double>(cached[i]);
        }
        double score = dot * static_cast<double>(args.scale);
        if (args.alibi_slopes != nullptr) {
          score += static_cast<double>(args.alibi_slopes[h]) * static_cast<double>(p - last);
        }
        scores.push_back(score);
        largest = std::max(largest, scores.back());
      }
      double total = 0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t p = first; p <= last; ++p) {
        const double weight = std::exp(scores[p - first] - largest);
        total += weight;
        load(v_cache, p);
        for (int64_t i = 0; i < args.head_dim; ++i) {
          sum[i] += weight * static_cast<double>(cached[i]);
        }
      }
      float* out = args.out.f32() + (r * args.heads + h) * args.head_dim;
      for (int64_t i = 0; i < args.head_dim; ++i) out[i] = static_cast<float>(sum[i] / total);
    }
  }
}

namespace {

double ActivationRef(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      // 1 + tanh(t / 2) is 2 / (1 + exp(-t)), which loses nothing where t is far below zero.
      return x / (1.0 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
  }
  return 0;
}

}  // namespace

void ActivateRef(const ActivateArgs& args) {
  const int64_t rows = args.y.dim(0);
  const int64_t width = args.y.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = args.x.f32() + r * args.x.dim(1);
    float* y = args.y.f32() + r * width;
    for (int64_t i = 0; i < width; ++i) {
      const double factor = args.gated ? static_cast<double>(x[width + i]) : 1.0;
      y[i] = static_cast<float>(ActivationRef(args.activation, x[i]) * factor);
    }
  }
}

void SoftCapRef(const SoftCapArgs& args) {
  const double cap = args.cap;
  float* x = args.x.f32();
  for (int64_t i = 0; i < args.x.values(); ++i)
    x[i] = static_cast<float>(cap * std::tanh(x[i] / cap));
}

}  // namespace pergola
