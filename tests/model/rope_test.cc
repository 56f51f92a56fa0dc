#include "model/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/status.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<RopeSpec> RopeOf(const std::string& text, int64_t dims) {
  ASSIGN_OR_RETURN(const auto json, ParseJsonObject(text, "config.json"));
  return RopeFromHf(JsonObject(json, "config.json"), dims, 131072, 10000);
}

// Both sides do the same operations in f32; pow may differ by one ulp on each side, and each later
// operation adds half an ulp. `ulps` counts in units of 2^-23 relative.
void ExpectNear(const RopeSpec& rope, const std::vector<float>& expected, int ulps) {
  ASSERT_EQ(rope.inverse_frequency.size(), expected.size());
  EXPECT_EQ(rope.dims, static_cast<int64_t>(expected.size()) * 2);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LE(std::fabs(rope.inverse_frequency[i] - expected[i]),
              static_cast<float>(ulps) * std::ldexp(expected[i], -23))
        << i;
  }
}

// Expected numbers: LlamaRotaryEmbedding(LlamaConfig(...)).inv_freq of transformers 5.23.
const std::vector<float> kPlain = {1.0F,           0.316227764F,   0.100000001F,   0.0316227786F,
                                   0.00999999978F, 0.00316227786F, 0.00100000005F, 0.000316227786F};
const std::vector<float> kLinear4 = {0.25F,           0.079056941F,   0.0250000004F,
                                     0.00790569466F,  0.00249999994F, 0.000790569466F,
                                     0.000250000012F, 7.90569466e-05F};
const std::vector<float> kLlama3 = {1.0F,
                                    0.663601279F,
                                    0.440366626F,
                                    0.292227834F,
                                    0.193922758F,
                                    0.128687382F,
                                    0.0853971019F,
                                    0.0566696189F,
                                    0.0376060307F,
                                    0.0249554086F,
                                    0.0165604409F,
                                    0.0109895291F,
                                    0.00729266508F,
                                    0.00483942125F,
                                    0.00321144611F,
                                    0.00137189368F,
                                    0.000524846022F,
                                    0.000178507791F,
                                    7.78465546e-05F,
                                    5.16590699e-05F,
                                    3.42810235e-05F,
                                    2.2748929e-05F,
                                    1.50962178e-05F,
                                    1.00178686e-05F,
                                    6.64786967e-06F,
                                    4.41153452e-06F,
                                    2.92749974e-06F,
                                    1.94269251e-06F,
                                    1.28917316e-06F,
                                    8.55496921e-07F,
                                    5.6770881e-07F,
                                    3.7673226e-07F};

TEST(RopeTest, AgreesWithTransformersWithoutScaling) {
  ExpectNear(PlainRope(16, 10000), kPlain, 3);
  ExpectNear(RopeOf("{}", 16).value(), kPlain, 3);
  ExpectNear(RopeOf(R"({"rope_scaling":null})", 16).value(), kPlain, 3);
  ExpectNear(RopeOf(R"({"rope_theta":7,"rope_parameters":{"rope_theta":10000.0}})", 16).value(),
             kPlain, 3);
}

TEST(RopeTest, AgreesWithTransformersForLinearScaling) {
  ExpectNear(RopeOf(R"({"rope_scaling":{"type":"linear","factor":4.0}})", 16).value(), kLinear4, 3);
  ExpectNear(RopeOf(R"({"rope_parameters":{"rope_type":"linear","factor":4}})", 16).value(),
             kLinear4, 3);
}

TEST(RopeTest, AgreesWithTransformersForLlama3Scaling) {
  const std::string numbers =
      R"("rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
      R"("original_max_position_embeddings":8192})";
  // Interpolation subtracts numbers of one size, which costs up to 4 / (4 - 1) of their error per
  // operation.
  ExpectNear(RopeOf(R"({"rope_theta":500000,"rope_scaling":{)" + numbers + "}", 64).value(),
             kLlama3, 12);
  ExpectNear(RopeOf(R"({"rope_parameters":{"rope_theta":500000.0,)" + numbers + "}", 64).value(),
             kLlama3, 12);
}

