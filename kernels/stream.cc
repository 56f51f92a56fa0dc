#include "kernels/stream.h"

#include "base/check.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/tensor.h"
#include "kernels/thread_pool.h"

namespace pergola {

Stream::Stream() = default;
Stream::~Stream() = default;

std::unique_ptr<Stream> Stream::Cpu(const StreamOptions& options) {
  CpuTarget best = CpuTarget::kPortable;
  for (CpuTarget target : {CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (CpuTargetSupported(target)) best = target;
  }
  return Cpu(options, best);
}

std::unique_ptr<Stream> Stream::Cpu(const StreamOptions& options, CpuTarget target) {
  PERGOLA_CHECK_MSG(CpuTargetSupported(target),
                    std::string("this machine lacks ") + CpuTargetName(target));
  PERGOLA_CHECK(options.threads >= 1 && options.workspace_bytes >= 0);
  std::unique_ptr<Stream> stream(new Stream());
  stream->target_ = target;
  stream->pool_ = std::make_unique<ThreadPool>(options.threads, options.first_cpu);
  stream->workspace_ = HostBuffer(options.workspace_bytes);
  return stream;
}

int Stream::threads() const {
  return pool_->threads();
}

uint8_t* Stream::Workspace(int64_t bytes) {
  PERGOLA_CHECK_MSG(bytes <= workspace_.size(), "an op wants " + std::to_string(bytes) +
                                                    " bytes of a workspace of " +
                                                    std::to_string(workspace_.size()));
  return workspace_.data();
}

std::string Stream::name() const {
  return CpuTargetName(target_);
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
