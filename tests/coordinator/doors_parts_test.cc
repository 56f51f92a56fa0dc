// The doors' small parts that need no server: statuses, wire, pool, addresses, private files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "coordinator/address.h"
#include "coordinator/doors/call_status.h"
#include "coordinator/doors/wire.h"
#include "coordinator/doors/work_pool.h"
#include "coordinator/private_file.h"
#include "nlohmann/json.hpp"
#include "pergola/v1/generation.pb.h"
#include "tests/coordinator/served_model.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(ViolationsTest, StayWithinTheMetadataOfAClient) {
  Violations violations;
  for (int i = 0; i < 1000; ++i) violations.Add("field", std::string(10'000, 'x'));
  const google::rpc::Status status = violations.ToStatus();
  // As gRPC sends them: the message in clear, the whole in base64.
  EXPECT_LT(status.message().size() + status.SerializeAsString().size() * 4 / 3, 8192U);
  const std::vector<std::string> lines = ViolationsOf(status);
  EXPECT_THAT(lines.back(), HasSubstr("and 99"));
}

TEST(ViolationsTest, NameTheWholeMessageByItsPrefix) {
  Violations violations("requests[3].");
  violations.Add("", "no message");
  EXPECT_THAT(ViolationsOf(violations.ToStatus()), ElementsAre("requests[3]: no message"));
}

TEST(RpcStatusTest, ExhaustedSaysWhenToComeBackAndWhy) {
  const google::rpc::Status status =
      ToRpcStatus(absl::ResourceExhaustedError("full"), "QUEUE_FULL");
  EXPECT_EQ(status.code(), 8);
  ASSERT_EQ(status.details_size(), 2);
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(status.details(0).UnpackTo(&retry));
  EXPECT_GT(retry.retry_delay().seconds(), 0);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(status.details(1).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.domain(), "pergola");
}

TEST(RpcStatusTest, OkCarriesNothing) {
  EXPECT_EQ(ToRpcStatus(absl::OkStatus()).ByteSizeLong(), 0U);
}

TEST(ShownTest, EscapesAndShortens) {
  EXPECT_EQ(Shown("a\n\xff'"), "'a\\x0a\\xff\\x27'");
  EXPECT_EQ(Shown("abcdef", 3), "'abc...'");
}

TEST(CutTextTest, SplitsNoCharacter) {
  EXPECT_EQ(CutText("a\xc3\xa9", 2), "a");
  EXPECT_EQ(CutText("a\xc3\xa9", 3), "a\xc3\xa9");
}

TEST(WireTest, NamesEveryFieldWithInvalidText) {
  v1::GenerateRequest request;
  request.set_text("ok\xc0");
  request.set_model("\xff");
  request.mutable_stop()->add_strings("fine");
  request.mutable_stop()->add_strings("x\x80");
  const std::string bytes = request.SerializePartialAsString();
  Violations violations("requests[1].");
  v1::GenerateRequest parsed;
  ASSERT_FALSE(ParseMessage(bytes, &parsed, &violations));
  EXPECT_THAT(ViolationsOf(violations.ToStatus()),
              ElementsAre("requests[1].model: invalid UTF-8 at byte 0",
                          "requests[1].text: invalid UTF-8 at byte 2",
                          "requests[1].stop.strings[1]: invalid UTF-8 at byte 1"));
}

TEST(WireTest, RefusesBytesThatAreNoMessage) {
  v1::GenerateRequest parsed;
  Violations violations;
  ASSERT_FALSE(ParseMessage("\x12\x7f short", &parsed, &violations));
  EXPECT_THAT(ViolationsOf(violations.ToStatus()),
              ElementsAre(HasSubstr("the 8 bytes are not a pergola.v1.GenerateRequest")));
}

TEST(WireTest, SplitsABatchWithoutParsingItsItems) {
  v1::GenerateBatchRequest batch;
  batch.add_requests()->set_text("one");
  batch.add_requests()->set_text("\xff two");
  const std::string bytes = batch.SerializePartialAsString();
  std::vector<std::string_view> items;
  Violations violations;
  ASSERT_TRUE(SplitBatch(bytes, 256, &items, &violations));
  ASSERT_THAT(items, SizeIs(2));
  EXPECT_EQ(items[0], batch.requests(0).SerializeAsString());
}

TEST(WireTest, StopsCountingABatchAtItsLimit) {
  std::string bytes;
  for (int i = 0; i < 100'000; ++i) bytes += std::string("\x0a\x00", 2);
  std::vector<std::string_view> items;
  Violations violations;
  ASSERT_TRUE(SplitBatch(bytes, 256, &items, &violations));
  EXPECT_THAT(items, SizeIs(257));
}

TEST(WireTest, RefusesATruncatedBatch) {
  for (const std::string& bytes : {std::string("\x0a\x05xy"), std::string("\x0a"),
                                   std::string("\x0a\xff\xff\xff\xff\x0f"), std::string("\x07")}) {
    std::vector<std::string_view> items;
    Violations violations;
    EXPECT_FALSE(SplitBatch(bytes, 256, &items, &violations)) << bytes.size();
  }
}

TEST(WorkPoolTest, RefusesJobsAndBytesBeyondItsBounds) {
  WorkPool pool({"test", 1, 3, 100});
  std::promise<void> go;
  const std::shared_future<void> gone = go.get_future().share();
  std::atomic<int> ran{0};
  const auto job = [&ran, gone] {
    gone.wait();
    ++ran;
  };
  EXPECT_TRUE(pool.TryRun(60, job));
  EXPECT_FALSE(pool.TryRun(41, job)) << "60 + 41 bytes";
  EXPECT_TRUE(pool.TryRun(40, job));
  EXPECT_TRUE(pool.TryRun(0, job));
  EXPECT_FALSE(pool.TryRun(0, job)) << "a fourth job";
  go.set_value();
  pool.Stop();
  EXPECT_EQ(ran, 3);
  EXPECT_FALSE(pool.TryRun(0, job)) << "stopped";
}

TEST(WorkPoolTest, ALargeJobRunsAlone) {
  WorkPool pool({"test", 1, 3, 100});
  std::promise<void> ran;
  EXPECT_TRUE(pool.TryRun(1000, [&ran] { ran.set_value(); }));
  ran.get_future().wait();
}

TEST(WorkPoolTest, GivesBytesBackWhenAJobHasRun) {
  WorkPool pool({"test", 2, 8, 10});
  int ran = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (ran < 50 && std::chrono::steady_clock::now() < end) {
    if (pool.TryRun(10, [] {})) ++ran;
    std::this_thread::yield();
  }
  EXPECT_EQ(ran, 50);
}

TEST(AddressTest, ReadsHostAndPort) {
  const auto address = ParseAddress("[::1]:80");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->host, "::1");
  EXPECT_EQ(FormatAddress(*address), "[::1]:80");
  EXPECT_EQ(FormatAddress(*ParseAddress("localhost:0")), "localhost:0");
}

TEST(AddressTest, RefusesWhatIsNone) {
  for (const char* text : {"", "host", ":80", "::1:80", "h:65536", "h:-1", "h:x", "h:"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseAddress(text).status())) << text;
  }
}

