// The HTTP listener of a whole coordinator: metrics, health, and scrapers that misbehave.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/coordinator/coordinator_fixture.h"
#include "tests/coordinator/exposition.h"
#include "tests/coordinator/http_client.h"

namespace pergola {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class MetricsPageTest : public CoordinatorTest {
 protected:
  MetricsPageTest() { server_options_.http_listen = "127.0.0.1:0"; }

  std::string Get(const std::string& path) { return HttpGet(server_->http_address(), path); }
  Exposition Metrics() {
    Exposition page = ReadExposition(BodyOf(Get("/metrics")));
    EXPECT_EQ(page.error, "");
    return page;
  }
};

TEST_F(MetricsPageTest, HealthFollowsTheGroupAndTheDrain) {
  StartCoordinator();
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(BodyOf(Get("/healthz")), "NOT_SERVING\n");
  AttachGroup();
  EXPECT_TRUE(WaitFor([&] { return BodyOf(Get("/healthz")) == "SERVING\n"; }));
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200 "));
  engine_->Drain(0, [](const v1::DrainResponse&) {});
  EXPECT_TRUE(WaitFor([&] { return BodyOf(Get("/healthz")) == "NOT_SERVING\n"; }));
}

TEST_F(MetricsPageTest, CountsWhatWasServedAndWhatWasRefused) {
  StartServing();
  EXPECT_TRUE(Generate(Prompt("hello", 7)).status.ok());
  v1::GenerateRequest wrong = Prompt("x", 1);
  wrong.mutable_sampling()->set_temperature(-1);
  EXPECT_FALSE(Generate(wrong).status.ok());
  engine_->Drain(0, [](const v1::DrainResponse&) {});
  EXPECT_FALSE(Generate(Prompt("y", 1)).status.ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(110));  // a new picture
  EXPECT_THAT(Get("/metrics"), HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8"));
  const Exposition page = Metrics();
  EXPECT_EQ(page.samples.at("pergola_generated_tokens_total"), 7);
  EXPECT_EQ(page.samples.at("pergola_sequences_accepted_total"), 1);
  EXPECT_EQ(page.samples.at("pergola_sequences_ended_total{status=\"OK\",finish=\"LENGTH\"}"), 1);
  EXPECT_EQ(page.samples.at("pergola_refusals_total{reason=\"INVALID_REQUEST\"}"), 1);
  EXPECT_EQ(page.samples.at("pergola_refusals_total{reason=\"DRAINING\"}"), 1);
  EXPECT_EQ(page.samples.at("pergola_first_token_seconds_count"), 1);
  EXPECT_EQ(page.samples.at("pergola_queue_wait_seconds_count"), 1);
  EXPECT_EQ(page.samples.at("pergola_draining"), 1);
  const std::string group = "group=\"" + Status().groups(0).name() + "\"";
  EXPECT_GE(page.samples.at("pergola_step_seconds_count{" + group + "}"), 7);
  EXPECT_EQ(CheckHistogram(page, "pergola_step_seconds", group), "");
}

TEST_F(MetricsPageTest, TooManyCallsAreCounted) {
  server_options_.max_calls = 1;
  StartServing();
  group_->SetPaused(true);
  std::thread client([&] { Generate(Prompt("x", 5)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  EXPECT_EQ(Generate(Prompt("y", 1)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  group_->SetPaused(false);
  client.join();
  EXPECT_EQ(Status().refusals().at("TOO_MANY_CALLS"), 1U);
}

TEST_F(MetricsPageTest, ScrapersThatTakeNothingHoldUpNoStream) {
  StartServing();
  std::vector<std::unique_ptr<HttpClient>> stuck;
  std::string many;
  for (int i = 0; i < 200; ++i) many += GetRequest("/metrics");
  for (int i = 0; i < 64; ++i) {
    stuck.push_back(std::make_unique<HttpClient>(server_->http_address()));
    stuck.back()->Send(many);
  }
  const auto begin = std::chrono::steady_clock::now();
  const Stream stream = Generate(Prompt("hello", 200));
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, Continuation(PromptIds("hello"), 200));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(8))
      << "less than the time after which such scrapers are cut off";
}

TEST_F(MetricsPageTest, WithoutAnAddressThereIsNoListener) {
  server_options_.http_listen.clear();
  StartCoordinator();
  EXPECT_EQ(server_->http_address(), "");
}

TEST_F(MetricsPageTest, ABadOrTakenAddressIsNamed) {
  StartCoordinator();
  Engine engine(engine_options_);
  const auto start = [&](const std::string& address) {
    ServerOptions options = server_options_;
    options.http_listen = address;
    return std::string(CoordinatorServer::Start(options, {&parts_, &tokenizer_}, &engine, [] {})
                           .status()
                           .message());
  };
  EXPECT_EQ(start("9400"), "'9400' is no address (HOST:PORT): the port is missing");
  EXPECT_EQ(start(server_->http_address()),
            "cannot listen on " + server_->http_address() + ": Address already in use");
}

// Takes the log's lines for as long as it lives.
class LogCapture {
 public:
  LogCapture() : before_(spdlog::default_logger()) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(lines_);
    auto logger = std::make_shared<spdlog::logger>("test", sink);
    logger->set_pattern("%v");
    spdlog::set_default_logger(logger);
  }
  ~LogCapture() { spdlog::set_default_logger(before_); }
  // Whole only when whoever logs has ended.
  std::string Text() const { return lines_.str(); }

 private:
  std::shared_ptr<spdlog::logger> before_;
  std::ostringstream lines_;
};

TEST_F(MetricsPageTest, ARequestIsOneLineOfTheLogAndRefusalsShareOne) {
  const LogCapture log;
  engine_options_.log_requests = true;
  StartServing();
  v1::GenerateRequest request = Prompt("hello", 7);
  request.set_request_id("my \"id\"");
  grpc::ClientContext context;
  context.AddMetadata("pergola-tenant", "team");
  EXPECT_TRUE(Generate(request, &context).status.ok());
  for (int i = 0; i < 20; ++i) {
    v1::GenerateRequest wrong = Prompt("x", 1);
    wrong.set_request_id("wrong");
    wrong.mutable_sampling()->set_temperature(-1);
    EXPECT_FALSE(Generate(wrong).status.ok());
  }
  StopCoordinator();
  const std::string text = log.Text();
  const std::regex line(
      "request id=\"my \\\\\"id\\\\\"\" index=0 tenant=\"team\" prompt_tokens=[0-9]+ new_tokens=7 "
      "queue_ms=[0-9.]+ ttft_ms=[0-9.]+ total_ms=[0-9.]+ status=OK finish=LENGTH\n");
  EXPECT_TRUE(std::regex_search(text, line)) << text;
  // How many refusals the first line gathers depends on when the log's thread runs.
  const std::regex refusal(
      "refused count=([0-9]+) INVALID_REQUEST=\\1 last_id=\"wrong\" "
      "last_error=\"sampling.temperature: ");
  EXPECT_TRUE(std::regex_search(text, refusal)) << text;
  int lines = 0;
  int refused = 0;
  const std::regex tally("refused count=([0-9]+)");
  for (auto it = std::sregex_iterator(text.begin(), text.end(), tally);
       it != std::sregex_iterator(); ++it) {
    ++lines;
    refused += std::stoi((*it)[1]);
  }
  EXPECT_EQ(refused, 20);
  EXPECT_LT(lines, 20) << "not one each";
}

}  // namespace
}  // namespace pergola
