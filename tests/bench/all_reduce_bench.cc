// The stage's shared-memory all-reduce beside MPI_Allreduce, in turn, in one run:
//   mpirun -n 2 --bind-to none --oversubscribe all_reduce_bench [--tiny]
// Each size takes kRounds rounds of both; a round's time is that of its slowest rank, and the table
// shows medians with the lowest and highest quarter. Every result is compared with the sum in rank
// order, in every bit; how many of MPI's differ is told beside, for that is why it is no part of
// the engine.
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "worker/comm/group.h"
#include "worker/comm/shm_communicator.h"

namespace pergola {
namespace {

constexpr int kRounds = 21;

struct Times {
  double low, median, high;  // microseconds per call
};

Times Quartiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 4], values[values.size() / 2], values[values.size() * 3 / 4]};
}

// Of the slowest rank, on every rank.
double RoundMicroseconds(int calls, const std::function<void()>& call) {
  MPI_Barrier(MPI_COMM_WORLD);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  double own =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  double slowest = 0;
  MPI_Allreduce(&own, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return slowest / calls;
}

// What each rank contributes, and the sum in rank order.
struct Data {
  std::vector<float> own, expected;
  Data(int rank, int size, size_t count) : own(count), expected(count) {
    for (int r = 0; r < size; ++r) {
      std::mt19937 random(r + 1);
      std::normal_distribution<float> values;
      for (size_t i = 0; i < count; ++i) {
        const float value = values(random);
        if (r == rank) own[i] = value;
        expected[i] = r == 0 ? value : expected[i] + value;
      }
    }
  }
  bool Same(const std::vector<float>& result) const {
    return std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)) == 0;
  }
};

int Main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  const bool tiny = argc > 1 && std::string(argv[1]) == "--tiny";
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const auto group = Group::Form(provided, size, 1);
  if (!group.ok()) {
    std::fprintf(stderr, "%s\n", std::string(group.status().message()).c_str());
    return 1;
  }
  WaitBoard board;
  ShmOptions options;
  options.rank = (*group)->rank();
  options.size = size;
  options.spin = size <= sysconf(_SC_NPROCESSORS_ONLN);
  options.board = &board;
  const auto region = (*group)->ShareStageRegion(options);
  if (!region.ok()) {
    std::fprintf(stderr, "%s\n", std::string(region.status().message()).c_str());
    return 1;
  }
  ShmCommunicator shm(*region, options);
  if (options.rank == 0) {
    std::printf(
        "all-reduce of f32 over %d ranks on %ld cores, us per call: median (quarters)\n%8s %28s "
        "%28s %6s\n",
        size, sysconf(_SC_NPROCESSORS_ONLN), "bytes", "shared memory", "MPI_Allreduce", "ratio");
  }
  for (size_t bytes = 1 << 10; bytes <= 1 << 20; bytes *= 4) {
    const Data data(options.rank, size, bytes / sizeof(float));
    std::vector<float> mine;
    std::vector<float> theirs(data.own.size());
    mine = data.own;
    if (!shm.AllReduce(mine.data(), static_cast<int64_t>(mine.size())).ok() || !data.Same(mine)) {
      std::fprintf(stderr, "rank %d: the sum of %zu bytes is wrong\n", options.rank, bytes);
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Allreduce(data.own.data(), theirs.data(), static_cast<int>(theirs.size()), MPI_FLOAT,
                  MPI_SUM, MPI_COMM_WORLD);
    const bool same = data.Same(theirs);
    const int calls = tiny ? 2 : static_cast<int>((8 << 20) / bytes / 4 + 8);
    std::vector<double> shm_times;
    std::vector<double> mpi_times;
    for (int round = 0; round < (tiny ? 2 : kRounds); ++round) {
      // Sums of sums stay finite: the values start anew in each round.
      mine.assign(data.own.size(), 0);
      shm_times.push_back(RoundMicroseconds(
          calls, [&] { (void)shm.AllReduce(mine.data(), static_cast<int64_t>(mine.size())); }));
      theirs.assign(data.own.size(), 0);
      mpi_times.push_back(RoundMicroseconds(calls, [&] {
        MPI_Allreduce(MPI_IN_PLACE, theirs.data(), static_cast<int>(theirs.size()), MPI_FLOAT,
                      MPI_SUM, MPI_COMM_WORLD);
      }));
    }
    if (options.rank != 0) continue;
    const Times ours = Quartiles(shm_times);
    const Times peer = Quartiles(mpi_times);
    std::printf("%8zu %10.1f (%6.1f %8.1f) %10.1f (%6.1f %8.1f) %6.2f%s\n", bytes, ours.median,
                ours.low, ours.high, peer.median, peer.low, peer.high, peer.median / ours.median,
                same ? "" : "  MPI's bits differ from the sum in rank order");
  }
  MPI_Finalize();
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
