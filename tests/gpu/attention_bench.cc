#include "tests/gpu/attention_bench.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/gpu/report.h"
#include "tests/gpu/timing.h"

namespace pergola {
namespace {

struct Case {
  const char* name;
  int64_t heads, kv_heads, head_dim;
  int64_t sequences, context;
  bool prompt;  // all positions of each sequence, or its last one
  int64_t window = 0;
  double goal = 0;  // TFLOP/s
};

// Random bf16 numbers of magnitude 1/4 to 2: speed depends on the data (clocks, skipped rescaling).
std::vector<uint16_t> RandomBf16(int64_t count) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  uint32_t state = 1;
  for (uint16_t& v : values) {
    state = state * 1664525 + 1013904223;
    v = static_cast<uint16_t>((state >> 16 & 0x8000) | (0x3e80 + (state >> 20 & 0x17f)));
  }
  return values;
}

void Run(const CudaContext& device, const Case& c, double read_bandwidth, int repeats) {
  constexpr int64_t kBlockTokens = 32;
  const int64_t stride = (c.context + kBlockTokens - 1) / kBlockTokens;
  const int64_t rows = c.sequences * (c.prompt ? c.context : 1);
  std::vector<int32_t> positions, table_of_row, tables(static_cast<size_t>(c.sequences * stride));
  std::iota(tables.rbegin(), tables.rend(), 0);
  std::vector<int32_t> kv_of_head;
  for (int64_t h = 0; h < c.heads; ++h) {
    kv_of_head.push_back(static_cast<int32_t>(h * c.kv_heads / c.heads));
  }
  for (int64_t s = 0; s < c.sequences; ++s) {
    for (int64_t p = c.prompt ? 0 : c.context - 1; p < c.context; ++p) {
      positions.push_back(static_cast<int32_t>(p));
      table_of_row.push_back(static_cast<int32_t>(s));
    }
  }
  AttentionPlan plan;
  PlanAttention(positions.data(), table_of_row.data(), rows, &plan);
  const std::vector<int32_t> groups = PlanHeadGroups(kv_of_head.data(), c.heads);
  const int64_t row_values = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const int64_t cache_values = c.sequences * stride * c.kv_heads * kBlockTokens * c.head_dim;
  const DeviceArray<uint16_t> qkv(RandomBf16(rows * row_values)), k(RandomBf16(cache_values)),
      v(RandomBf16(cache_values)), out(rows * c.heads * c.head_dim);
  const DeviceArray<int32_t> device_positions(positions), device_tables(tables),
      device_table_of_row(table_of_row), device_kv_of_head(kv_of_head), device_groups(groups);
  // Never empty.
  plan.prefill_tiles.insert(plan.prefill_tiles.end(), {-1, 0});
  plan.decode_rows.push_back(-1);
  const DeviceArray<int32_t> tiles(plan.prefill_tiles), decode_rows(plan.decode_rows);
  const DeviceArray<int32_t> done(std::vector<int32_t>(plan.decode_rows.size() * groups.size()));
  AttentionArgs args;
  args.qkv = Tensor(qkv.data(), DType::kBF16, {rows, row_values});
  args.out = Tensor(out.data(), DType::kBF16, {rows, c.heads * c.head_dim});
  args.heads = c.heads;
  args.kv_heads = c.kv_heads;
  args.head_dim = c.head_dim;
  args.kv_of_head = device_kv_of_head.data();
  args.scale = 0.088F;
  args.window = c.window;
  args.positions = device_positions.data();
  args.table_of_row = device_table_of_row.data();
  args.block_tables = device_tables.data();
  args.table_stride = stride;
  args.block_tokens = kBlockTokens;
  args.kv_dtype = DType::kBF16;
  args.k_cache = k.data();
  args.v_cache = v.data();
  args.work.prefill_tiles = tiles.data();
  args.work.prefill_tile_count = tiles.size() / 2 - 1;
  args.work.decode_rows = decode_rows.data();
  args.work.decode_row_count = decode_rows.size() - 1;
  args.work.longest_context = plan.longest_context;
  args.work.head_groups = device_groups.data();
  args.work.head_group_count = device_groups.size() / 2;
  args.work.largest_head_group = LargestHeadGroup(groups);
  args.work.decode_done = done.data();
  const double s = Seconds(device, repeats, [&] { PagedAttentionCuda(device, args); });
  double seen = 0;  // (row, key) pairs
  for (const int32_t p : positions) {
    seen += static_cast<double>(c.window > 0 ? std::min<int64_t>(c.window, p + 1) : p + 1);
  }
  const auto dim = static_cast<double>(c.head_dim);
  if (c.prompt) {
    const double rate = 4 * seen * dim * static_cast<double>(c.heads) / s * 1e-12;
    Report("attention", c.name, Text("%.1f TFLOP/s, %.1f us", rate, s * 1e6),
           c.goal > 0 ? Text("%.0f TFLOP/s", c.goal) : "",
           c.goal <= 0      ? Verdict::kInfo
           : rate >= c.goal ? Verdict::kReached
                            : Verdict::kBelow);
  } else {
    const double bytes = 4 * seen * dim * static_cast<double>(c.kv_heads);
    ReportShare("attention", c.name, bytes / s / read_bandwidth, 0,
                Text("%.0f GB/s, %.1f us", bytes / s * 1e-9, s * 1e6));
  }
}

}  // namespace

