#include "coordinator/doors/call_handle.h"

#include <grpc/grpc.h>

#include <string>

#include "base/status.h"

namespace pergola {

CallHandle::CallHandle(grpc::CallbackServerContext* context) : call_(context->c_call()) {
  grpc_call_ref(call_);
}

CallHandle::~CallHandle() {
  grpc_call_unref(call_);
}

void CallHandle::Cancel(const absl::Status& status) const {
  const std::string text(ToStd(status.message()));
  grpc_call_cancel_with_status(call_, static_cast<grpc_status_code>(status.code()), text.c_str(),
                               nullptr);
}

}  // namespace pergola
