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

// From config.json: rope_parameters (transformers 5), or rope_theta and rope_scaling with `type` or
// `rope_type`. Types default, linear and llama3; others are INVALID_ARGUMENT by name.
absl::StatusOr<RopeSpec> RopeFromHf(const JsonObject& config, int64_t dims, int64_t context_length,
                                    double default_theta);

}  // namespace pergola
