#include "worker/step/coordinator_link.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>

#include "base/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/step/results_link.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kToken[] = "secret";
using AttachStream = grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>;

// A coordinator that a test scripts. Synchronous gRPC: one thread per call, which is what a script
// wants.
class FakeCoordinator : public v1::Worker::Service {
 public:
  // What the n-th Attach (from 1) does.
  using Script = std::function<grpc::Status(int attempt, AttachStream* stream)>;

  explicit FakeCoordinator(Script script, int port = 0) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override { Stop(); }
  void Stop() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }

  grpc::Status Attach(grpc::ServerContext* context, AttachStream* stream) override {
    if (!Authorized(*context)) return {grpc::StatusCode::UNAUTHENTICATED, "wrong join token"};
    int attempt = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      attempt = ++attempts_;
    }
    return script_(attempt, stream);
  }
  grpc::Status Results(grpc::ServerContext*, grpc::ServerReader<v1::ResultMessage>* reader,
                       v1::ResultsAck*) override {
    v1::ResultMessage message;
    while (reader->Read(&message)) {
      std::lock_guard<std::mutex> lock(mutex_);
      received_.push_back(message.has_hello() ? "hello " + message.hello().group()
                                              : std::to_string(message.result().epoch()) + "/" +
                                                    std::to_string(message.result().plan_id()));
      changed_.notify_all();
      if (received_.size() == end_results_after_) return {grpc::StatusCode::ABORTED, "enough"};
    }
    return grpc::Status::OK;
  }
  grpc::Status ReportFault(grpc::ServerContext* context, const v1::Fault* fault,
                           v1::FaultAck*) override {
    if (!Authorized(*context)) return {grpc::StatusCode::UNAUTHENTICATED, "wrong join token"};
    std::lock_guard<std::mutex> lock(mutex_);
    faults_.push_back(fault->text());
    return grpc::Status::OK;
  }

  void EndResultsAfter(size_t messages) { end_results_after_ = messages; }
  std::vector<std::string> WaitForReceived(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(60), [&] { return received_.size() >= count; });
    return received_;
  }
  std::vector<std::string> faults() {
    std::lock_guard<std::mutex> lock(mutex_);
    return faults_;
  }

 private:
  static bool Authorized(const grpc::ServerContext& context) {
    const auto found = context.client_metadata().find(kJoinTokenKey);
    return found != context.client_metadata().end() && found->second == kToken;
  }

  const Script script_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int attempts_ = 0;
  size_t end_results_after_ = 0;
  std::vector<std::string> received_;
  std::vector<std::string> faults_;
};

v1::Hello Hello() {
  v1::Hello hello;
  hello.set_group("g");
  return hello;
}

// Reads up to Hello; false if the stream ends first.
bool ReadHello(AttachStream* stream, v1::Hello* hello, std::vector<v1::Progress>* progress) {
  v1::WorkerMessage message;
  while (stream->Read(&message)) {
    if (message.has_hello()) {
      *hello = message.hello();
      return true;
    }
    if (progress != nullptr) progress->push_back(message.progress());
  }
  return false;
}

void SendWelcome(AttachStream* stream, uint64_t epoch) {
  v1::CoordinatorMessage message;
  message.mutable_welcome()->set_epoch(epoch);
  stream->Write(message);
}

void SendPlan(AttachStream* stream, uint64_t epoch, uint64_t plan_id) {
  v1::CoordinatorMessage message;
  message.mutable_plan()->set_epoch(epoch);
  message.mutable_plan()->set_plan_id(plan_id);
  stream->Write(message);
}

// Until the link ends the call.
void Drain(AttachStream* stream) {
  v1::WorkerMessage message;
  while (stream->Read(&message)) {
  }
}

CoordinatorLinkOptions Quick() {
  CoordinatorLinkOptions options;
  options.group = "g";
  options.redial = {5, 50};
  options.orphan_timeout_ms = 20'000;
  return options;
}

// What is not kNone, within many ticks.
absl::StatusOr<PlanSource::Next> WaitForNext(CoordinatorLink* link, v1::StepPlan* plan) {
  for (int tick = 0; tick < 30; ++tick) {
    auto next = link->Take(/*wait=*/true, plan);
    if (!next.ok() || *next != PlanSource::Next::kNone) return next;
  }
  return PlanSource::Next::kNone;
}

