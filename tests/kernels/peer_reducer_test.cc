// Peer memory behind streams: sums, and what a stream says of a rank that does not come.
#include "kernels/cuda/peer_reducer.h"

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/kernels/cuda/peer_ranks.h"

namespace pergola {
namespace {

TEST(PeerReducerTest, SumsOnStreamsAndNamesALostRankInTheStreamsError) {
  if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  constexpr int kRanks = 2;
  BytesGather gather(kRanks);
  absl::Status ends[kRanks];
  std::vector<float> sums[kRanks];
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto host = CpuStream::Create(StreamOptions());
      const auto stream = OpenCudaStream(0, *host).value();
      PeerOptions options;
      options.rank = rank;
      options.size = kRanks;
      options.first_rank = 4;
      options.most_bytes = 1 << 12;
      options.wait_ms = 500;
      options.gather = [&, rank](const void* in, int64_t bytes, void* out) {
        return gather.Gather(rank, in, bytes, out);
      };
      const auto peers = PeerReducer::Open(*stream, options).value();
      EXPECT_EQ(peers->most_bytes(), 1 << 12);
      const DeviceBuffer x(*stream, 64 * 4);
      std::vector<float> values(64, static_cast<float>(rank + 1));
      stream->CopyToDevice(x.data(), values.data(), x.size());
      const Tensor tensor(x.data(), DType::kF32, {1, 64});
      peers->AllReduce(tensor);
      stream->CopyToHost(values.data(), x.data(), x.size());
      EXPECT_TRUE(stream->Synchronize().ok());
      sums[rank] = values;
      gather.Meet();
      if (rank == 1) {
        gather.Meet();
        return;  // it is lost to the next sum
      }
      peers->AllReduce(tensor);
      ends[rank] = stream->Synchronize();
      EXPECT_EQ(stream->Synchronize(), ends[rank]);
      gather.Meet();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& sum : sums) EXPECT_EQ(sum, std::vector<float>(64, 3.0F));
  EXPECT_EQ(ends[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(ends[0].message()),
            "CUDA device 0: sum over peer memory: rank 5 did not come within 500 ms");
}

}  // namespace
}  // namespace pergola
