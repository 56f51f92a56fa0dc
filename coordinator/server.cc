#include "coordinator/server.h"

#include <atomic>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status.h"
#include "coordinator/address.h"
#include "coordinator/doors/admin_service.h"
#include "coordinator/doors/generation_service.h"
#include "coordinator/doors/work_pool.h"
#include "coordinator/http/operator_routes.h"
#include "coordinator/link/internal_door.h"
#include "coordinator/link/worker_service.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"

namespace pergola {
namespace {

constexpr char kServiceName[] = "pergola.v1.Generation";

// Health as the engine tells it, for as long as there is a server. The engine keeps its callback
// longer than that.
class Health {
 public:
  void Bind(grpc::HealthCheckServiceInterface* service) {
    MutexLock lock(mutex_);
    service_ = service;
    Publish();
  }
  void Set(bool serving) {
    MutexLock lock(mutex_);
    serving_ = serving;
    Publish();
  }
  bool serving() {
    MutexLock lock(mutex_);
    return serving_;
  }

 private:
  void Publish() REQUIRES(mutex_) {
    if (service_ == nullptr) return;
    service_->SetServingStatus("", serving_);
    service_->SetServingStatus(kServiceName, serving_);
  }

  Mutex mutex_;
  grpc::HealthCheckServiceInterface* service_ GUARDED_BY(mutex_) = nullptr;
  bool serving_ GUARDED_BY(mutex_) = false;
};

// Takes reflection off a listener.
class NoPlugins final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->clear();
  }
};

// A peer that vanished without a word is found by unanswered pings: after time + timeout.
void SetCommon(grpc::ServerBuilder* builder, int keepalive_time_ms, int keepalive_timeout_ms) {
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->SetMaxSendMessageSize(kMaxMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port in use is an error
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive_time_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, keepalive_timeout_ms);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
}

absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(grpc::ServerBuilder* builder,
                                                     Address* address) {
  RETURN_IF_ERROR(CheckBindable(*address));
  int port = 0;
  builder->AddListeningPort(FormatAddress(*address), grpc::InsecureServerCredentials(), &port);
  std::unique_ptr<grpc::Server> server = builder->BuildAndStart();
  if (server == nullptr || port <= 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", FormatAddress(*address)));
  }
  address->port = port;
  return server;
}

}  // namespace

class CoordinatorServer::Impl {
 public:
  Impl(const ServerOptions& options, ServedModel model, Engine* engine,
       std::function<void()> on_drained)
      : results_(options.max_held_result_bytes),
        text_pool_({"text", options.text_threads, options.max_text_jobs, options.max_text_bytes}),
        door_{model,       engine,
              &text_pool_, &delivery_,
              &calls_,     options.max_calls,
              &results_,   options.slow_reader_timeout_ms},
        token_(options.join_token),
        generation_(door_),
        internal_door_(&token_),
        worker_(engine, &internal_door_),
        admin_(engine, &internal_door_, model.parts->model_name, std::move(on_drained)) {}

  ~Impl() { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Start(const ServerOptions& options, Engine* engine) {
    ASSIGN_OR_RETURN(Address open_to, ParseAddress(options.listen));
    ASSIGN_OR_RETURN(Address internal, ParseAddress(options.internal_listen));
    ASSIGN_OR_RETURN(const bool loopback, IsLoopback(internal));
    if (!loopback && options.join_token.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("internal listener ", FormatAddress(internal),
                       " is beyond loopback and there is no join token; give --join-token-file"));
    }
    RETURN_IF_ERROR(StartPublic(options, &open_to));
    // The engine tells changes only, from "not serving" on; no group can attach before the internal
    // listener is up.
    engine->OnServingChanged([health = health_](bool serving) { health->Set(serving); });
    RETURN_IF_ERROR(StartInternal(&internal));
    RETURN_IF_ERROR(StartHttp(options, engine));
    public_address_ = FormatAddress(open_to);
    internal_address_ = FormatAddress(internal);
    return absl::OkStatus();
  }

  void Shutdown(std::chrono::milliseconds grace) {
    health_->Bind(nullptr);
    const auto deadline = std::chrono::system_clock::now() + grace;
    if (public_) public_->Shutdown(deadline);
    if (http_) http_->Stop();
    // Workers keep their streams open for as long as they live, so nobody waits for that. After the
    // public calls: those in progress needed the workers.
    worker_.EndStreams(absl::UnavailableError("the coordinator ends"));
    if (internal_) internal_->Shutdown(deadline);
    text_pool_.Stop();
    delivery_.Stop();
    public_.reset();
    internal_.reset();
  }

  const std::string& public_address() const { return public_address_; }
  const std::string& internal_address() const { return internal_address_; }
  const std::string& http_address() const { return http_address_; }

 private:
  absl::Status StartPublic(const ServerOptions& options, Address* address) {
    // Both are switches of the process in gRPC; the internal server opts out by its options.
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    SetCommon(&builder, 20'000, 10'000);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                               static_cast<int>(options.max_streams));
    builder.RegisterService(&generation_);
    ASSIGN_OR_RETURN(public_, Listen(&builder, address));
    health_->Bind(public_->GetHealthCheckService());
    return absl::OkStatus();
  }

  absl::Status StartInternal(Address* address) {
    grpc::ServerBuilder builder;
    SetCommon(&builder, 10'000, 20'000);
    builder.SetOption(std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
    builder.SetOption(std::make_unique<NoPlugins>());
    builder.RegisterCallbackGenericService(&internal_door_);
    ASSIGN_OR_RETURN(internal_, Listen(&builder, address));
    return absl::OkStatus();
  }

  absl::Status StartHttp(const ServerOptions& options, Engine* engine) {
    if (options.http_listen.empty()) return absl::OkStatus();
    HttpOptions http;
    ASSIGN_OR_RETURN(http.listen, ParseAddress(options.http_listen));
    ASSIGN_OR_RETURN(
        http_,
        HttpServer::Start(http, OperatorRoutes(engine, door_.served.parts->model_name,
                                               [health = health_] { return health->serving(); })));
    http_address_ = http_->address();
    return absl::OkStatus();
  }

  std::shared_ptr<Health> health_ =
      std::make_shared<Health>();  // the others are the engine's callback and HTTP
  std::atomic<int64_t> calls_{0};
  ResultBudget results_;  // before door_, which points to it
  WorkPool text_pool_;
  DeliveryThread delivery_;
  const DoorContext door_;
  const TokenCheck token_;
  GenerationService generation_;
  InternalDoor internal_door_;
  WorkerService worker_;
  AdminService admin_;
  std::string public_address_;
  std::string internal_address_;
  std::string http_address_;
  std::unique_ptr<grpc::Server> public_;
  std::unique_ptr<grpc::Server> internal_;
  std::unique_ptr<HttpServer> http_;
};

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const ServerOptions& options, ServedModel model, Engine* engine,
    std::function<void()> on_drained) {
  auto impl = std::make_unique<Impl>(options, model, engine, std::move(on_drained));
  RETURN_IF_ERROR(impl->Start(options, engine));
  return std::unique_ptr<CoordinatorServer>(new CoordinatorServer(std::move(impl)));
}

CoordinatorServer::CoordinatorServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorServer::~CoordinatorServer() = default;

const std::string& CoordinatorServer::public_address() const {
  return impl_->public_address();
}
const std::string& CoordinatorServer::internal_address() const {
  return impl_->internal_address();
}

const std::string& CoordinatorServer::http_address() const {
  return impl_->http_address();
}

void CoordinatorServer::Shutdown(std::chrono::milliseconds grace) {
  impl_->Shutdown(grace);
}

}  // namespace pergola