void BenchAttention(const Roofs& roofs, bool tiny) {
  const std::vector<Case> cases =
      tiny ? std::vector<Case>{{"prompt d 64, 140", 3, 1, 64, 1, 140, true},
                               {"token d 128, 2 x 300", 4, 2, 128, 2, 300, false}}
           : std::vector<Case>{{"prompt d 128, 32/8, 4096", 32, 8, 128, 1, 4096, true, 0, 250},
                               {"prompt d 128, 32/32, 4096", 32, 32, 128, 1, 4096, true, 0, 250},
                               {"prompt d 128, 48/1, 4096", 48, 1, 128, 1, 4096, true},
                               {"prompt d 128, 32/8, 16384", 32, 8, 128, 1, 16384, true},
                               {"prompt d 128, 32/8, 8 x 512", 32, 8, 128, 8, 512, true},
                               {"prompt d 128, window 1024", 32, 8, 128, 1, 8192, true, 1024},
                               {"prompt d 64, 32/8, 4096", 32, 8, 64, 1, 4096, true},
                               {"prompt d 80, 32/32, 4096", 32, 32, 80, 1, 4096, true},
                               {"prompt d 96, 32/32, 4096", 32, 32, 96, 1, 4096, true},
                               {"prompt d 256, 16/8, 4096", 16, 8, 256, 1, 4096, true},
                               {"token d 128, 32/8, 1 x 1024", 32, 8, 128, 1, 1024, false},
                               {"token d 128, 32/8, 1 x 8192", 32, 8, 128, 1, 8192, false},
                               {"token d 128, 32/8, 1 x 65536", 32, 8, 128, 1, 65536, false},
                               {"token d 128, 32/8, 32 x 4096", 32, 8, 128, 32, 4096, false},
                               {"token d 128, 32/8, 128 x 2048", 32, 8, 128, 128, 2048, false},
                               {"token d 128, 48/1, 32 x 4096", 48, 1, 128, 32, 4096, false},
                               {"token d 128, 32/32, 16 x 4096", 32, 32, 128, 16, 4096, false},
                               {"token d 64, 32/8, 64 x 4096", 32, 8, 64, 64, 4096, false},
                               {"token d 256, 16/8, 32 x 4096", 16, 8, 256, 32, 4096, false}};
  const int multiprocessors = CudaContext(TestCudaContext()).multiprocessors;
  const TestCudaContext device(
      PagedAttentionWorkspaceBytes(multiprocessors, kAttentionGroupHeads, 256));
  for (const Case& c : cases) Run(device, c, roofs.read_bytes, tiny ? 1 : 20);
}

}  // namespace pergola
