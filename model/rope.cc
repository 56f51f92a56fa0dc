#include "model/rope.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "model/byte_source.h"

namespace pergola {
namespace {

constexpr double kMinTheta = 1;
constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;

absl::StatusOr<double> Factor(const JsonObject& parameters, const std::string& type) {
  if (!parameters.Has("factor")) {
    return parameters.Wrong("factor", "a number for rope type " + type);
  }
  return parameters.Number("factor", 1, 1e-6, kMaxFactor);
}

absl::StatusOr<double> OriginalContext(const JsonObject& parameters, const RopeContext& context) {
  return parameters.Number("original_max_position_embeddings",
                           static_cast<double>(context.context_length), 1, 2e9);
}

absl::StatusOr<Llama3Scaling> ReadLlama3(const JsonObject& parameters, const RopeContext& context) {
  for (const char* key : {"low_freq_factor", "high_freq_factor"}) {
    if (!parameters.Has(key)) return parameters.Wrong(key, "a number for rope type llama3");
  }
  Llama3Scaling scaling;
  ASSIGN_OR_RETURN(scaling.factor, Factor(parameters, "llama3"));
  ASSIGN_OR_RETURN(scaling.low_frequency_factor,
                   parameters.Number("low_freq_factor", 1, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.high_frequency_factor,
                   parameters.Number("high_freq_factor", 4, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.original_context, OriginalContext(parameters, context));
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    return parameters.Wrong("high_freq_factor", "greater than low_freq_factor");
  }
  return scaling;
}

// Section 3.4: 0.1 ln(factor) + 1, here with a weight of the logarithm.
double Magnitude(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

absl::StatusOr<YarnScaling> ReadYarn(const JsonObject& parameters, const RopeContext& context,
                                     double theta) {
  if (theta <= 1) return parameters.Wrong("rope_theta", "greater than 1 for rope type yarn");
  YarnScaling scaling;
  scaling.theta = theta;
  ASSIGN_OR_RETURN(scaling.factor, Factor(parameters, "yarn"));
  ASSIGN_OR_RETURN(scaling.original_context, OriginalContext(parameters, context));
  // Zero means the default.
  ASSIGN_OR_RETURN(const double fast, parameters.Number("beta_fast", 0, 0, kMaxFactor));
  ASSIGN_OR_RETURN(const double slow, parameters.Number("beta_slow", 0, 0, kMaxFactor));
  if (fast > 0) scaling.beta_fast = fast;
  if (slow > 0) scaling.beta_slow = slow;
  ASSIGN_OR_RETURN(scaling.truncate, parameters.Bool("truncate", true));
  ASSIGN_OR_RETURN(const double mscale, parameters.Number("mscale", 0, 0, kMaxFactor));
  ASSIGN_OR_RETURN(const double all_dim, parameters.Number("mscale_all_dim", 0, 0, kMaxFactor));
  const double inferred = mscale > 0 && all_dim > 0 ? Magnitude(scaling.factor, mscale) /
                                                          Magnitude(scaling.factor, all_dim)
                                                    : Magnitude(scaling.factor, 1);
  ASSIGN_OR_RETURN(scaling.attention_factor,
                   parameters.Number("attention_factor", inferred, 0, kMaxFactor));
  return scaling;
}

absl::Status ApplyScaling(const JsonObject& parameters, const RopeContext& context, double theta,
                          RopeSpec* rope) {
  const char* type_key = parameters.Has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, parameters.String(type_key, "default"));
  if (type == "default") return absl::OkStatus();
  if (type == "dynamic") return Factor(parameters, type).status();
  if (type == "linear") {
    ASSIGN_OR_RETURN(const double factor, Factor(parameters, type));
    ScaleLinear(factor, rope);
    return absl::OkStatus();
  }
  if (type == "llama3") {
    ASSIGN_OR_RETURN(const Llama3Scaling scaling, ReadLlama3(parameters, context));
    ScaleLlama3(scaling, rope);
    return absl::OkStatus();
  }
  if (type == "yarn") {
    ASSIGN_OR_RETURN(const YarnScaling scaling, ReadYarn(parameters, context, theta));
    ScaleYarn(scaling, rope);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(parameters.where(), ": rope type \"", Printable(type),
                   "\" is not supported; supported: default, linear, dynamic, llama3, yarn"));
}

absl::Status RefusePartial(const JsonObject& parameters) {
  ASSIGN_OR_RETURN(const double rotated, parameters.Number("partial_rotary_factor", 1, 0, 1));
  return rotated == 1 ? absl::OkStatus() : parameters.Wrong("partial_rotary_factor", "1");
}

}  // namespace

RopeSpec PlainRope(int64_t dims, double theta) {
  RopeSpec rope;
  rope.dims = dims;
  for (int64_t i = 0; i < dims; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(dims);
    rope.inverse_frequency.push_back(1.0F / std::pow(static_cast<float>(theta), exponent));
  }
  return rope;
}

absl::Status CheckRotated(int64_t dims, std::string_view where) {
  if (dims % 2 == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": a head has ", dims,
                                                 " values; rotary pairs need an even number"));
}

void ScaleLinear(double factor, RopeSpec* rope) {
  for (float& frequency : rope->inverse_frequency) frequency /= static_cast<float>(factor);
}

void ScaleLlama3(const Llama3Scaling& scaling, RopeSpec* rope) {
  const double low_wavelength = scaling.original_context / scaling.low_frequency_factor;
  const double high_wavelength = scaling.original_context / scaling.high_frequency_factor;
  constexpr float kTwoPi = 6.283185307179586F;
  for (float& frequency : rope->inverse_frequency) {
    const float wavelength = kTwoPi / frequency;
    if (static_cast<double>(wavelength) < high_wavelength) continue;
    const float divided = frequency / static_cast<float>(scaling.factor);
    if (static_cast<double>(wavelength) > low_wavelength) {
      frequency = divided;
      continue;
    }
    const float smooth =
        (static_cast<float>(scaling.original_context) / wavelength -
         static_cast<float>(scaling.low_frequency_factor)) /
        static_cast<float>(scaling.high_frequency_factor - scaling.low_frequency_factor);
    frequency = (1.0F - smooth) * divided + smooth * frequency;
  }
}

void ScaleYarn(const YarnScaling& scaling, RopeSpec* rope) {
  const auto dims = static_cast<double>(rope->dims);
  // The pair that turns `turns` times over the original context.
  const auto pair_of = [&](double turns) {
    return dims * std::log(scaling.original_context / (turns * 2 * M_PI)) /
           (2 * std::log(scaling.theta));
  };
  double low = pair_of(scaling.beta_fast);
  double high = pair_of(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rope->inverse_frequency.size(); ++i) {
    const float kept = rope->inverse_frequency[i];
    const float divided = 1.0F / (static_cast<float>(scaling.factor) * (1.0F / kept));
    const float ramp =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float share = 1.0F - std::min(std::max(ramp, 0.0F), 1.0F);
    rope->inverse_frequency[i] = divided * (1.0F - share) + kept * share;
  }
  rope->magnitude = scaling.attention_factor;
}

absl::StatusOr<RopeSpec> RopeFromParameters(const JsonObject& parameters,
                                            const RopeContext& context) {
  RETURN_IF_ERROR(RefusePartial(parameters));
  ASSIGN_OR_RETURN(const double theta,
                   parameters.Number("rope_theta", context.default_theta, kMinTheta, kMaxTheta));
  RopeSpec rope = PlainRope(context.dims, theta);
  RETURN_IF_ERROR(ApplyScaling(parameters, context, theta, &rope));
  return rope;
}

absl::StatusOr<RopeSpec> RopeFromHf(const JsonObject& config, int64_t dims, int64_t context_length,
                                    double default_theta) {
  RETURN_IF_ERROR(CheckRotated(dims, config.where()));
  RETURN_IF_ERROR(RefusePartial(config));
  // Old files: rope_theta beside rope_scaling. transformers 5: one rope_parameters, the old keys as
  // a fallback.
  RopeContext context = {dims, context_length, default_theta};
  ASSIGN_OR_RETURN(context.default_theta,
                   config.Number("rope_theta", default_theta, kMinTheta, kMaxTheta));
  const char* key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.Has(key)) return PlainRope(dims, context.default_theta);
  ASSIGN_OR_RETURN(const JsonObject parameters, config.Object(key));
  // Beside the object it would mean the same, and more than what stands in it.
  if (config.Has("original_max_position_embeddings")) {
    return config.Wrong("original_max_position_embeddings", absl::StrCat("inside ", key));
  }
  return RopeFromParameters(parameters, context);
}

}  // namespace pergola
