#include "client/hosts.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

TEST(HostsTest, EmptyTextMeansThisMachine) {
  const auto hosts = ParseHosts("");
  ASSERT_TRUE(hosts.ok());
  EXPECT_TRUE(hosts->empty());
}

TEST(HostsTest, ReadsNamesAndSlotsInOrder) {
  const auto hosts = ParseHosts("node-a.example:8,10.0.0.2:4");
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  ASSERT_EQ(hosts->size(), 2U);
  EXPECT_EQ((*hosts)[0].name, "node-a.example");
  EXPECT_EQ((*hosts)[0].slots, 8);
  EXPECT_EQ((*hosts)[1].name, "10.0.0.2");
  EXPECT_EQ((*hosts)[1].slots, 4);
}

TEST(HostsTest, RefusesWhatIsNotNameAndSlots) {
  for (const char* text : {"a", "a:", ":8", "a:0", "a:-1", "a:1025", "a:8x", "a:8,,b:8", "a:8,",
                           "-x:8", "a b:8", "a;rm:8", "a:99999999999"}) {
    const auto hosts = ParseHosts(text);
    EXPECT_EQ(hosts.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(HostsTest, RefusesAHostThatComesTwice) {
  EXPECT_THAT(Message(ParseHosts("a:8,b:8,a:8").status()), HasSubstr("'a' comes twice"));
}

TEST(HostsTest, SpreadsWholeStagesEvenly) {
  const auto hosts = ParseHosts("a:8,b:8");
  ASSERT_TRUE(hosts.ok());
  EXPECT_EQ(*RanksPerHost(*hosts, 8, 2), 8);
  EXPECT_EQ(*RanksPerHost(*hosts, 2, 4), 4);
  EXPECT_EQ(*RanksPerHost({}, 3, 2), 6);
}

TEST(HostsTest, RefusesStagesThatDoNotDivideWithBothNumbers) {
  const auto hosts = ParseHosts("a:8,b:8");
  const std::string message = Message(RanksPerHost(*hosts, 2, 3).status());
  EXPECT_THAT(message, HasSubstr("--pp 3"));
  EXPECT_THAT(message, HasSubstr("2 hosts"));
}

TEST(HostsTest, RefusesAHostWithTooFewSlotsByName) {
  const auto hosts = ParseHosts("a:8,b:4");
  const std::string message = Message(RanksPerHost(*hosts, 8, 2).status());
  EXPECT_THAT(message, HasSubstr("host b has 4 slots"));
  EXPECT_THAT(message, HasSubstr("= 8"));
}

TEST(HostsTest, KnowsItsOwnNames) {
  EXPECT_TRUE(IsLocalHost("localhost", "node1"));
  EXPECT_TRUE(IsLocalHost("127.0.0.1", "node1"));
  EXPECT_TRUE(IsLocalHost("node1", "node1.cluster"));
  EXPECT_FALSE(IsLocalHost("node2", "node1"));
  EXPECT_FALSE(IsLocalHost("1270.example", "node1"));
}

TEST(HostsTest, FindsTheAddressThatRoutesToAHost) {
  const auto address = LocalAddressTowards("127.0.0.1");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(*address, "127.0.0.1");
}

TEST(HostsTest, SaysWhichHostDoesNotResolve) {
  // ".invalid" never resolves (RFC 2606).
  EXPECT_THAT(Message(LocalAddressTowards("nowhere.invalid").status()),
              HasSubstr("'nowhere.invalid'"));
}

TEST(HostsTest, SplitsAddresses) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:0")->port, 0);
  EXPECT_EQ(ParseHostPort("[::1]:50051")->host, "::1");
  EXPECT_EQ(JoinHostPort("::1", 7), "[::1]:7");
  for (const char* text :
       {"", "a", ":1", "a:65536", "a:-1", "::1:5", "[zz]:5", "a:5x", "a:+5", "a: 5"}) {
    EXPECT_FALSE(ParseHostPort(text).ok()) << text;
  }
}

TEST(HostsTest, OnlyWhatResolvesAndHasAPortCanBeDialled) {
  for (const char* text : {"127.0.0.1:1", "localhost:65535", "[::1]:80", "0.0.0.0:80"}) {
    EXPECT_TRUE(CheckDialable("--connect", text).ok()) << text;
  }
  EXPECT_EQ(Message(CheckDialable("--connect", "127.0.0.1:0")),
            "--connect 127.0.0.1:0: must be HOST:PORT with a port of 1 to 65535");
  const absl::Status unresolved = CheckDialable("--connect", "nowhere.invalid:80");
  EXPECT_EQ(unresolved.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(unresolved), HasSubstr("host 'nowhere.invalid' does not resolve"));
}

TEST(HostsTest, DialsLoopbackWhereAnyIsBound) {
  EXPECT_EQ(DialAddress("0.0.0.0:80"), "127.0.0.1:80");
  EXPECT_EQ(DialAddress("[::]:80"), "[::1]:80");
  EXPECT_EQ(DialAddress("10.0.0.1:80"), "10.0.0.1:80");
}

}  // namespace
}  // namespace pergola
