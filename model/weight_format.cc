#include "model/weight_format.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {

const char* WeightFormatName(WeightFormat format) {
  static constexpr const char* kNames[] = {"auto", "f32", "bf16", "f16", "int8", "fp8", "int4"};
  return kNames[static_cast<int>(format)];
}

absl::StatusOr<WeightFormat> ParseWeightFormat(const std::string& name) {
  std::string known;
  for (const WeightFormat format : kWeightFormats) {
    if (name == WeightFormatName(format)) return format;
    absl::StrAppend(&known, known.empty() ? "" : ", ", WeightFormatName(format));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype is '", name, "'; it must be one of ", known));
}

absl::Status CheckOnCpu(WeightFormat format) {
  if (format != WeightFormat::kFp8) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--dtype fp8 is for GPUs; on the CPU eight bits a weight are --dtype int8");
}

namespace {

bool TakesFiveBits(DType dtype) {
  return 8 * BlockBytes(dtype) <= 5 * BlockValues(dtype);
}

}  // namespace

DType HeldDType(WeightFormat format, DType file, bool projection) {
  switch (format) {
    case WeightFormat::kAuto:
      return file;
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kInt8:
      return projection ? DType::kInt8 : file;
    case WeightFormat::kFp8:
      return projection ? DType::kFp8 : file;
    case WeightFormat::kInt4:
      return projection && !TakesFiveBits(file) ? kInt4Groups : file;
  }
  PERGOLA_CHECK(false);
}

}  // namespace pergola
