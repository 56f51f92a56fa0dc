#include "model/rope.h"

#include <cmath>

#include "base/status.h"
#include "model/byte_source.h"

namespace pergola {
namespace {

constexpr double kMinTheta = 1;
constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;

absl::StatusOr<Llama3Scaling> ReadLlama3(const JsonObject& parameters, int64_t context_length) {
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor"}) {
    if (!parameters.Has(key)) return parameters.Wrong(key, "a number for rope type llama3");
  }
  Llama3Scaling scaling;
  ASSIGN_OR_RETURN(scaling.factor, parameters.Number("factor", 1, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.low_frequency_factor,
                   parameters.Number("low_freq_factor", 1, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.high_frequency_factor,
                   parameters.Number("high_freq_factor", 4, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.original_context,
                   parameters.Number("original_max_position_embeddings",
                                     static_cast<double>(context_length), 1, 2e9));
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    return parameters.Wrong("high_freq_factor", "greater than low_freq_factor");
  }
  return scaling;
}

absl::Status ApplyScaling(const JsonObject& parameters, const std::string& type,
                          int64_t context_length, RopeSpec* rope) {
  ASSIGN_OR_RETURN(const double rotated, parameters.Number("partial_rotary_factor", 1, 0, 1));
  if (rotated != 1) return parameters.Wrong("partial_rotary_factor", "1");
  if (type == "default") return absl::OkStatus();
  if (type == "linear") {
    if (!parameters.Has("factor"))
      return parameters.Wrong("factor", "a number for rope type linear");
    ASSIGN_OR_RETURN(const double factor, parameters.Number("factor", 1, 1e-6, kMaxFactor));
    ScaleLinear(factor, rope);
    return absl::OkStatus();
  }
  if (type == "llama3") {
    ASSIGN_OR_RETURN(const Llama3Scaling scaling, ReadLlama3(parameters, context_length));
    ScaleLlama3(scaling, rope);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(parameters.where(), ": rope type \"",
                                                 Printable(type), "\" is not supported; ",
                                                 "supported: default, linear, llama3"));
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

absl::StatusOr<RopeSpec> RopeFromHf(const JsonObject& config, int64_t dims, int64_t context_length,
                                    double default_theta) {
  // Old files: rope_theta beside rope_scaling. transformers 5: one rope_parameters, the old keys as
  // a fallback.
  RETURN_IF_ERROR(CheckRotated(dims, config.where()));
  ASSIGN_OR_RETURN(double theta, config.Number("rope_theta", default_theta, kMinTheta, kMaxTheta));
  const char* key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.Has(key)) return PlainRope(dims, theta);
  ASSIGN_OR_RETURN(const JsonObject parameters, config.Object(key));
  ASSIGN_OR_RETURN(theta, parameters.Number("rope_theta", theta, kMinTheta, kMaxTheta));
  const char* type_key = parameters.Has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, parameters.String(type_key, "default"));
  RopeSpec rope = PlainRope(dims, theta);
  RETURN_IF_ERROR(ApplyScaling(parameters, type, context_length, &rope));
  return rope;
}

}  // namespace pergola
