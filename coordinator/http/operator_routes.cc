#include "coordinator/http/operator_routes.h"

#include <memory>
#include <utility>

#include "coordinator/metrics/metrics_text.h"
#include "coordinator/metrics/status_snapshots.h"

namespace pergola {
namespace {

// The page of the newest picture, made once however many ask for it. Of the HTTP thread.
class MetricsPage {
 public:
  HttpResponse Of(const StatusSnapshots::Snapshot& snapshot) {
    HttpResponse response;
    if (snapshot == nullptr) {
      response.status = 503;
      response.body = "the engine is behind with its answers\n";
      return response;
    }
    if (snapshot != shown_) {
      text_ = MetricsText(*snapshot);
      shown_ = snapshot;
    }
    response.content_type = kMetricsContentType;
    response.body = text_;
    return response;
  }

 private:
  StatusSnapshots::Snapshot shown_;
  std::string text_;
};

HttpResponse Health(bool serving) {
  HttpResponse response;
  response.status = serving ? 200 : 503;
  response.body = serving ? "SERVING\n" : "NOT_SERVING\n";
  return response;
}

}  // namespace

std::vector<HttpRoute> OperatorRoutes(Engine* engine, const std::string& model,
                                      std::function<bool()> serving) {
  const auto snapshots =
      std::make_shared<StatusSnapshots>([engine, model](const StatusSnapshots::Done& done) {
        engine->Status([done, model](v1::StatusResponse status) {
          if (status.model().empty()) status.set_model(model);
          done(std::move(status));
        });
      });
  const auto page = std::make_shared<MetricsPage>();
  const auto metrics = [snapshots, page](const HttpRequest&, const HttpAnswer& answer) {
    snapshots->Get([answer, page](StatusSnapshots::Snapshot snapshot) {
      // Text is made on the HTTP thread; this may be the engine's.
      answer([snapshot = std::move(snapshot), page] { return page->Of(snapshot); });
    });
  };
  const auto health = [serving = std::move(serving)](const HttpRequest&, const HttpAnswer& answer) {
    answer([now = serving()] { return Health(now); });
  };
  return {
      {"GET", "/metrics", metrics},
      {"GET", "/healthz", health},
  };
}

}  // namespace pergola
