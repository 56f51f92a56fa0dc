// Angular frequencies of the rotary embedding from a configuration's numbers.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/json.h"
#include "model/model_spec.h"

namespace pergola {

// inverse_frequency[i] = 1 / theta^(2i / dims): Su et al., arXiv:2104.09864, section 3.3. Each
// operation is rounded to f32 as Hugging Face's are, so that angles at far positions agree.
RopeSpec PlainRope(int64_t dims, double theta);
// INVALID_ARGUMENT, beginning with `where`, if heads of `dims` values have no pairs to rotate.
absl::Status CheckRotated(int64_t dims, std::string_view where);
// Linear scaling (positions are divided by `factor`).
void ScaleLinear(double factor, RopeSpec* rope);

struct Llama3Scaling {
  double factor = 1;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_context = 8192;
};
// Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, those between
// interpolated.
void ScaleLlama3(const Llama3Scaling& scaling, RopeSpec* rope);

// YaRN (Peng et al., arXiv:2309.00071, section 3.2 to 3.4): pairs that turn more than `beta_fast`
// times over the original context are kept, those below `beta_slow` turns are divided by the
// factor, those between interpolated; the magnitude grows with the factor.
struct YarnScaling {
  double factor = 1;
  double theta = 10000;
  double original_context = 8192;
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;  // the range of pairs is widened to whole ones
  double attention_factor = 1;
};
void ScaleYarn(const YarnScaling& scaling, RopeSpec* rope);

struct RopeContext {
  int64_t dims = 0;
  int64_t context_length = 0;
  double default_theta = 0;
};
// One object of rope parameters (rope_theta, rope_type or type, and the type's numbers). Types
// default, linear, llama3, yarn, and dynamic, which scales only beyond the model's context, where
// nothing is served; others are INVALID_ARGUMENT by name.
absl::StatusOr<RopeSpec> RopeFromParameters(const JsonObject& parameters,
                                            const RopeContext& context);

// From config.json: rope_parameters (transformers 5), or rope_theta and rope_scaling.
absl::StatusOr<RopeSpec> RopeFromHf(const JsonObject& config, int64_t dims, int64_t context_length,
                                    double default_theta);

}  // namespace pergola
