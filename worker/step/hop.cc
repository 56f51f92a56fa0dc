#include "worker/step/hop.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"

namespace pergola {
namespace {

// The header's length, as four little-endian bytes.
constexpr size_t kLengthBytes = 4;

void PutLength(uint32_t length, uint8_t* out) {
  for (size_t i = 0; i < kLengthBytes; ++i) out[i] = static_cast<uint8_t>(length >> (8 * i));
}

uint32_t GetLength(const uint8_t* in) {
  uint32_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= static_cast<uint32_t>(in[i]) << (8 * i);
  return length;
}

}  // namespace

void EncodeHop(const v1::StepResult& header, const float* values, int64_t value_count, int tp_rank,
               int tensor_parallel, std::vector<uint8_t>* message) {
  const int64_t share = HopShare(value_count, tensor_parallel);
  const int64_t begin = std::min(value_count, share * tp_rank);
  const int64_t count = std::min(value_count, begin + share) - begin;
  const size_t header_bytes = header.ByteSizeLong();
  message->assign(kLengthBytes + header_bytes + share * sizeof(float), 0);
  PutLength(static_cast<uint32_t>(header_bytes), message->data());
  header.SerializeToArray(message->data() + kLengthBytes, static_cast<int>(header_bytes));
  if (count > 0) {
    std::memcpy(message->data() + kLengthBytes + header_bytes, values + begin,
                count * sizeof(float));
  }
}

absl::Status DecodeHop(const std::vector<uint8_t>& message, const v1::StepPlan& plan,
                       int64_t share_count, v1::StepResult* header, float* share) {
  const size_t share_bytes = share_count * sizeof(float);
  const size_t header_bytes = message.size() < kLengthBytes ? 0 : GetLength(message.data());
  if (message.size() != kLengthBytes + header_bytes + share_bytes ||
      !header->ParseFromArray(message.data() + kLengthBytes, static_cast<int>(header_bytes))) {
    return absl::InternalError(absl::StrCat("the activations of plan ", plan.plan_id(), " came as ",
                                            message.size(), " bytes; expected a header and ",
                                            share_bytes));
  }
  if (header->plan_id() != plan.plan_id() || header->epoch() != plan.epoch()) {
    return absl::InternalError(absl::StrCat("activations of plan ", header->plan_id(), " of epoch ",
                                            header->epoch(), " came for plan ", plan.plan_id(),
                                            " of epoch ", plan.epoch()));
  }
  if (share_bytes > 0) {
    std::memcpy(share, message.data() + kLengthBytes + header_bytes, share_bytes);
  }
  return absl::OkStatus();
}

}  // namespace pergola
