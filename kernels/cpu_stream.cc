#include "kernels/cpu_stream.h"

#include <algorithm>
#include <cstring>

#include "base/available_memory.h"
#include "base/check.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/cpu/matmul_cpu.h"
#include "kernels/decoder_ops.h"
#include "kernels/device_sampler.h"
#include "kernels/matmul.h"
#include "kernels/thread_pool.h"

namespace pergola {

CpuStream::CpuStream(const StreamOptions& options, CpuTarget target)
    : target_(target),
      pool_(std::make_unique<ThreadPool>(options.threads, options.first_cpu)),
      workspace_(options.workspace_bytes) {}

CpuStream::~CpuStream() = default;

std::unique_ptr<CpuStream> CpuStream::Create(const StreamOptions& options) {
  CpuTarget best = CpuTarget::kPortable;
  for (CpuTarget target : {CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (CpuTargetSupported(target)) best = target;
  }
  return Create(options, best);
}

std::unique_ptr<CpuStream> CpuStream::Create(const StreamOptions& options, CpuTarget target) {
  PERGOLA_CHECK_MSG(CpuTargetSupported(target),
                    std::string("this machine lacks ") + CpuTargetName(target));
  PERGOLA_CHECK(options.threads >= 1 && options.workspace_bytes >= 0);
  return std::unique_ptr<CpuStream>(new CpuStream(options, target));
}

int CpuStream::threads() const {
  return pool_->threads();
}

uint8_t* CpuStream::Workspace(int64_t bytes) {
  PERGOLA_CHECK_MSG(bytes <= workspace_.size(), "an op wants " + std::to_string(bytes) +
                                                    " bytes of a workspace of " +
                                                    std::to_string(workspace_.size()));
  return workspace_.data();
}

std::string CpuStream::name() const {
  return CpuTargetName(target_);
}

uint8_t* CpuStream::Allocate(int64_t bytes, Place /*place*/) {
  PERGOLA_CHECK_MSG(!sealed_,
                    std::to_string(bytes) + " bytes are to be allocated after the rank was loaded");
  return AllocateHostMemory(bytes);
}

void CpuStream::Free(uint8_t* memory, Place /*place*/) {
  std::free(memory);
}

int64_t CpuStream::AvailableBytes() const {
  return AvailableMemory();
}

void CpuStream::CopyToDevice(void* to, const void* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void CpuStream::CopyToHost(void* to, const void* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

DeviceSamplerBytes CpuStream::SamplerBytes(const DeviceSamplerShape& /*shape*/) const {
  return {};
}

absl::StatusOr<std::unique_ptr<DeviceSampler>> CpuStream::MakeSampler(
    const DeviceSamplerShape& /*shape*/) {
  return std::unique_ptr<DeviceSampler>();
}

void CpuStream::BeginRecording() {
  PERGOLA_CHECK_MSG(false, "the CPU records nothing");
}

absl::StatusOr<std::unique_ptr<Recording>> CpuStream::EndRecording() {
  PERGOLA_CHECK_MSG(false, "the CPU records nothing");
}

void CpuStream::Replay(const Recording& /*recording*/) {
  PERGOLA_CHECK_MSG(false, "the CPU records nothing");
}

void CpuStream::Run(const EmbeddingArgs& args) {
  const int64_t hidden = args.table->columns();
  const int32_t* ids = args.ids.i32();
  float* y = args.y.f32();
  pool_->ParallelFor(args.ids.values(), 16, [&](int64_t begin, int64_t end) {
    std::vector<float> decoded(args.scale != 1 || args.accumulate ? hidden : 0);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = ids[r] - args.first_row;
      const bool held = row >= 0 && row < args.table->rows();
      float* out = y + r * hidden;
      if (!held) {
        if (!args.accumulate) std::fill_n(out, hidden, 0.0F);
        continue;
      }
      args.table->UnpackRow(row, decoded.empty() ? out : decoded.data());
      for (size_t i = 0; i < decoded.size(); ++i) {
        const float value = decoded[i] * args.scale;
        out[i] = args.accumulate ? out[i] + value : value;
      }
    }
  });
}

void CpuStream::Run(const RmsNormArgs& args) {
  if (target_ == CpuTarget::kReference) return RmsNormRef(args);
  RmsNormCpu(*this, args);
}

void CpuStream::Run(const LayerNormArgs& args) {
  if (target_ == CpuTarget::kReference) return LayerNormRef(args);
  LayerNormCpu(*this, args);
}

void CpuStream::Run(const HeadNormArgs& args) {
  if (target_ == CpuTarget::kReference) return HeadNormRef(args);
  HeadNormCpu(*this, args);
}

void CpuStream::Run(const RopeAndStoreArgs& args) {
  if (target_ == CpuTarget::kReference) return RopeAndStoreRef(args);
  RopeAndStoreCpu(*this, args);
}

void CpuStream::Run(const AttentionArgs& args) {
  if (target_ == CpuTarget::kReference) return PagedAttentionRef(args);
  PagedAttentionCpu(*this, args);
}

void CpuStream::Run(const ActivateArgs& args) {
  if (target_ == CpuTarget::kReference) return ActivateRef(args);
  ActivateCpu(*this, args);
}

void CpuStream::Run(const SoftCapArgs& args) {
  if (target_ == CpuTarget::kReference) return SoftCapRef(args);
  SoftCapCpu(*this, args);
}

void CpuStream::Run(const AddArgs& args) {
  float* x = args.x.f32();
  const float* y = args.y.f32();
  for (int64_t i = 0; i < args.x.values(); ++i) x[i] += y[i];
}

void CpuStream::Run(const CopyRowsArgs& args) {
  const int64_t columns = args.y.dim(1);
  for (int64_t r = 0; r < args.y.dim(0); ++r) {
    const int64_t row = args.rows == nullptr ? r : args.rows[r];
    std::copy_n(args.x.f32() + row * columns, columns, args.y.f32() + r * columns);
  }
}

void CpuStream::Run(const CopyColumnsArgs& args) {
  const int64_t columns = args.x.dim(1);
  for (int64_t r = 0; r < args.x.dim(0); ++r) {
    std::copy_n(args.x.f32() + r * columns, columns,
                args.y.f32() + r * args.y.dim(1) + args.first_column);
  }
}

void CpuStream::Run(const ScatterArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) args.to[args.at[i]] = args.values[i];
}

void CpuStream::Run(const TakeTokensArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    if (IsTokenOfEntry(args.ids[i])) args.ids[i] = args.tokens[TokenOfEntry(args.ids[i])];
  }
}

void CpuStream::Run(const CopyBlockArgs& args) {
  for (void* cache : {args.k_cache, args.v_cache}) {
    auto* bytes = static_cast<uint8_t*>(cache);
    std::memcpy(bytes + args.to * args.block_bytes, bytes + args.from * args.block_bytes,
                static_cast<size_t>(args.block_bytes));
  }
}

void CpuStream::Run(const MatmulArgs& args) {
  if (target_ == CpuTarget::kReference) return MatmulRef(args);
  if (args.w->dtype() == DType::kInt8) {
    MatmulInt8Cpu(*this, args);
  } else {
    MatmulCpu(*this, args);
  }
  if (args.activation.has_value()) ActivateCpu(*this, {*args.activation, false, args.y, args.y});
}

bool CpuTargetSupported(CpuTarget target) {
  switch (target) {
    case CpuTarget::kReference:
    case CpuTarget::kPortable:
      return true;
    case CpuTarget::kAvx2:
      return CpuHasAvx2();
    case CpuTarget::kAvx512:
      return CpuHasAvx512();
  }
  return false;
}

const char* CpuTargetName(CpuTarget target) {
  switch (target) {
    case CpuTarget::kReference:
      return "reference";
    case CpuTarget::kPortable:
      return "portable";
    case CpuTarget::kAvx2:
      return "avx2";
    case CpuTarget::kAvx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace pergola
