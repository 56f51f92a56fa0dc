// What scripts/gpu_check runs beside the tests: measurements and checks of whole models on a GPU,
// each a command of this program. Results are lines that begin with RESULT (report.h).
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/attention_bench.h"
#include "tests/gpu/collectives.h"
#include "tests/gpu/matmul_bench.h"
#include "tests/gpu/model_bench.h"
#include "tests/gpu/parity.h"
#include "tests/gpu/ranks.h"
#include "tests/gpu/report.h"
#include "tests/gpu/roofs.h"
#include "tests/kernels/cuda/device_array.h"

namespace pergola {
namespace {

constexpr char kUsage[] =
    "usage: gpu_probe COMMAND [--tiny]\n"
    "  machine      the device, bandwidths, cuBLASLt's rates\n"
    "  parity       goldens of every family against transformers and the CPU, f32, bf16 and f16\n"
    "  ranks        goldens through TP and PP, ranks as processes on one GPU\n"
    "  collectives  NCCL's, ranks as processes on one GPU: right, and how long\n"
    "  attention    attention's speed\n"
    "  products     speed of products by every weight format, 1 to 32 rows\n"
    "  model NAME   decode and prefill of a model with random weights: llama-8b, llama-1b,\n"
    "               starcoder-bf16, starcoder-int8, starcoder-int4\n"
    "  tests        the linked tests, by GoogleTest's options; also if those alone are given\n"
    "--tiny: small shapes, for a run on the emulator, whose times mean nothing.\n"
    "Exit code: 0, 1 if something is wrong, 2 for wrong arguments, 77 without a CUDA device.\n";

constexpr int kWrong = 1, kUsageError = 2, kNoDevice = 77;

struct NamedCase {
  const char* name;
  ModelCase model;
};

// Of the int8 model a quarter of the layers: its weights are rounded while loading, which takes a
// minute for all of them.
std::vector<NamedCase> ModelCases(bool tiny) {
  const std::vector<int64_t> sweep = tiny ? std::vector<int64_t>{1, 2, 3, 4}
                                          : std::vector<int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 256};
  const std::vector<int64_t> two = tiny ? std::vector<int64_t>{1, 2} : std::vector<int64_t>{1, 32};
  const std::string starcoder = "starcoder-15.5b";
  return {{"llama-8b", {"llama-3-8b", WeightFormat::kBF16, 0.80, sweep, 2048}},
          {"llama-1b", {"llama-1b", WeightFormat::kBF16, 0.60, two, 0}},
          {"starcoder-bf16", {starcoder, WeightFormat::kBF16, 0.80, two, 2048}},
          {"starcoder-int8", {starcoder, WeightFormat::kInt8, 0.70, two, 0, 10}},
          {"starcoder-int4", {starcoder, WeightFormat::kInt4, 0.55, two, 0}}};
}

int RunModel(const std::string& name, bool tiny) {
  for (const NamedCase& c : ModelCases(tiny)) {
    if (name != c.name) continue;
    const absl::Status status = BenchModel(c.model, MeasureRoofs(tiny), tiny);
    if (status.ok()) return 0;
    Report("model", name, std::string(status.message()), "", Verdict::kFail);
    return kWrong;
  }
  std::fprintf(stderr, "gpu_probe: there is no model '%s'\n%s", name.c_str(), kUsage);
  return kUsageError;
}

int Run(std::vector<std::string> arguments) {
  bool tiny = false;
  if (!arguments.empty() && arguments.back() == "--tiny") {
    tiny = true;
    arguments.pop_back();
  }
  const std::string command = arguments.empty() ? "" : arguments[0];
  if (command == "--help" || command == "-h") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  const bool known = command == "machine" || command == "parity" || command == "ranks" ||
                     command == "collectives" || command == "attention" || command == "products" ||
                     command == "model";
  if (!known || arguments.size() != (command == "model" ? 2U : 1U)) {
    std::fprintf(stderr, "gpu_probe: %s\n%s",
                 known ? "wrong number of arguments" : ("no command '" + command + "'").c_str(),
                 kUsage);
    return kUsageError;
  }
  // Its ranks touch CUDA, each for itself; this process must not.
  if (command == "ranks") return CheckRanks(tiny) ? 0 : kWrong;
  if (command == "collectives") return CheckCollectives(tiny) ? 0 : kWrong;
  if (const char* why = WhyNoCuda()) {
    Report(command.c_str(), "device", why, "", Verdict::kSkipped);
    return kNoDevice;
  }
  if (command == "parity") return CheckParity(tiny) ? 0 : kWrong;
  if (command == "machine") ReportRoofs(tiny);
  if (command == "attention") BenchAttention(MeasureRoofs(tiny), tiny);
  if (command == "products") BenchProducts(MeasureRoofs(tiny), tiny);
  return command == "model" ? RunModel(arguments[1], tiny) : 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  pergola::InitLog("gpu_probe", "warn");
  const bool options_only = argc > 1 && std::strncmp(argv[1], "--gtest", 7) == 0;
  if (options_only || (argc > 1 && std::strcmp(argv[1], "tests") == 0)) {
    testing::InitGoogleMock(&argc, argv);
    return RUN_ALL_TESTS();
  }
  return pergola::Run({argv + 1, argv + argc});
}
