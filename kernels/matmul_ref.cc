#include <vector>

#include "kernels/matmul.h"

namespace pergola {

void MatmulRef(const MatmulArgs& args) {
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

}  // namespace pergola
