#include "coordinator/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "tests/coordinator/http_client.h"

namespace pergola {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

HttpResponse Text(const std::string& body) {
  HttpResponse response;
  response.body = body;
  return response;
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() { options_.listen = {"127.0.0.1", 0}; }

  // "/echo" tells what it was asked, "/later" keeps its answers for the test, "/large" is large.
  void Start() {
    auto server = HttpServer::Start(
        options_, {{"GET", "/echo",
                    [](const HttpRequest& request, const HttpAnswer& answer) {
                      answer([request] {
                        return Text(request.path + "|" + request.query + "|" + request.body);
                      });
                    }},
                   {"POST", "/echo",
                    [](const HttpRequest& request, const HttpAnswer& answer) {
                      answer([request] { return Text("posted " + request.body); });
                    }},
                   {"GET", "/later",
                    [this](const HttpRequest&, HttpAnswer answer) {
                      MutexLock lock(mutex_);
                      later_.push_back(std::move(answer));
                      came_.NotifyAll();
                    }},
                   {"GET", "/large", [](const HttpRequest&, const HttpAnswer& answer) {
                      answer([] { return Text(std::string(size_t{64} << 20, 'x')); });
                    }}});
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
  }

  std::string Get(const std::string& path) { return HttpGet(server_->address(), path); }

  std::vector<HttpAnswer> WaitForLater(size_t count) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    MutexLock lock(mutex_);
    while (later_.size() < count && came_.WaitUntil(mutex_, end)) {
    }
    EXPECT_EQ(later_.size(), count);
    return later_;
  }

