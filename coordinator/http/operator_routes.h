// Every page of the HTTP listener: one table, and the place to add to.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"
#include "coordinator/http/http_server.h"

namespace pergola {

// GET /metrics: Prometheus text (docs/metrics.md). GET /healthz: 200 SERVING or 503 NOT_SERVING.
// `engine` is borrowed and outlives the server of these routes; `serving` must not block; `model`
// is told until a group says its own.
std::vector<HttpRoute> OperatorRoutes(Engine* engine, const std::string& model,
                                      std::function<bool()> serving);

}  // namespace pergola