TEST(AddressTest, KnowsLoopback) {
  EXPECT_TRUE(*IsLoopback({"127.0.0.1", 0}));
  EXPECT_TRUE(*IsLoopback({"127.9.9.9", 0}));
  EXPECT_FALSE(*IsLoopback({"0.0.0.0", 0}));
  EXPECT_FALSE(IsLoopback({"no such host.invalid", 0}).ok());
}

class PrivateFileTest : public ::testing::Test {
 protected:
  PrivateFileTest() {
    std::string pattern = ::testing::TempDir() + "pergola-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~PrivateFileTest() override {
    unlink(Path("file").c_str());
    rmdir(folder_.c_str());
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Write(const std::string& text, mode_t mode) const {
    std::ofstream(Path("file"), std::ios::trunc) << text;
    chmod(Path("file").c_str(), mode);
    return Path("file");
  }
  std::string folder_;
};

TEST_F(PrivateFileTest, ReadsATokenWithoutItsLineEnd) {
  const auto token = ReadTokenFile(Write("secret\n", 0600));
  ASSERT_TRUE(token.ok()) << token.status().ToString();
  EXPECT_EQ(*token, "secret");
}

TEST_F(PrivateFileTest, RefusesTokensThatOthersMayReadOrThatAreNone) {
  EXPECT_THAT(ReadTokenFile(Write("secret", 0640)).status().ToString(), HasSubstr("mode 0640"));
  EXPECT_THAT(ReadTokenFile(Write("\n", 0600)).status().ToString(), HasSubstr("has 0 bytes"));
  EXPECT_THAT(ReadTokenFile(Write("a b", 0600)).status().ToString(), HasSubstr("visible ASCII"));
  EXPECT_FALSE(ReadTokenFile(Write(std::string(5000, 'x'), 0600)).ok());
  EXPECT_THAT(ReadTokenFile(Path("none")).status().ToString(), HasSubstr("No such file"));
  EXPECT_THAT(ReadTokenFile(folder_).status().ToString(), HasSubstr("regular file"));
}

TEST_F(PrivateFileTest, WritesTheRunFileForItsOwnerOnly) {
  const std::string path = Path("file");
  ASSERT_TRUE(WriteRunFile(path, {42, "a:1", "b:2", "/t\xff", 7}).ok());
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  const auto json = nlohmann::json::parse(std::ifstream(path));
  EXPECT_EQ(json["pid"], 42);
  EXPECT_EQ(json["public_address"], "a:1");
  EXPECT_EQ(json["internal_address"], "b:2");
  EXPECT_EQ(json["started_us"], 7);
  RemoveRunFile(path, 43);
  EXPECT_EQ(access(path.c_str(), F_OK), 0) << "another process's run file stays";
  RemoveRunFile(path, 42);
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(PrivateFileTest, SaysWhyTheRunFileCannotBeWritten) {
  EXPECT_THAT(WriteRunFile("/nonexistent/run.json", {}).ToString(), HasSubstr("No such file"));
}

}  // namespace
}  // namespace pergola