TEST(CoordinatorLinkTest, SendsProgressThenHelloAndTakesPlansInOrder) {
  std::vector<v1::Progress> progress;
  FakeCoordinator coordinator([&](int, AttachStream* stream) {
    v1::Hello hello;
    if (!ReadHello(stream, &hello, &progress)) return grpc::Status::OK;
    SendWelcome(stream, 50);
    for (uint64_t id = 1; id <= 3; ++id) SendPlan(stream, 50, id);
    Drain(stream);
    return grpc::Status::OK;
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLink link(&client, Quick());
  link.ReportProgress("reading weights", 10, 20);
  link.SendHello(Hello());
  for (uint64_t id = 1; id <= 3; ++id) {
    v1::StepPlan plan;
    auto next = WaitForNext(&link, &plan);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_EQ(*next, PlanSource::Next::kPlan);
    EXPECT_EQ(plan.plan_id(), id);
  }
  v1::StepPlan plan;
  EXPECT_EQ(*link.Take(/*wait=*/false, &plan), PlanSource::Next::kNone);
  EXPECT_EQ(link.exit_code(), 0);
}

TEST(CoordinatorLinkTest, RedialsAfterABreakAndNamesTheLastEpoch) {
  FakeCoordinator coordinator([&](int attempt, AttachStream* stream) {
    v1::Hello hello;
    if (!ReadHello(stream, &hello, nullptr)) return grpc::Status::OK;
    if (attempt == 1) {
      SendWelcome(stream, 50);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    }
    SendWelcome(stream, hello.last_epoch() + 1);
    SendPlan(stream, hello.last_epoch() + 1, 1);
    Drain(stream);
    return grpc::Status::OK;
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLink link(&client, Quick());
  link.SendHello(Hello());
  v1::StepPlan plan;
  ASSERT_EQ(*WaitForNext(&link, &plan), PlanSource::Next::kPlan);
  EXPECT_EQ(plan.epoch(), 51U);
}

TEST(CoordinatorLinkTest, DropsPlansThatWaitWhenTheirEpochEnds) {
  std::promise<void> broken;
  FakeCoordinator coordinator([&](int attempt, AttachStream* stream) {
    v1::Hello hello;
    if (!ReadHello(stream, &hello, nullptr)) return grpc::Status::OK;
    SendWelcome(stream, 50 + attempt);
    SendPlan(stream, 50 + attempt, 1);
    if (attempt == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    broken.set_value();
    Drain(stream);
    return grpc::Status::OK;
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLink link(&client, Quick());
  link.SendHello(Hello());
  broken.get_future().wait();
  v1::StepPlan plan;
  ASSERT_EQ(*WaitForNext(&link, &plan), PlanSource::Next::kPlan);
  EXPECT_EQ(plan.epoch(), 52U);
}

TEST(CoordinatorLinkTest, AWrongTokenEndsTheGroupWithTheCoordinatorsWords) {
  FakeCoordinator coordinator([](int, AttachStream*) { return grpc::Status::OK; });
  InternalClient client(coordinator.address(), "guess");
  CoordinatorLink link(&client, Quick());
  v1::StepPlan plan;
  const auto next = WaitForNext(&link, &plan);
  EXPECT_EQ(next.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(next.status().message()), HasSubstr("wrong join token"));
  EXPECT_EQ(link.exit_code(), kExitUsage);
}

TEST(CoordinatorLinkTest, ARefusedHelloEndsTheGroup) {
  for (const auto code :
       {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::FAILED_PRECONDITION}) {
    FakeCoordinator coordinator([&](int, AttachStream* stream) {
      v1::Hello hello;
      ReadHello(stream, &hello, nullptr);
      return grpc::Status(code, "text hash differs");
    });
    InternalClient client(coordinator.address(), kToken);
    CoordinatorLink link(&client, Quick());
    link.SendHello(Hello());
    v1::StepPlan plan;
    EXPECT_THAT(std::string(WaitForNext(&link, &plan).status().message()),
                HasSubstr("text hash differs"));
    EXPECT_EQ(link.exit_code(), kExitUsage);
  }
}

TEST(CoordinatorLinkTest, ANewerGroupOfTheNameEndsThisOne) {
  FakeCoordinator coordinator([&](int, AttachStream* stream) {
    v1::Hello hello;
    ReadHello(stream, &hello, nullptr);
    SendWelcome(stream, 50);
    return grpc::Status(grpc::StatusCode::ABORTED, "a newer Attach of the same group");
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLink link(&client, Quick());
  link.SendHello(Hello());
  v1::StepPlan plan;
  EXPECT_FALSE(WaitForNext(&link, &plan).ok());
  EXPECT_EQ(link.exit_code(), kExitUsage);
}

TEST(CoordinatorLinkTest, WithoutACoordinatorTheGroupIsOrphaned) {
  InternalClient client("127.0.0.1:1", kToken);
  CoordinatorLinkOptions options = Quick();
  options.orphan_timeout_ms = 100;
  CoordinatorLink link(&client, options);
  v1::StepPlan plan;
  const auto next = WaitForNext(&link, &plan);
  EXPECT_THAT(std::string(next.status().message()), HasSubstr("for 100 ms"));
  EXPECT_EQ(link.exit_code(), kExitOrphaned);
}

TEST(CoordinatorLinkTest, APlanOfAnotherEpochBreaksTheConnection) {
  FakeCoordinator coordinator([&](int attempt, AttachStream* stream) {
    v1::Hello hello;
    ReadHello(stream, &hello, nullptr);
    SendWelcome(stream, 50 + attempt);
    SendPlan(stream, attempt == 1 ? 7 : 50 + attempt, 1);
    Drain(stream);
    return grpc::Status::OK;
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLink link(&client, Quick());
  link.SendHello(Hello());
  v1::StepPlan plan;
  ASSERT_EQ(*WaitForNext(&link, &plan), PlanSource::Next::kPlan);
  EXPECT_EQ(plan.epoch(), 52U);
}

TEST(CoordinatorLinkTest, ASilentConnectionIsGivenUp) {
  FakeCoordinator coordinator([&](int attempt, AttachStream* stream) {
    v1::Hello hello;
    ReadHello(stream, &hello, nullptr);
    SendWelcome(stream, 50 + attempt);
    if (attempt > 1) SendPlan(stream, 50 + attempt, 1);
    Drain(stream);
    return grpc::Status::OK;
  });
  InternalClient client(coordinator.address(), kToken);
  CoordinatorLinkOptions options = Quick();
  options.silence_ms = 50;
  CoordinatorLink link(&client, options);
  link.SendHello(Hello());
  v1::StepPlan plan;
  ASSERT_EQ(*WaitForNext(&link, &plan), PlanSource::Next::kPlan);
  EXPECT_GE(plan.epoch(), 52U);
}

TEST(CoordinatorLinkTest, TakeReturnsAfterATickWithoutAPlan) {
  InternalClient client("127.0.0.1:1", kToken);
  CoordinatorLink link(&client, Quick());
  v1::StepPlan plan;
  EXPECT_EQ(*link.Take(/*wait=*/true, &plan), PlanSource::Next::kNone);
}

TEST(CoordinatorLinkTest, ManyLinksComeAndGoWhilePlansFlow) {
  FakeCoordinator coordinator([&](int attempt, AttachStream* stream) {
    v1::Hello hello;
    if (!ReadHello(stream, &hello, nullptr)) return grpc::Status::OK;
    SendWelcome(stream, 50 + attempt);
    for (uint64_t id = 1; id <= 20; ++id) SendPlan(stream, 50 + attempt, id);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "again");
  });
  for (int i = 0; i < 20; ++i) {
    InternalClient client(coordinator.address(), kToken);
    CoordinatorLink link(&client, Quick());
    link.SendHello(Hello());
    link.ReportProgress("late", 1, 1);
    v1::StepPlan plan;
    if (i % 2 == 0) {
      EXPECT_EQ(*WaitForNext(&link, &plan), PlanSource::Next::kPlan);
    }
  }
}

v1::StepResult Result(uint64_t epoch, uint64_t plan_id) {
  v1::StepResult result;
  result.set_epoch(epoch);
  result.set_plan_id(plan_id);
  return result;
}

grpc::Status NoAttach(int, AttachStream*) {
  return grpc::Status::OK;
}

TEST(ResultsLinkTest, NamesItsGroupThenSendsResultsInOrder) {
  FakeCoordinator coordinator(NoAttach);
  InternalClient client(coordinator.address(), kToken);
  ResultsLink link(&client, {"g", {5, 50}});
  for (uint64_t id = 1; id <= 3; ++id) link.Push(Result(9, id));
  EXPECT_THAT(coordinator.WaitForReceived(4), ElementsAre("hello g", "9/1", "9/2", "9/3"));
}

// A stream of a group that still loads would end that of a running group of its name.
TEST(ResultsLinkTest, DialsOnlyWhenToldIfSoAsked) {
  FakeCoordinator coordinator(NoAttach);
  InternalClient client(coordinator.address(), kToken);
  ResultsLinkOptions options{"g", {5, 50}};
  options.dial_at_once = false;
  ResultsLink link(&client, options);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_THAT(coordinator.WaitForReceived(0), ElementsAre());
  link.Dial();
  EXPECT_THAT(coordinator.WaitForReceived(1), ElementsAre("hello g"));
}

TEST(ResultsLinkTest, HoldsResultsUntilThereIsACoordinator) {
  int port = 0;
  { port = FakeCoordinator(NoAttach).port(); }
  InternalClient client("127.0.0.1:" + std::to_string(port), kToken);
  ResultsLink link(&client, {"g", {5, 50}});
  link.Push(Result(8, 1));
  link.Push(Result(9, 1));  // what came before it is of an epoch that has ended
  link.Push(Result(9, 2));
  FakeCoordinator coordinator(NoAttach, port);
  EXPECT_THAT(coordinator.WaitForReceived(3), ElementsAre("hello g", "9/1", "9/2"));
}

// A coordinator sends no plan to a group without this stream, so nothing is written that could show
// its end.
TEST(ResultsLinkTest, DialsAgainWithoutAnythingToWrite) {
  FakeCoordinator coordinator(NoAttach);
  coordinator.EndResultsAfter(1);
  InternalClient client(coordinator.address(), kToken);
  ResultsLink link(&client, {"g", {5, 50}});
  EXPECT_THAT(coordinator.WaitForReceived(2), ElementsAre("hello g", "hello g"));
}

TEST(ResultsLinkTest, DialsAgainWhenTheCoordinatorIsBack) {
  int port = 0;
  std::unique_ptr<InternalClient> client;
  std::unique_ptr<ResultsLink> link;
  {
    FakeCoordinator first(NoAttach);
    port = first.port();
    client = std::make_unique<InternalClient>(first.address(), kToken);
    link = std::make_unique<ResultsLink>(client.get(), ResultsLinkOptions{"g", {5, 50}});
    link->Push(Result(9, 1));
    EXPECT_THAT(first.WaitForReceived(2), ElementsAre("hello g", "9/1"));
  }
  FakeCoordinator second(NoAttach, port);
  ASSERT_THAT(second.WaitForReceived(1), ElementsAre("hello g"));
  link->Push(Result(10, 1));
  EXPECT_THAT(second.WaitForReceived(2), ElementsAre("hello g", "10/1"));
}

TEST(ResultsLinkTest, KeepsTheOrderAcrossManyBreaks) {
  FakeCoordinator coordinator(NoAttach);
  InternalClient client(coordinator.address(), kToken);
  ResultsLink link(&client, {"g", {1, 5}});
  coordinator.EndResultsAfter(10);
  for (uint64_t id = 1; id <= 200; ++id) link.Push(Result(9, id));
  // What was under way when the stream broke is lost with it, and the coordinator ends the epoch
  // for that; what comes is in order.
  coordinator.WaitForReceived(11);
  link.Push(Result(10, 1));
  std::vector<std::string> received;
  do {
    received = coordinator.WaitForReceived(received.size() + 1);
  } while (received.back() != "10/1");
  int last = 0;
  for (const std::string& message : received) {
    if (message.rfind("9/", 0) != 0) continue;
    EXPECT_GT(std::stoi(message.substr(2)), last);
    last = std::stoi(message.substr(2));
  }
}

TEST(InternalClientTest, ReportsAFault) {
  FakeCoordinator coordinator(NoAttach);
  InternalClient client(coordinator.address(), kToken);
  v1::Fault fault;
  fault.set_text("layer 3: broken");
  EXPECT_TRUE(client.ReportFault(fault).ok());
  EXPECT_THAT(coordinator.faults(), ElementsAre("layer 3: broken"));
}

TEST(InternalClientTest, AFaultThatNobodyTakesCostsAtMostItsDeadline) {
  InternalClient client("127.0.0.1:1", kToken);
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_FALSE(client.ReportFault({}).ok());
  // The deadline, and as much again for a loaded machine.
  EXPECT_LT(std::chrono::steady_clock::now() - begun,
            std::chrono::milliseconds(4 * InternalClient::kFaultDeadlineMs));
}

TEST(RedialTest, GrowsToTheLongestAndStartsAgain) {
  Redial redial({100, 300});
  EXPECT_EQ(redial.NextDelayMs(), 100);
  EXPECT_EQ(redial.NextDelayMs(), 150);
  EXPECT_EQ(redial.NextDelayMs(), 225);
  EXPECT_EQ(redial.NextDelayMs(), 300);
  EXPECT_EQ(redial.NextDelayMs(), 300);
  redial.Reset();
  EXPECT_EQ(redial.NextDelayMs(), 100);
}

}  // namespace
}  // namespace pergola
