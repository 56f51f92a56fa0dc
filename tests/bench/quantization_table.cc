// What a weight format costs in accuracy, as Markdown:
//   quantization_table                        the goldens of every family
//   quantization_table MODEL --ids 1,2,...    a model of one's own, on this prompt
// Each cell: the RMS difference of the logits from those of f32 weights, as a share of the RMS of
// these logits about their mean of the row, and the share of positions whose greedy token is the
// same.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "tests/worker/all_logits.h"
#include "tests/worker/golden.h"

namespace pergola {
namespace {

constexpr WeightFormat kCompared[] = {WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kInt8,
                                      WeightFormat::kInt4};

void PrintRow(const std::string& name, const std::string& path, const std::vector<int32_t>& ids) {
  const auto checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) {
    std::fprintf(stderr, "%s\n", std::string(checkpoint.status().message()).c_str());
    std::exit(2);
  }
  const auto vocabulary = static_cast<size_t>((*checkpoint)->spec().vocabulary);
  const std::vector<float> f32 = AllLogits(**checkpoint, ids, WeightFormat::kF32);
  std::printf("| %s |", name.c_str());
  for (const WeightFormat format : kCompared) {
    const std::vector<float> logits = AllLogits(**checkpoint, ids, format);
    double error = 0, spread = 0;
    size_t same = 0;
    for (size_t row = 0; row < ids.size(); ++row) {
      const float* want = f32.data() + row * vocabulary;
      const float* got = logits.data() + row * vocabulary;
      double mean = 0;
      for (size_t id = 0; id < vocabulary; ++id) mean += want[id];
      mean /= static_cast<double>(vocabulary);
      for (size_t id = 0; id < vocabulary; ++id) {
        error += std::pow(static_cast<double>(got[id]) - want[id], 2);
        spread += std::pow(want[id] - mean, 2);
      }
      same += static_cast<size_t>(std::max_element(want, want + vocabulary) - want ==
                                  std::max_element(got, got + vocabulary) - got);
    }
    std::printf(" %.3f %%, %.0f %% |", 100 * std::sqrt(error / spread),
                100.0 * static_cast<double>(same) / static_cast<double>(ids.size()));
  }
  std::printf("\n");
  std::fflush(stdout);
}

int Run(const std::vector<std::string>& arguments) {
  std::printf("| golden | bf16 | f16 | int8 | int4 |\n|---|---|---|---|---|\n");
  if (arguments.size() == 3 && arguments[1] == "--ids") {
    std::vector<int32_t> ids;
    for (const auto& word : absl::StrSplit(arguments[2], ',')) {
      int32_t id = 0;
      if (!absl::SimpleAtoi(word, &id)) return 2;
      ids.push_back(id);
    }
    PrintRow(std::filesystem::path(arguments[0]).filename(), arguments[0], ids);
    return 0;
  }
  if (!arguments.empty()) return 2;
  for (const auto* names : {&GoldenNames(), &FamilyGoldenNames()}) {
    for (const std::string& name : *names) {
      const Golden golden = LoadGolden(name);
      PrintRow(name, golden.checkpoint, golden.prompt);
    }
  }
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  pergola::InitLog("quantization_table", "error");
  const int code = pergola::Run({argv + 1, argv + argc});
  if (code != 0) std::fprintf(stderr, "usage: quantization_table [MODEL --ids 1,2,...]\n");
  return code;
}
