#include "worker/comm/transport.h"

#include <mpi.h>

#include <climits>
#include <cstdlib>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/comm/mpi_transport.h"
#include "worker/comm/thread_transport.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

namespace pergola {
namespace {

using ::testing::HasSubstr;

// This process as a world of one rank: what it sends to itself goes through MPI all the same.
MPI_Comm SelfWorld() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
#if defined(__SANITIZE_ADDRESS__)
    // Open MPI keeps memory at its end; whatever this thread allocates from here on is not asked
    // for.
    __lsan_disable();
#endif
    // Without this, a process that no mpirun started would start a daemon.
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 1);
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    std::atexit([] { MPI_Finalize(); });
  }
  return MPI_COMM_WORLD;
}

std::vector<uint8_t> Bytes(size_t count, int seed) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i * 31 + seed);
  return bytes;
}

absl::Status SendBytes(Transport* transport, int to, Tag tag, const std::vector<uint8_t>& bytes) {
  return transport->Send(to, tag, bytes.data(), static_cast<int64_t>(bytes.size()));
}

class MpiTransportTest : public ::testing::Test {
 protected:
  WaitBoard board_;
  MpiTransport transport_{SelfWorld(), {/*spin=*/false, &board_}};
  std::vector<uint8_t> received_;
};

TEST_F(MpiTransportTest, MessagesOfOneTagArriveInOrderWhateverTheirSize) {
  // Eager, rendezvous, empty and large messages mixed.
  const std::vector<size_t> sizes = {10, 100'000, 0, 5'000'000, 1, 4096, 70'000};
  for (size_t i = 0; i < sizes.size(); ++i) {
    ASSERT_TRUE(SendBytes(&transport_, 0, Tag::kHidden, Bytes(sizes[i], static_cast<int>(i))).ok());
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    ASSERT_TRUE(transport_.Receive(0, Tag::kHidden, &received_, false).ok());
    EXPECT_EQ(received_, Bytes(sizes[i], static_cast<int>(i)));
  }
  EXPECT_TRUE(transport_.Flush().ok());
  EXPECT_FALSE(transport_.Progress());
}

TEST_F(MpiTransportTest, TagsDoNotMix) {
  ASSERT_TRUE(SendBytes(&transport_, 0, Tag::kTokens, Bytes(3, 1)).ok());
  ASSERT_TRUE(SendBytes(&transport_, 0, Tag::kPlan, Bytes(4, 2)).ok());
  ASSERT_TRUE(transport_.Receive(0, Tag::kPlan, &received_, true).ok());
  EXPECT_EQ(received_, Bytes(4, 2));
  ASSERT_TRUE(transport_.Receive(0, Tag::kTokens, &received_, true).ok());
  EXPECT_EQ(received_, Bytes(3, 1));
}

TEST_F(MpiTransportTest, ProbeSaysWhetherAMessageWaits) {
  EXPECT_FALSE(transport_.Probe(0, Tag::kPlan));
  ASSERT_TRUE(SendBytes(&transport_, 0, Tag::kPlan, Bytes(4, 2)).ok());
  while (!transport_.Probe(0, Tag::kPlan)) std::this_thread::yield();
  ASSERT_TRUE(transport_.Receive(0, Tag::kPlan, &received_, false).ok());
  EXPECT_FALSE(transport_.Probe(0, Tag::kPlan));
}

TEST_F(MpiTransportTest, ProgressTakesMessagesInBeforeTheyAreAskedFor) {
  EXPECT_FALSE(transport_.Probe(0, Tag::kHidden));  // makes the channel known
  ASSERT_TRUE(SendBytes(&transport_, 0, Tag::kHidden, Bytes(1'000'000, 3)).ok());
  while (transport_.Progress()) std::this_thread::yield();
  EXPECT_TRUE(transport_.Probe(0, Tag::kHidden));
  ASSERT_TRUE(transport_.Receive(0, Tag::kHidden, &received_, false).ok());
  EXPECT_EQ(received_, Bytes(1'000'000, 3));
}

TEST_F(MpiTransportTest, RefusesAMessageThatMpiCannotCount) {
  const uint8_t byte = 0;
  const absl::Status status = transport_.Send(0, Tag::kPlan, &byte, int64_t{INT_MAX} + 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2147483648"));
}

TEST_F(MpiTransportTest, AnErrorOfMpiIsAStatusInWords) {
  const uint8_t byte = 0;
  const absl::Status status = transport_.Send(7, Tag::kPlan, &byte, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("MPI_Isend: MPI_ERR_RANK"));
}

TEST(ThreadTransportTest, AReceiverWaitsForItsSender) {
  auto mailboxes = std::make_shared<ThreadMailboxes>();
  WaitBoard boards[2];
  ThreadTransport first(mailboxes, 0, &boards[0]);
  ThreadTransport second(mailboxes, 1, &boards[1]);
  std::vector<uint8_t> received;
  std::thread receiver([&] { EXPECT_TRUE(second.Receive(0, Tag::kPlan, &received, false).ok()); });
  Wait wait;
  while (!boards[1].Read(&wait)) std::this_thread::yield();
  EXPECT_STREQ(wait.operation, "receive");
  EXPECT_EQ(wait.peer, 0);
  ASSERT_TRUE(SendBytes(&first, 1, Tag::kPlan, Bytes(9, 4)).ok());
  receiver.join();
  EXPECT_EQ(received, Bytes(9, 4));
  EXPECT_FALSE(boards[1].Read(&wait));
}

TEST(ThreadTransportTest, AbandonEndsAWaitButNotWhatHasArrived) {
  auto mailboxes = std::make_shared<ThreadMailboxes>();
  WaitBoard board;
  ThreadTransport self(mailboxes, 0, &board);
  ASSERT_TRUE(SendBytes(&self, 0, Tag::kPlan, Bytes(2, 1)).ok());
  mailboxes->Abandon();
  std::vector<uint8_t> received;
  EXPECT_TRUE(self.Receive(0, Tag::kPlan, &received, true).ok());
  EXPECT_EQ(self.Receive(0, Tag::kPlan, &received, true).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace pergola
