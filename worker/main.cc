// pergola-worker: one rank of a group. Reads flags and environment, starts MPI, and ends the
// process.
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/limits.h"
#include "base/log.h"
#include "worker/rank.h"
#include "worker/worker_options.h"

namespace {

using namespace pergola;

// Set by mpirun before MPI starts: of many ranks with the same wrong flag, one speaks.
bool IsFirstRank() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::string(rank) == "0";
}

int Usage(const absl::Status& status) {
  const std::string text(status.message());
  if (IsFirstRank()) std::fprintf(stderr, "pergola-worker: %s\n", text.c_str());
  return kExitUsage;
}

}  // namespace

int main(int argc, char** argv) {
  absl::StatusOr<WorkerOptions> options = ParseWorkerOptions(argc, argv);
  if (options.status().code() == absl::StatusCode::kCancelled) {
    std::printf("%s", std::string(options.status().message()).c_str());
    return kExitOk;
  }
  if (!options.ok()) return Usage(options.status());
  std::string join_token;
  if (!options->join_token_file.empty()) {
    absl::StatusOr<std::string> token = ReadJoinToken(options->join_token_file);
    if (!token.ok()) return Usage(token.status());
    join_token = *std::move(token);
  } else if (const char* token = std::getenv(kJoinTokenVariable); token != nullptr) {
    join_token = token;
  }
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    std::fprintf(stderr, "pergola-worker: MPI does not start\n");
    return kExitRetryable;
  }
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  InitLog("worker" + std::to_string(world_rank), options->log_level);
  auto* rank = new Rank(*options, join_token, provided);
  const int code = rank->Run();
  // No destructors and no MPI_Finalize: both may wait for peers that are gone, and mpirun ends the
  // others at once.
  spdlog::shutdown();
  std::fflush(nullptr);
  _exit(code);
}
