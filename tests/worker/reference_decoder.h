// The Llama forward pass as naively as it can be written: whole sequence, no cache, one scalar type
// T. In double it is what the executor is compared with; in float it shows what f32 alone costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/worker/memory_checkpoint.h"

namespace pergola {

template <typename T>
class ReferenceDecoder {
 public:
  explicit ReferenceDecoder(const MemoryCheckpoint& checkpoint)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()) {}

  // Logits [ids.size()][vocabulary].
  std::vector<std::vector<T>> Logits(const std::vector<int32_t>& ids) const {
    std::vector<std::vector<T>> x;
    for (int32_t id : ids) x.push_back(Row(Role::kTokenEmbedding, -1, id, spec_.hidden));
    for (int64_t layer = 0; layer < spec_.layers; ++layer) {
      std::vector<std::vector<T>> normed;
      for (const auto& row : x) normed.push_back(Norm(row, Role::kAttentionNorm, layer));
      const auto attended = Attend(normed, layer);
      for (size_t i = 0; i < x.size(); ++i) {
        AddTo(&x[i],
              Linear(attended[i], Role::kAttentionOutput, Role::kAttentionOutputBias, layer));
        AddTo(&x[i], Mlp(Norm(x[i], Role::kMlpNorm, layer), layer));
      }
    }
    const Role head = spec_.tied_embeddings ? Role::kTokenEmbedding : Role::kLmHead;
    std::vector<std::vector<T>> logits;
    for (const auto& row : x) {
      // There is no bias of the head; the role names one that layer -1 does not have.
      logits.push_back(Linear(Norm(row, Role::kFinalNorm, -1), head, Role::kDownBias, -1));
    }
    return logits;
  }

 private:
  std::vector<T> Row(Role role, int64_t layer, int64_t row, int64_t columns) const {
    const float* values = checkpoint_.Values(role, layer).data() + row * columns;
    return std::vector<T>(values, values + columns);
  }

  static void AddTo(std::vector<T>* x, const std::vector<T>& y) {
    for (size_t i = 0; i < y.size(); ++i) (*x)[i] += y[i];
  }

  std::vector<T> Norm(const std::vector<T>& x, Role role, int64_t layer) const {
    T sum = 0;
    for (T value : x) sum += value * value;
    const T scale = 1 / std::sqrt(sum / static_cast<T>(x.size()) + T{spec_.norm_epsilon});
    std::vector<T> y = Row(role, layer, 0, spec_.hidden);
    for (size_t i = 0; i < x.size(); ++i) y[i] *= x[i] * scale;
    return y;
  }

  std::vector<T> Linear(const std::vector<T>& x, Role role, Role bias, int64_t layer) const {
    const std::vector<float>& weight = checkpoint_.Values(role, layer);
    std::vector<T> y(weight.size() / x.size());
    for (size_t row = 0; row < y.size(); ++row) {
      for (size_t k = 0; k < x.size(); ++k) y[row] += x[k] * T{weight[row * x.size() + k]};
    }
    if (checkpoint_.Has(bias, layer)) {
      AddTo(&y, Row(bias, layer, 0, static_cast<int64_t>(y.size())));
    }
    return y;
  }

  std::vector<T> Mlp(const std::vector<T>& x, int64_t layer) const {
    std::vector<T> gate = Linear(x, Role::kGate, Role::kGateBias, layer);
    const std::vector<T> up = Linear(x, Role::kUp, Role::kUpBias, layer);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    return Linear(gate, Role::kDown, Role::kDownBias, layer);
  }

  void Rotate(std::vector<T>* heads, int64_t position) const {
    const int64_t half = spec_.rope.dims / 2;
    for (int64_t head = 0; head < static_cast<int64_t>(heads->size()); head += spec_.head_dim) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * spec_.rope.inverse_frequency[i];
        const T cosine = static_cast<T>(std::cos(angle));
        const T sine = static_cast<T>(std::sin(angle));
        const T a = (*heads)[head + i];
        const T b = (*heads)[head + i + half];
        (*heads)[head + i] = a * cosine - b * sine;
        (*heads)[head + i + half] = b * cosine + a * sine;
      }
    }
  }

  std::vector<std::vector<T>> Attend(const std::vector<std::vector<T>>& x, int64_t layer) const {
    std::vector<std::vector<T>> q, k, v, out;
    for (size_t i = 0; i < x.size(); ++i) {
      q.push_back(Linear(x[i], Role::kQuery, Role::kQueryBias, layer));
      k.push_back(Linear(x[i], Role::kKey, Role::kKeyBias, layer));
      v.push_back(Linear(x[i], Role::kValue, Role::kValueBias, layer));
      Rotate(&q[i], static_cast<int64_t>(i));
      Rotate(&k[i], static_cast<int64_t>(i));
    }
    const int64_t dim = spec_.head_dim;
    for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
      out.emplace_back(spec_.heads * dim);
      const int64_t window = spec_.sliding_window;
      const int64_t first = window > 0 ? std::max<int64_t>(0, i - window + 1) : 0;
      for (int64_t head = 0; head < spec_.heads; ++head) {
        const int64_t kv = head / (spec_.heads / spec_.kv_heads);
        std::vector<T> weight;
        for (int64_t p = first; p <= i; ++p) {
          T dot = 0;
          for (int64_t d = 0; d < dim; ++d) dot += q[i][head * dim + d] * k[p][kv * dim + d];
          weight.push_back(dot * T{spec_.attention_scale});
        }
        const T largest = *std::max_element(weight.begin(), weight.end());
        T sum = 0;
        for (T& w : weight) sum += w = std::exp(w - largest);
        for (int64_t p = first; p <= i; ++p) {
          for (int64_t d = 0; d < dim; ++d) {
            out[i][head * dim + d] += weight[p - first] / sum * v[p][kv * dim + d];
          }
        }
      }
    }
    return out;
  }

  const MemoryCheckpoint& checkpoint_;
  const ModelSpec& spec_;
};

}  // namespace pergola
