#include "kernels/matmul.h"

#include "base/check.h"

namespace pergola {

void CheckMatmul(const MatmulArgs& args) {
  PERGOLA_CHECK(args.w != nullptr);
  PERGOLA_CHECK(args.x.rank() == 2 && args.y.rank() == 2);
  PERGOLA_CHECK(args.x.dim(0) == args.y.dim(0));
  PERGOLA_CHECK_MSG(args.x.dim(1) == args.w->columns(), "x has " + std::to_string(args.x.dim(1)) +
                                                            " columns, the weights " +
                                                            std::to_string(args.w->columns()));
  PERGOLA_CHECK_MSG(args.y.dim(1) == args.w->rows(), "y has " + std::to_string(args.y.dim(1)) +
                                                         " columns, the weights " +
                                                         std::to_string(args.w->rows()) + " rows");
  PERGOLA_CHECK(!args.accumulate || !args.activation.has_value());
}

void Matmul(Stream& stream, const MatmulArgs& args) {
  CheckMatmul(args);
  if (args.x.dim(0) == 0 || args.w->rows() == 0) return;
  stream.Run(args);
}

}  // namespace pergola
