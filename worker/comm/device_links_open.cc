// Opening the links: apart from their use, which needs no NCCL to be linked.
#include "worker/comm/device_links.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/cuda/nccl_group.h"
#include "worker/comm/sum_trial.h"

namespace pergola {
namespace {

// What a rank says of itself: where its GPU is, or after the other mark why it has no NCCL.
constexpr char kHas = '=';
constexpr char kHasNot = '!';

// What the ranks of a stage gather of a step's sampling, more or less: some kilobytes a row.
constexpr int64_t kMostAnswerBytes = 4 << 20;

// For a rank that does not come to a sum that is only tried.
constexpr int64_t kTrialWaitMs = 10'000;

std::string Describe(Stream& stream, const DeviceLinksOptions& options) {
  if (options.choice == Collectives::kHost) return absl::StrCat(std::string(1, kHasNot), "");
  if (stream.device() == Device::kCpu) return std::string(1, kHasNot) + "it computes on the CPU";
  const absl::StatusOr<std::string> id = NcclDeviceId(stream);
  if (id.ok()) return absl::StrCat(std::string(1, kHas), *id, " of ", options.host);
  return std::string(1, kHasNot) + std::string(id.status().message());
}

// The first rank that has none.
std::optional<std::string> WhoHasNone(const std::vector<std::string>& texts) {
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    if (texts[rank].empty() || texts[rank][0] != kHas) {
      return absl::StrCat("rank ", rank, ": ",
                          texts[rank].substr(std::min<size_t>(1, texts[rank].size())));
    }
  }
  return std::nullopt;
}

std::optional<std::string> WhoShares(const std::vector<std::string>& texts) {
  for (size_t a = 0; a < texts.size(); ++a) {
    for (size_t b = a + 1; b < texts.size(); ++b) {
      if (texts[a] == texts[b]) {
        return absl::StrCat("ranks ", a, " and ", b, " share ", texts[a].substr(1));
      }
    }
  }
  return std::nullopt;
}

// The leader's new id to everyone: `rank` has it at `leader`. Collective.
absl::StatusOr<std::string> ShareId(bool leads, int leader, const GatherTexts& gather) {
  std::string mine;
  if (leads) {
    const absl::StatusOr<std::string> id = NewNcclId();
    mine = id.ok() ? absl::StrCat(std::string(1, kHas), absl::BytesToHexString(*id))
                   : std::string(1, kHasNot) + std::string(id.status().message());
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, gather(mine));
  const std::string& text = texts[leader];
  if (text.empty() || text[0] != kHas) {
    return absl::InternalError(absl::StrCat("rank ", leader, ": ", text));
  }
  return absl::HexStringToBytes(text.substr(1));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceLinks>> DeviceLinks::Open(Stream& stream,
                                                               const DeviceLinksOptions& options,
                                                               const GatherTexts& gather) {
  const RankLayout& layout = options.layout;
  if (layout.tensor_parallel * layout.pipeline_parallel == 1) return nullptr;
  std::unique_ptr<DeviceLinks> links(new DeviceLinks(options));
  RETURN_IF_ERROR(links->ChooseGroups(stream, gather));
  RETURN_IF_ERROR(links->OpenPeers(stream));
  const bool any =
      links->stage_ != nullptr || links->column_ != nullptr || links->peers_ != nullptr;
  if (!any) links.reset();
  return links;
}

absl::Status DeviceLinks::ChooseGroups(Stream& stream, const GatherTexts& gather) {
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, gather(Describe(stream, options_)));
  if (options_.choice == Collectives::kHost) return absl::OkStatus();
  const std::optional<std::string> none = WhoHasNone(texts);
  const std::optional<std::string> shared = none ? std::nullopt : WhoShares(texts);
  if (options_.choice == Collectives::kNccl && none) {
    return absl::FailedPreconditionError(absl::StrCat("--collectives is nccl; ", *none));
  }
  if (options_.choice == Collectives::kAuto && (none || shared)) {
    if (options_.layout.world_rank == 0 && stream.device() != Device::kCpu) {
      LOG_WARN("the GPUs exchange through the host's memory, not NCCL: {}", none ? *none : *shared);
    }
    return absl::OkStatus();
  }
  return OpenGroups(stream, gather);
}

PeerOptions DeviceLinks::OptionsOfPeers(int64_t most_bytes) const {
  const RankLayout& layout = options_.layout;
  PeerOptions options;
  options.rank = layout.tp_rank;
  options.size = layout.tensor_parallel;
  options.first_rank = layout.RankOf(layout.stage, 0);
  options.most_bytes = (most_bytes + 15) / 16 * 16;
  options.wait_ms = options_.peer_wait_ms;
  options.gather = [this](const void* in, int64_t bytes, void* out) {
    return options_.communicator->AllGather(in, bytes, out);
  };
  return options;
}

// The ranks of a stage agree, whatever the group's do: one on the CPU keeps the others from it.
absl::Status DeviceLinks::OpenPeers(Stream& stream) {
  const RankLayout& layout = options_.layout;
  int64_t most_bytes = options_.peer_sum_bytes;
  if (layout.tensor_parallel == 1 || most_bytes == 0 || options_.choice == Collectives::kHost) {
    return absl::OkStatus();
  }
  const uint8_t own = stream.device() == Device::kCpu ? 0 : 1;
  std::vector<uint8_t> all(layout.tensor_parallel);
  RETURN_IF_ERROR(options_.communicator->AllGather(&own, sizeof(own), all.data()));
  if (std::count(all.begin(), all.end(), 0) > 0) return absl::OkStatus();
  if (most_bytes == kTriedPeerSum) {
    ASSIGN_OR_RETURN(most_bytes, TryPeers(stream));
    if (most_bytes == 0) return absl::OkStatus();
  }
  const PeerOptions options = OptionsOfPeers(most_bytes);
  auto peers = PeerReducer::Open(stream, options);
  if (peers.ok()) {
    peers_ = std::move(peers).value();
    bytes_ += PeerReducer::PlannedBytes(options.size, options.most_bytes);
    return absl::OkStatus();
  }
  if (!absl::IsFailedPrecondition(peers.status())) return peers.status();
  if (layout.leader()) {
    LOG_WARN("no sum of stage {} goes through peer memory: {}", layout.stage,
             std::string(peers.status().message()));
  }
  return absl::OkStatus();
}

// The bytes up to which peer memory is right and faster than NCCL; 0: there is nothing to gain.
absl::StatusOr<int64_t> DeviceLinks::TryPeers(Stream& stream) {
  const RankLayout& layout = options_.layout;
  if (stage_ == nullptr) return 0;
  std::optional<ScopedWait> wait;
  if (options_.board != nullptr) {
    wait.emplace(*options_.board, "trial of peer memory by rank", layout.world_rank, -1);
  }
  const int64_t step_bytes = options_.most_values * static_cast<int64_t>(sizeof(float));
  PeerOptions options = OptionsOfPeers(std::min(kMostTriedBytes, step_bytes));
  options.wait_ms = std::min(options.wait_ms, kTrialWaitMs);
  options.watched = false;
  auto peers = PeerReducer::Open(stream, options);
  absl::StatusOr<std::vector<SumTime>> times;
  if (peers.ok()) {
    times = TrySums({stream, *stage_, **peers, *options_.communicator, options_.hidden});
  } else {
    times = peers.status();
  }
  const bool harmless = times.ok() || absl::IsUnavailable(times.status());
  if (peers.ok() && harmless) RETURN_IF_ERROR((*peers)->Close());
  const std::string why(times.status().message());
  if (absl::IsFailedPrecondition(times.status())) {
    if (layout.leader())
      LOG_INFO("no sum of stage {} goes through peer memory: {}", layout.stage, why);
    return 0;
  }
  if (absl::IsUnavailable(times.status())) {
    LOG_WARN("rank {}: no sum of stage {} goes through peer memory: {}", layout.world_rank,
             layout.stage, why);
    return 0;
  }
  RETURN_IF_ERROR(times.status());
  const int64_t most = LargestFasterSum(*times);
  if (layout.leader()) {
    std::string text;
    for (const SumTime& time : *times) {
      absl::StrAppendFormat(&text, "; %d bytes: %.1f us, NCCL %.1f us", time.bytes,
                            time.peers_s * 1e6, time.nccl_s * 1e6);
    }
    LOG_INFO(
        "stage {}: {} through peer memory{}", layout.stage,
        most == 0 ? "no sum is faster" : absl::StrCat("sums of up to ", most, " bytes are faster"),
        text);
  }
  return most;
}

absl::Status DeviceLinks::OpenGroups(Stream& stream, const GatherTexts& gather) {
  const RankLayout& layout = options_.layout;
  // Making a communicator returns when all its ranks have come.
  std::optional<ScopedWait> wait;
  if (options_.board != nullptr)
    wait.emplace(*options_.board, "NCCL groups of rank", layout.world_rank, -1);
  const int64_t before = stream.AvailableBytes();
  NcclGroupOptions group;
  // Shares are rounded up to whole values.
  const int64_t values = options_.most_values + layout.tensor_parallel;
  const int64_t hidden_bytes = values * static_cast<int64_t>(sizeof(float));
  // First all stages, then all columns: no rank waits for one that waits for it.
  if (layout.tensor_parallel > 1) {
    ASSIGN_OR_RETURN(group.id, ShareId(layout.leader(), layout.RankOf(layout.stage, 0), gather));
    group.name = absl::StrCat("the ranks of stage ", layout.stage);
    group.rank = layout.tp_rank;
    group.size = layout.tensor_parallel;
    group.collectives = true;
    group.most_bytes = std::max(hidden_bytes, kMostAnswerBytes);
    ASSIGN_OR_RETURN(stage_, OpenNcclGroup(stream, group));
  }
  if (layout.pipeline_parallel > 1) {
    ASSIGN_OR_RETURN(group.id,
                     ShareId(layout.first_stage(), layout.RankOf(0, layout.tp_rank), gather));
    group.name = absl::StrCat("the stages' ranks of tp_rank ", layout.tp_rank);
    group.rank = layout.stage;
    group.size = layout.pipeline_parallel;
    group.most_bytes = hidden_bytes / layout.tensor_parallel;
    group.collectives = false;
    group.hops = true;
    ASSIGN_OR_RETURN(column_, OpenNcclGroup(stream, group));
  }
  const int64_t own = before - stream.AvailableBytes();
  // Ranks plan with the same number, and so come to the same number of KV blocks.
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, gather(absl::StrCat(own)));
  for (const std::string& text : texts) {
    int64_t bytes = 0;
    if (absl::SimpleAtoi(text, &bytes)) bytes_ = std::max(bytes_, bytes);
  }
  LOG_INFO("rank {}: NCCL took {} bytes of the GPU, {} are planned", layout.world_rank, own,
           bytes_);
  return absl::OkStatus();
}

}  // namespace pergola
