// Sums over ranks through peer memory: against sums on the host to the bit, and against the
// reference of the norms; on the emulator, or on the GPUs that there are.
#include "kernels/cuda/peer_reduce.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/cuda/norm_bound.h"
#include "tests/kernels/cuda/peer_ranks.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

using emulator::Order;
using testing::HasSubstr;

// What every rank adds and has, and what must come of it.
class Message {
 public:
  Message(DType dtype, int ranks, int64_t rows, int64_t hidden, uint32_t seed = 1)
      : dtype_(dtype), rows_(rows), hidden_(hidden) {
    const int64_t values = rows * hidden;
    std::vector<float> sum;
    for (int rank = 0; rank < ranks; ++rank) {
      parts_.push_back(Rounded(dtype, RandomValues(values, seed + 100 * rank + 7, 0.5F)));
      if (rank == 0) sum = parts_[0];
      for (size_t i = 0; rank > 0 && i < sum.size(); ++i) sum[i] += parts_.back()[i];
    }
    sum_ = Rounded(dtype, sum);
    stream_ = RandomValues(values, seed);
    for (float& value : stream_) value += 3;
    updated_ = stream_;
    for (size_t i = 0; i < updated_.size(); ++i) updated_[i] += sum_[i];
  }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t hidden() const { return hidden_; }
  const std::vector<float>& part(int rank) const { return parts_[static_cast<size_t>(rank)]; }
  const std::vector<float>& sum() const { return sum_; }
  const std::vector<float>& stream() const { return stream_; }
  const std::vector<float>& updated() const { return updated_; }

 private:
  const DType dtype_;
  const int64_t rows_, hidden_;
  std::vector<std::vector<float>> parts_;
  std::vector<float> sum_, stream_, updated_;
};

// One rank's memory for a message.
struct RankTensors {
  RankTensors(const Message& m, int rank)
      : part(m.dtype(), m.rows(), m.hidden(), m.part(rank)),
        stream(DType::kF32, m.rows(), m.hidden(), m.stream()),
        y(m.dtype(), m.rows(), m.hidden(), m.part(rank)),
        weight(RandomValues(m.hidden(), 3)),
        bias(RandomValues(m.hidden(), 4)) {}
  template <typename Args>
  Args Norm() const {
    Args args;
    args.x = stream.tensor();
    args.residual = part.tensor();
    args.weight = weight.data();
    args.epsilon = 1e-5F;
    args.y = y.tensor();
    if constexpr (std::is_same_v<Args, LayerNormArgs>) args.bias = bias.data();
    return args;
  }
  DeviceActivations part, stream, y;
  DeviceArray<float> weight, bias;
};

class PeerReduceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
    emulator::DeviceModel model;
    model.count = 8;
    model.multiprocessors = 3;
    emulator::SetDeviceModel(model);
  }
  void TearDown() override { emulator::SetDeviceModel({}); }

  static std::vector<std::unique_ptr<RankTensors>> Tensors(const Message& message, int ranks) {
    std::vector<std::unique_ptr<RankTensors>> tensors;
    for (int rank = 0; rank < ranks; ++rank) {
      PERGOLA_CUDA_CHECK(cudaSetDevice(DeviceOfRank(rank)));
      tensors.push_back(std::make_unique<RankTensors>(message, rank));
    }
    PERGOLA_CUDA_CHECK(cudaSetDevice(0));
    return tensors;
  }

  template <typename Args>
  static std::vector<float> NormReference(const Message& message, const RankTensors& tensors) {
    std::vector<float> x = message.updated(), y(x.size());
    const std::vector<float> weight = tensors.weight.Read(), bias = tensors.bias.Read();
    Args args = tensors.Norm<Args>();
    args.x = Tensor(x.data(), DType::kF32, {message.rows(), message.hidden()});
    args.residual = Tensor();
    args.weight = weight.data();
    args.y = Tensor(y.data(), DType::kF32, {message.rows(), message.hidden()});
    if constexpr (std::is_same_v<Args, LayerNormArgs>) {
      args.bias = bias.data();
      LayerNormRef(args);
    } else {
      RmsNormRef(args);
    }
    return y;
  }

  template <typename Args>
  static void ExpectNorm(PeerRanks* ranks, const Message& message, PeerShots shots) {
    const auto tensors = Tensors(message, ranks->count());
    ranks->Run([&](int rank) {
      PeerSumNormCuda(ranks->context(rank), ranks->space(rank),
                      tensors[static_cast<size_t>(rank)]->Norm<Args>(), shots);
    });
    const std::vector<float> want = NormReference<Args>(message, *tensors[0]);
    const std::vector<float> weight = tensors[0]->weight.Read(), bias = tensors[0]->bias.Read();
    const auto bound =
        NormBound(want, weight, bias, std::is_same_v<Args, LayerNormArgs>, message.dtype());
    const std::vector<float> first = tensors[0]->y.Read();
    EXPECT_TRUE(CompareWith(first, want, bound));
    for (int rank = 0; rank < ranks->count(); ++rank) {
      const RankTensors& own = *tensors[static_cast<size_t>(rank)];
      EXPECT_TRUE(CompareBits(own.stream.Read(), message.updated())) << "rank " << rank;
      EXPECT_TRUE(CompareBits(own.y.Read(), first)) << "rank " << rank;
      EXPECT_TRUE(CompareBits(own.part.Read(), message.part(rank))) << "rank " << rank;
    }
  }

  static void ExpectSum(PeerRanks* ranks, const Message& message, PeerShots shots) {
    const auto sums = Tensors(message, ranks->count()), adds = Tensors(message, ranks->count());
    ranks->Run([&](int rank) {
      const auto r = static_cast<size_t>(rank);
      PeerSumCuda(ranks->context(rank), ranks->space(rank), sums[r]->part.tensor(), shots);
      PeerSumAddCuda(ranks->context(rank), ranks->space(rank),
                     {adds[r]->stream.tensor(), adds[r]->part.tensor()}, shots);
    });
    for (int rank = 0; rank < ranks->count(); ++rank) {
      const auto r = static_cast<size_t>(rank);
      EXPECT_TRUE(CompareBits(sums[r]->part.Read(), message.sum())) << "rank " << rank;
      EXPECT_TRUE(CompareBits(adds[r]->stream.Read(), message.updated())) << "rank " << rank;
      EXPECT_TRUE(CompareBits(adds[r]->part.Read(), message.part(rank))) << "rank " << rank;
    }
  }

  static void ExpectAll(PeerRanks* ranks, const Message& message) {
    for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
      SCOPED_TRACE(std::to_string(message.rows()) + " x " + std::to_string(message.hidden()) + " " +
                   std::string(DTypeName(message.dtype())) + " among " +
                   std::to_string(ranks->count()) +
                   " in shots: " + std::to_string(static_cast<int>(shots)));
      ExpectSum(ranks, message, shots);
      ExpectNorm<RmsNormArgs>(ranks, message, shots);
      ExpectNorm<LayerNormArgs>(ranks, message, shots);
    }
  }
};

class PeerReduceSizesTest : public PeerReduceTest,
                            public testing::WithParamInterface<std::tuple<DType, int>> {};

TEST_P(PeerReduceSizesTest, SumsAndNormsAreTheReferencesOnAllRanks) {
  const auto [dtype, count] = GetParam();
  PeerRanks ranks(count, 64 << 10);
  for (int rank = 0; rank < count; ++rank) ASSERT_TRUE(ranks.created(rank).ok());
  for (const auto& [rows, hidden] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 64}, {1, 2048}, {2, 31}, {7, 576}, {64, 33}, {64, 128}}) {
    ExpectAll(&ranks, Message(dtype, count, rows, hidden));
  }
}

