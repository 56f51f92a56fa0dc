// The coordinator's status as Prometheus text. What each metric means: docs/metrics.md.
#pragma once

#include <string>

#include "pergola/v1/admin.pb.h"

namespace pergola {

inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

// Text exposition format 0.0.4. Any status gives valid text.
std::string MetricsText(const v1::StatusResponse& status);

}  // namespace pergola