  HttpOptions options_;
  Mutex mutex_;
  CondVar came_;
  std::vector<HttpAnswer> later_ GUARDED_BY(mutex_);
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersAGet) {
  Start();
  EXPECT_THAT(server_->address(), StartsWith("127.0.0.1:"));
  EXPECT_THAT(server_->address(), Not(EndsWith(":0")));
  const std::string response = Get("/echo?a=b?c");
  EXPECT_THAT(response, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(response, HasSubstr("Content-Type: text/plain; charset=utf-8\r\n"));
  EXPECT_EQ(BodyOf(response), "/echo|a=b?c|");
}

TEST_F(HttpServerTest, KeepsAConnectionForTheNextRequestsAlsoPipelinedOnes) {
  Start();
  HttpClient client(server_->address());
  client.Send(GetRequest("/echo?1") + GetRequest("/nowhere") + GetRequest("/echo?2"));
  EXPECT_EQ(BodyOf(client.Response()), "/echo|1|");
  EXPECT_THAT(client.Response(), StartsWith("HTTP/1.1 404 "));
  EXPECT_EQ(BodyOf(client.Response()), "/echo|2|");
  client.Send("POST /echo HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_EQ(BodyOf(client.Response()), "posted abc");
  EXPECT_TRUE(client.Ends());
}

TEST_F(HttpServerTest, Http10EndsAfterItsAnswer) {
  Start();
  HttpClient client(server_->address());
  client.Send("GET /echo HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.Response(), StartsWith("HTTP/1.0 200 OK\r\n"));
  EXPECT_TRUE(client.Ends());
}

TEST_F(HttpServerTest, AHeadIsAGetWithoutItsBody) {
  Start();
  HttpClient client(server_->address());
  client.Send("HEAD /echo?a HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string response = client.Response();
  EXPECT_THAT(response, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(response, HasSubstr("Content-Length: 8\r\n"));
  EXPECT_THAT(response, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, AnUnknownPathIs404AndNamesTheKnownOnes) {
  Start();
  const std::string response = Get("/none");
  EXPECT_THAT(response, StartsWith("HTTP/1.1 404 Not Found\r\n"));
  EXPECT_EQ(BodyOf(response), "not found; here are /echo, /large, /later\n");
}

TEST_F(HttpServerTest, AWrongMethodIs405AndNamesTheRightOnes) {
  Start();
  HttpClient client(server_->address());
  client.Send("DELETE /echo HTTP/1.1\r\n\r\n");
  const std::string response = client.Response();
  EXPECT_THAT(response, StartsWith("HTTP/1.1 405 Method Not Allowed\r\n"));
  EXPECT_THAT(response, HasSubstr("Allow: GET, POST\r\n"));
  EXPECT_EQ(BodyOf(response), "this path takes GET, POST\n");
}

TEST_F(HttpServerTest, WhatIsNoRequestIs400AndTheEndOfTheConnection) {
  Start();
  const std::vector<std::string> cases = {
      "\r\n\r\nnonsense\r\n\r\n",
      "GET /echo\r\n\r\n",
      "GET /echo HTTP/9.9\r\n\r\n",
      "GET /echo HTTP/1.1\r\nno colon\r\n\r\n",
      "POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),  // a TLS greeting
  };
  for (const std::string& bytes : cases) {
    HttpClient client(server_->address());
    client.Send(bytes);
    const std::string response = client.Response();
    EXPECT_THAT(response, StartsWith("HTTP/1.1 400 Bad Request\r\n")) << bytes;
    EXPECT_THAT(BodyOf(response), StartsWith("not an HTTP request: ")) << bytes;
    EXPECT_TRUE(client.Ends()) << bytes;
  }
  EXPECT_EQ(BodyOf(Get("/echo")), "/echo||") << "it still serves";
}

TEST_F(HttpServerTest, AnOversizeHeaderIs431) {
  Start();
  for (const size_t size : {9000U, 1'000'000U}) {
    HttpClient client(server_->address());
    client.Send("GET /echo HTTP/1.1\r\nX: " + std::string(size, 'x') + "\r\n\r\n");
    const std::string response = client.Response();
    EXPECT_THAT(response, StartsWith("HTTP/1.1 431 ")) << size;
    EXPECT_EQ(BodyOf(response), "the header exceeds the limit of 8192 bytes\n");
    EXPECT_TRUE(client.Ends());
  }
  HttpClient client(server_->address());
  client.Send("GET /echo HTTP/1.1\r\nX: " + std::string(8000, 'x') + "\r\n\r\n");
  EXPECT_THAT(client.Response(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, AnOversizeBodyIs413BeforeItCame) {
  options_.max_body_bytes = 100;
  Start();
  for (const char* header :
       {"Content-Length: 101\r\n\r\n", "Content-Length: 18446744073709551615\r\n\r\n"}) {
    HttpClient client(server_->address());
    client.Send(absl::StrCat("POST /echo HTTP/1.1\r\n", header));
    const std::string response = client.Response();
    EXPECT_THAT(response, StartsWith("HTTP/1.1 413 ")) << header;
    EXPECT_EQ(BodyOf(response), "the body exceeds the limit of 100 bytes\n");
    EXPECT_TRUE(client.Ends());
  }
  HttpClient chunked(server_->address());
  chunked.Send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n" +
               std::string(128, 'x') + "\r\n0\r\n\r\n");
  EXPECT_THAT(chunked.Response(), StartsWith("HTTP/1.1 413 "));
  HttpClient client(server_->address());
  client.Send("POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + std::string(100, 'x'));
  EXPECT_THAT(client.Response(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, ASlowSenderIsCutOffHoweverItTrickles) {
  options_.read_timeout_ms = 200;
  Start();
  HttpClient silent(server_->address());
  HttpClient slow(server_->address());
  std::thread trickle([&] {
    for (int i = 0; i < 20; ++i) {
      slow.Send("G");
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    }
  });
  EXPECT_TRUE(silent.Ends());
  EXPECT_TRUE(slow.Ends());
  trickle.join();
}

TEST_F(HttpServerTest, AReaderThatTakesNothingIsCutOff) {
  options_.write_timeout_ms = 200;
  options_.max_connections = 1;
  Start();
  HttpClient stuck(server_->address());
  stuck.Send(GetRequest("/large"));
  // Its place is free again once it is cut off.
  std::string response;
  for (int i = 0; i < 500 && response.rfind("HTTP/1.1 200", 0) != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    response = Get("/echo");
  }
  EXPECT_EQ(BodyOf(response), "/echo||");
  EXPECT_TRUE(stuck.Ends());
}

TEST_F(HttpServerTest, OneConnectionTooManyIs503AndAPlaceComesBack) {
  options_.max_connections = 2;
  Start();
  auto first = std::make_unique<HttpClient>(server_->address());
  HttpClient second(server_->address());
  first->Send(GetRequest("/echo"));
  second.Send(GetRequest("/echo"));
  first->Response();
  second.Response();
  HttpClient third(server_->address());
  const std::string refused = third.Response();
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_EQ(BodyOf(refused), "too many connections\n");
  EXPECT_TRUE(third.Ends());
  first.reset();
  std::string response;
  for (int i = 0; i < 500 && response.rfind("HTTP/1.1 200", 0) != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    response = Get("/echo");
  }
  EXPECT_EQ(BodyOf(response), "/echo||");
}

TEST_F(HttpServerTest, AHandlerMayAnswerLaterFromAnyThreadOnce) {
  Start();
  HttpClient client(server_->address());
  client.Send(GetRequest("/later"));
  const std::vector<HttpAnswer> answers = WaitForLater(1);
  EXPECT_EQ(BodyOf(Get("/echo")), "/echo||") << "others do not wait for it";
  answers[0]([] { return Text("first"); });
  answers[0]([] { return Text("second"); });
  EXPECT_EQ(BodyOf(client.Response()), "first");
  client.Send(GetRequest("/echo"));
  EXPECT_EQ(BodyOf(client.Response()), "/echo||") << "the second answer went nowhere";
}

TEST_F(HttpServerTest, AnAnswerThatDoesNotComeIs503AndComesTooLateThen) {
  options_.answer_timeout_ms = 100;
  Start();
  HttpClient client(server_->address());
  client.Send(GetRequest("/later"));
  const std::string response = client.Response();
  EXPECT_THAT(response, StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(BodyOf(response), "no answer within 100 ms\n");
  WaitForLater(1)[0]([] { return Text("late"); });
  client.Send(GetRequest("/echo"));
  EXPECT_EQ(BodyOf(client.Response()), "/echo||");
}

TEST_F(HttpServerTest, StopsWithRequestsInProgressAndTakesAnswersAfterwards) {
  Start();
  HttpClient client(server_->address());
  client.Send(GetRequest("/later"));
  const std::vector<HttpAnswer> answers = WaitForLater(1);
  server_->Stop();
  answers[0]([] { return Text("late"); });
  EXPECT_TRUE(client.Ends());
  server_.reset();
  answers[0]([] { return Text("later still"); });
}

TEST_F(HttpServerTest, APortInUseIsAnErrorThatNamesIt) {
  Start();
  const std::string taken = server_->address();
  options_.listen = *ParseAddress(taken);
  const auto second = HttpServer::Start(options_, {});
  EXPECT_EQ(second.status().message(),
            absl::StrCat("cannot listen on ", taken, ": Address already in use"));
  options_.listen = {"no-such-host.invalid", 1};
  EXPECT_THAT(std::string(HttpServer::Start(options_, {}).status().message()),
              HasSubstr("cannot resolve host"));
}

}  // namespace
}  // namespace pergola
