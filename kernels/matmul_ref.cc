#include <vector>

#include "kernels/decoder_ops.h"
#include "kernels/int8.h"
#include "kernels/matmul.h"

namespace pergola {
namespace {

// One token by one output of an int8 matrix: everything but bias and sum with y.
struct Int8Token {
  const float* x = nullptr;
  float limit = 0;
  double scale = 0;
  std::vector<int8_t> q;
};

double Int8Dot(const Int8Token& token, const std::vector<int8_t>& w, double w_scale) {
  int64_t sum = 0;
  double outliers = 0;
  for (size_t k = 0; k < w.size(); ++k) {
    sum += int64_t{token.q[k]} * int64_t{w[k]};
    if (IsInt8Outlier(token.x[k], token.limit)) outliers += static_cast<double>(token.x[k]) * w[k];
  }
  return w_scale * (token.scale * static_cast<double>(sum) + outliers);
}

void MatmulInt8Ref(const MatmulArgs& args) {
  const int64_t columns = args.w->columns();
  const int64_t outputs = args.w->rows();
  std::vector<int8_t> w(static_cast<size_t>(columns));
  Int8Token token;
  token.q.resize(w.size());
  for (int64_t r = 0; r < args.x.dim(0); ++r) {
    token.x = args.x.f32() + r * columns;
    float* y = args.y.f32() + r * outputs;
    token.limit = Int8LimitOf(token.x, columns);
    token.scale = QuantizeInt8Token(token.x, columns, token.limit, token.q.data());
    for (int64_t o = 0; o < outputs; ++o) {
      const float w_scale = args.w->Int8Row(o, w.data());
      double sum = Int8Dot(token, w, w_scale);
      if (args.bias != nullptr) sum += static_cast<double>(args.bias[o]);
      if (args.accumulate) sum += static_cast<double>(y[o]);
      y[o] = static_cast<float>(sum);
    }
  }
}

void MatmulFloatRef(const MatmulArgs& args) {
  const int64_t rows = args.x.dim(0);
  const int64_t columns = args.w->columns();
  const int64_t outputs = args.w->rows();
  const float* x = args.x.f32();
  float* y = args.y.f32();
  std::vector<float> weights(static_cast<size_t>(columns));
  for (int64_t o = 0; o < outputs; ++o) {
    args.w->UnpackRow(o, weights.data());
    for (int64_t r = 0; r < rows; ++r) {
      double sum = args.bias != nullptr ? args.bias[o] : 0.0;
      for (int64_t k = 0; k < columns; ++k) {
        sum += static_cast<double>(x[r * columns + k]) * static_cast<double>(weights[k]);
      }
      if (args.accumulate) sum += static_cast<double>(y[r * outputs + o]);
      y[r * outputs + o] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void MatmulRef(const MatmulArgs& args) {
  if (args.w->dtype() == DType::kInt8) {
    MatmulInt8Ref(args);
  } else {
    MatmulFloatRef(args);
  }
  if (args.activation.has_value()) ActivateRef({*args.activation, false, args.y, args.y});
}

}  // namespace pergola
