// Steps 1 to 5 of kernels/sample.h on the few logits of a row that they change: lists of ids with
// what is to be done to each, a block per row. Some thousand scattered 4-byte accesses a row: the
// time is that of a launch.
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_device.cuh"

namespace pergola {
namespace {

// WithinF32 of kernels/sample_math.h.
__device__ float Within(float value) {
  return fminf(fmaxf(value, -3.402823466e38F), 3.402823466e38F);
}

// Steps 1 to 5 of kernels/sample.h, operation by operation. The product of the count is rounded out
// of a double, which holds it exactly: so it cannot be fused with the subtraction behind it.
__device__ float Edited(float logit, const SampleEdit& edit, const SampleEditRow& row) {
  if (!(logit < HUGE_VALF)) return nanf("");
  if (logit == MinusInfinity() || (edit.flags & kEditForbid) != 0) return MinusInfinity();
  if ((edit.flags & kEditBias) != 0) {
    if (edit.bias == MinusInfinity()) return MinusInfinity();
    logit = Within(logit + edit.bias);
  }
  if ((edit.flags & kEditSeen) == 0) return logit;
  if (row.repetition_penalty != 0 && row.repetition_penalty != 1) {
    logit = Within(logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty);
  }
  if (edit.new_count == 0) return logit;
  const double exact = static_cast<double>(static_cast<float>(edit.new_count)) *
                       static_cast<double>(row.frequency_penalty);
  return Within(Within(logit - static_cast<float>(exact)) - row.presence_penalty);
}

__global__ void __launch_bounds__(kSampleThreads) EditKernel(EditArgs args, int restore) {
  BeginKernel();
  const SampleEditRow row = args.rows[blockIdx.x];
  for (int32_t k = static_cast<int32_t>(threadIdx.x); k < row.edit_count; k += kSampleThreads) {
    const SampleEdit edit = args.edits[row.first_edit + k];
    float& logit = row.logits[edit.id];
    float& before = args.unedited[row.first_edit + k];
    if (restore != 0) {
      logit = before;
    } else {
      before = logit;
      logit = Edited(before, edit, row);
    }
  }
}

}  // namespace

void EditLogitsCuda(const CudaContext& context, const EditArgs& args) {
  if (args.row_count == 0) return;
  Launch(EditKernel, dim3(static_cast<unsigned>(args.row_count)), kSampleThreads, 0, context, args,
         0);
}

void RestoreLogitsCuda(const CudaContext& context, const EditArgs& args) {
  if (args.row_count == 0) return;
  Launch(EditKernel, dim3(static_cast<unsigned>(args.row_count)), kSampleThreads, 0, context, args,
         1);
}

}  // namespace pergola