INSTANTIATE_TEST_SUITE_P(, PeerReduceSizesTest,
                         testing::Combine(testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                                          testing::Values(2, 3, 8)),
                         [](const auto& test) {
                           return std::string(DTypeName(std::get<0>(test.param))) + "_" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST_F(PeerReduceTest, EveryOrderOfThreadsAndBlocksGivesTheSame) {
  PeerRanks ranks(4, 16 << 10);
  const Message message(DType::kBF16, 4, 5, 96);
  for (const auto& [order, seed] : std::vector<std::pair<Order, uint64_t>>{
           {Order::kDescending, 0}, {Order::kShuffled, 1}, {Order::kShuffled, 2}}) {
    for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
      const auto tensors = Tensors(message, 4);
      ranks.Run([&, o = order, s = seed](int rank) {
        // Each rank in an order of its own.
        emulator::SetOrder(o, s + 10 * static_cast<uint64_t>(rank));
        PeerSumNormCuda(ranks.context(rank), ranks.space(rank),
                        tensors[static_cast<size_t>(rank)]->Norm<RmsNormArgs>(), shots);
      });
      for (const auto& own : tensors) {
        EXPECT_TRUE(CompareBits(own->stream.Read(), message.updated()));
        EXPECT_TRUE(CompareBits(own->y.Read(), tensors[0]->y.Read()));
      }
    }
  }
}

// Steps of changing sizes one behind the other, while each rank in turn is late: both halves of the
// buffers are used again and again.
TEST_F(PeerReduceTest, ManyStepsInARowKeepApartWithASlowRank) {
  constexpr int kRanks = 3, kSteps = 60;
  PeerRanks ranks(kRanks, 16 << 10);
  const int64_t rows[] = {1, 9, 2, 64, 3};
  std::vector<Message> messages;
  std::vector<std::vector<std::unique_ptr<RankTensors>>> tensors;
  for (int step = 0; step < kSteps; ++step) {
    messages.emplace_back(DType::kF16, kRanks, rows[step % 5], 40, 1000 + step);
    tensors.push_back(Tensors(messages.back(), kRanks));
  }
  ranks.Run([&](int rank) {
    for (int step = 0; step < kSteps; ++step) {
      if (step / 7 % kRanks == rank) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const RankTensors& own = *tensors[static_cast<size_t>(step)][static_cast<size_t>(rank)];
      const PeerShots shots = step % 3 == 0 ? PeerShots::kTwo : PeerShots::kOne;
      PeerSumAddCuda(ranks.context(rank), ranks.space(rank),
                     {own.stream.tensor(), own.part.tensor()}, shots);
    }
  });
  for (size_t step = 0; step < kSteps; ++step) {
    for (const auto& own : tensors[step]) {
      EXPECT_TRUE(CompareBits(own->stream.Read(), messages[step].updated())) << "step " << step;
    }
  }
}

TEST_F(PeerReduceTest, ARecordedLaunchMayBeReplayed) {
  constexpr int kRanks = 2, kReplays = 5;
  PeerRanks ranks(kRanks, 16 << 10);
  const Message message(DType::kF32, kRanks, 3, 64);
  const auto tensors = Tensors(message, kRanks);
  ranks.Run([&](int rank) {
    const RankTensors& own = *tensors[static_cast<size_t>(rank)];
    const cudaStream_t stream = ranks.context(rank).stream;
    PERGOLA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    PeerSumAddCuda(ranks.context(rank), ranks.space(rank),
                   {own.stream.tensor(), own.part.tensor()});
    cudaGraph_t graph;
    PERGOLA_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t exec;
    PERGOLA_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < kReplays; ++i) PERGOLA_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    PERGOLA_CUDA_CHECK(cudaStreamSynchronize(stream));
    PERGOLA_CUDA_CHECK(cudaGraphExecDestroy(exec));
    PERGOLA_CUDA_CHECK(cudaGraphDestroy(graph));
  });
  std::vector<float> want = message.stream();
  for (int i = 0; i < kReplays; ++i) {
    for (size_t k = 0; k < want.size(); ++k) want[k] += message.sum()[k];
  }
  for (const auto& own : tensors) EXPECT_TRUE(CompareBits(own->stream.Read(), want));
}

TEST_F(PeerReduceTest, ARankThatDoesNotComeIsNamedAndTheStreamDrains) {
  PeerRanks ranks(3, 16 << 10, /*wait_ms=*/50);
  const Message message(DType::kF32, 3, 2, 64);
  const auto tensors = Tensors(message, 3);
  ranks.Run([&](int rank) {
    if (rank == 1) return;  // it is lost
    for (int launch = 0; launch < 3; ++launch) {
      PeerSumCuda(ranks.context(rank), ranks.space(rank),
                  tensors[static_cast<size_t>(rank)]->part.tensor());
    }
  });
  for (const int rank : {0, 2}) {
    const absl::Status status = ranks.memory(rank).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 did not come within 50 ms"));
  }
  EXPECT_TRUE(ranks.memory(1).status().ok());
}

}  // namespace
}  // namespace pergola
