// How fast a model's weights come from its files into packed memory, against how fast the files can
// be read: both in this run, in turn.
//   load_bench MODEL [--threads N] [--rounds R] [--cold] [--dtype F]
// --cold drops the files from the page cache before each reading, as far as the system lets us. One
// more round goes before, to warm up. Prints a line for each round and the medians.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/log.h"
#include "kernels/cpu_stream.h"
#include "model/checkpoint.h"
#include "model/weight_format.h"
#include "worker/weights/loader.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// Clean pages only: what was written just now stays until it is on the disk.
void Drop(const Checkpoint& checkpoint) {
  for (const std::string& path : checkpoint.files()) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    (void)fdatasync(fd);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

// The roof: every byte of the files by plain reads of a MiB, dealt to the threads in turn.
double ReadFiles(const Checkpoint& checkpoint, int threads, int64_t* bytes) {
  constexpr int64_t kPiece = 1 << 20;
  *bytes = 0;
  const Clock::time_point begin = Clock::now();
  for (const std::string& path : checkpoint.files()) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    const int64_t size = lseek(fd, 0, SEEK_END);
    *bytes += size;
    std::vector<std::thread> readers;
    for (int t = 0; t < threads; ++t) {
      readers.emplace_back([=] {
        std::vector<char> piece(kPiece);
        for (int64_t at = t * kPiece; at < size; at += threads * kPiece) {
          if (pread(fd, piece.data(), kPiece, at) <= 0) return;
        }
      });
    }
    for (std::thread& reader : readers) reader.join();
    close(fd);
  }
  return SecondsSince(begin);
}

int Run(const std::string& model, int threads, int rounds, bool cold, const std::string& dtype) {
  const auto checkpoint = Checkpoint::Open(model);
  const auto format = ParseWeightFormat(dtype);
  if (!checkpoint.ok() || !format.ok()) {
    const absl::Status& status = checkpoint.ok() ? format.status() : checkpoint.status();
    std::fprintf(stderr, "load_bench: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  StreamOptions options;
  options.threads = threads;
  const auto stream = CpuStream::Create(options);
  const auto layout = MakeLayout((*checkpoint)->spec(), 1, 1, 0);
  std::vector<double> roofs, loads;
  for (int round = -1; round < rounds; ++round) {
    int64_t bytes = 0;
    if (cold) Drop(**checkpoint);
    const double roof = ReadFiles(**checkpoint, threads, &bytes);
    if (cold) Drop(**checkpoint);
    const Clock::time_point begin = Clock::now();
    const auto weights = LoadStageWeights(**checkpoint, *layout, *stream, nullptr, *format);
    const double load = SecondsSince(begin);
    if (!weights.ok()) {
      std::fprintf(stderr, "load_bench: %s\n", std::string(weights.status().message()).c_str());
      return kExitRetryable;
    }
    std::printf("%s files %.3f s, %.2f GB/s; weights %.3f s, %.2f GB/s of the file\n",
                round < 0 ? "warm-up:" : "round:  ", roof, bytes / 1e9 / roof, load,
                bytes / 1e9 / load);
    std::fflush(stdout);
    if (round < 0) continue;
    roofs.push_back(roof);
    loads.push_back(load);
  }
  std::printf("median: files %.3f s, weights %.3f s (%.2f of the reading's speed)\n", Median(roofs),
              Median(loads), Median(roofs) / Median(loads));
  return kExitOk;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  using namespace pergola;
  std::string model, dtype = "auto";
  int threads = 2, rounds = 10;
  bool cold = false;
  CLI::App app("load_bench: weights from files into packed memory, against plain reading");
  app.add_option("MODEL", model)->required();
  AddNumber(app, "--threads", &threads, {1, 1024}, "of the load and of the reading");
  AddNumber(app, "--rounds", &rounds, {1, 1000}, "measured ones");
  app.add_flag("--cold", cold, "drop the files from the page cache before each reading");
  app.add_option("--dtype", dtype, "of the weight matrices, as pergola up has it");
  CLI11_PARSE(app, argc, argv);
  InitLog("load_bench", "warn");
  return Run(model, threads, rounds, cold, dtype);
}