TEST(RopeTest, AgreesWithTransformersForYarn) {
  const std::vector<float> four = {
      1.0F,           0.316227764F,   0.100000001F,    0.0316227786F,
      0.00999999978F, 0.00256935088F, 0.000625000044F, 0.000138349656F};
  const std::string numbers = R"({"rope_scaling":{"rope_type":"yarn","factor":4.0,)"
                              R"("original_max_position_embeddings":32768)";
  const RopeSpec plain = RopeOf(numbers + "}}", 16).value();
  // A weighted sum of two positive numbers: no operation magnifies an error, there are five more.
  ExpectNear(plain, four, 6);
  EXPECT_DOUBLE_EQ(plain.magnitude, 1.138629436111989);
  const RopeSpec stated = RopeOf(numbers + R"(,"attention_factor":1.25}})", 16).value();
  ExpectNear(stated, four, 6);
  EXPECT_EQ(stated.magnitude, 1.25);
}

TEST(RopeTest, AgreesWithTransformersForYarnWithAllItsOptions) {
  const RopeSpec rope =
      RopeOf(R"({"rope_scaling":{"type":"yarn","factor":40.0,"beta_fast":16.0,"beta_slow":2.0,)"
             R"("original_max_position_embeddings":4096,"mscale":0.707,"mscale_all_dim":1.0,)"
             R"("truncate":false}})",
             16)
          .value();
  // The ramp of pair 4 divides a difference of 0.8 by one of 3.1: its share of 0.6 errs by a few
  // units more, and the divided part is a fortieth.
  ExpectNear(rope,
             {1.0F, 0.316227764F, 0.100000001F, 0.0316227786F, 0.00579010462F, 0.000123952457F,
              2.49999994e-05F, 7.90569447e-06F},
             16);
  EXPECT_DOUBLE_EQ(rope.magnitude, 0.9210423553163399);
}

// It scales only beyond max_position_embeddings, and nothing is served there.
TEST(RopeTest, DynamicScalingIsNoneWithinTheContext) {
  ExpectNear(RopeOf(R"({"rope_scaling":{"type":"dynamic","factor":2.0}})", 16).value(), kPlain, 3);
}

TEST(RopeTest, RefusesScalingWithoutItsNumbers) {
  const auto error = [](const std::string& scaling) {
    return std::string(RopeOf(R"({"rope_scaling":)" + scaling + "}", 16).status().message());
  };
  EXPECT_THAT(error(R"({"type":"linear"})"), HasSubstr("rope_scaling: factor is missing"));
  EXPECT_THAT(error(R"({"type":"linear","factor":0})"), HasSubstr("factor is 0"));
  EXPECT_THAT(error(R"({"rope_type":"llama3","factor":8})"), HasSubstr("low_freq_factor"));
  EXPECT_THAT(
      error(R"({"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})"),
      HasSubstr("greater than low_freq_factor"));
  EXPECT_THAT(error(R"({"type":"dynamic"})"), HasSubstr("factor is missing"));
  EXPECT_THAT(error(R"({"type":"yarn"})"), HasSubstr("factor is missing"));
  EXPECT_THAT(error(R"({"type":"yarn","factor":4,"rope_theta":1})"),
              HasSubstr("rope_theta is 1, but must be greater than 1"));
  EXPECT_THAT(error(R"({"type":"yarn","factor":4,"truncate":1})"), HasSubstr("truncate is 1"));
  EXPECT_THAT(error(R"({"type":"yarn","factor":4,"attention_factor":-1})"),
              HasSubstr("attention_factor is -1"));
  EXPECT_THAT(std::string(RopeOf(R"({"original_max_position_embeddings":32,)"
                                 R"("rope_scaling":{"type":"yarn","factor":4}})",
                                 16)
                              .status()
                              .message()),
              HasSubstr("original_max_position_embeddings is 32, but must be inside"));
  EXPECT_THAT(error(R"("linear")"), HasSubstr("must be an object"));
  EXPECT_THAT(error(R"({"type":3})"), HasSubstr("must be a string"));
}

}  // namespace
}  // namespace pergola
