#include "client/status_text.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

// The text of a fault and its coordinates.
constexpr size_t kMaxFaultBytes = kMaxFaultTextBytes + 1024;
// Far more than there are; what a peer says must not fill a screen.
constexpr size_t kMaxRefusalReasons = 32;

// What a peer says of itself, made harmless for a terminal: everything but printable ASCII is
// escaped, and what is longer than `max_bytes` is cut.
std::string Safe(std::string_view text, size_t max_bytes) {
  std::string safe;
  for (const char c : text.substr(0, max_bytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\\') {
      safe += "\\\\";
    } else if (byte >= 0x20 && byte < 0x7F) {
      safe += c;
    } else {
      absl::StrAppendFormat(&safe, "\\x%02x", byte);
    }
  }
  if (text.size() > max_bytes) safe += "...";
  return safe;
}

std::string Name(std::string_view text) {
  return Safe(text, kMaxNameBytes);
}

std::string GroupText(const v1::GroupStatus& group) {
  std::string text =
      absl::StrFormat("group %s: %s", Name(group.name()), GroupStateName(group.state()));
  if (group.state() == v1::GROUP_STATE_LOADING && group.progress().bytes_total() > 0) {
    absl::StrAppendFormat(&text, ", %s %d of %d bytes", Name(group.progress().phase()),
                          group.progress().bytes_done(), group.progress().bytes_total());
  }
  absl::StrAppendFormat(&text, ", epoch %d, tp %d x pp %d, last step %.1f ms\n", group.epoch(),
                        group.layout().tensor_parallel(), group.layout().pipeline_parallel(),
                        group.last_step_ms());
  if (group.load_ms() > 0) {
    absl::StrAppendFormat(&text, "  loaded in %.1f s\n", group.load_ms() / 1e3);
  }
  absl::StrAppendFormat(
      &text, "  blocks %d of %d used, %d more cached (%d tokens each), slots %d of %d used\n",
      group.blocks_used(), group.blocks_total(), group.blocks_cached(), group.block_tokens(),
      group.slots_used(), group.slots_total());
  for (int i = 0; i < group.layout().stages_size(); ++i) {
    const v1::Stage& stage = group.layout().stages(i);
    const uint32_t layers = stage.layer_count();
    absl::StrAppendFormat(&text, "  stage %d: host %s, layers %d to %d, pids %s\n", i,
                          Name(stage.host()), stage.first_layer(),
                          stage.first_layer() + (layers > 0 ? layers - 1 : 0),
                          absl::StrJoin(stage.pids(), " "));
  }
  if (!group.last_fault().empty()) {
    absl::StrAppendFormat(&text, "  last fault: %s\n", Safe(group.last_fault(), kMaxFaultBytes));
  }
  return text;
}

std::string PrefixText(const v1::StatusResponse& status) {
  const auto hits = static_cast<double>(status.prefix_hit_tokens());
  const double all = hits + static_cast<double>(status.prefix_missed_tokens());
  return absl::StrFormat("  prefix hits %.1f %% (%d of %.0f positions), forks %d\n",
                         all > 0 ? 100.0 * hits / all : 0.0, status.prefix_hit_tokens(), all,
                         status.forks());
}

// "refused 5: DRAINING 2, QUEUE_FULL 3", in the order of the alphabet.
std::string RefusalText(const v1::StatusResponse& status) {
  uint64_t sum = 0;
  std::map<std::string, uint64_t> sorted;
  for (const auto& [reason, count] : status.refusals()) {
    sum += count;
    if (sorted.size() < kMaxRefusalReasons) sorted[Name(reason)] += count;
  }
  std::string text = absl::StrFormat("  refused %d", sum);
  const char* separator = ": ";
  for (const auto& [reason, count] : sorted) {
    absl::StrAppendFormat(&text, "%s%s %d", separator, reason, count);
    separator = ", ";
  }
  return text + "\n";
}

// "first token p50 12.3 p99 45.6 ms", with a dash for what nobody has seen yet.
std::string QuantilesText(const char* what, const v1::Histogram& histogram) {
  std::string text = what;
  for (const auto& [name, quantile] : {std::pair("p50", 0.5), std::pair("p99", 0.99)}) {
    const std::optional<double> seconds = Quantile(histogram, quantile);
    absl::StrAppend(&text, " ", name, " ");
    absl::StrAppend(&text, seconds ? absl::StrFormat("%.1f", *seconds * 1e3) : "-");
  }
  return text + " ms";
}

std::string TimesText(const v1::Histogram& first_token, const v1::Histogram& token_gap,
                      const v1::Histogram& queue_wait) {
  return absl::StrCat("  ", QuantilesText("first token", first_token), ", ",
                      QuantilesText("gap", token_gap), ", ", QuantilesText("queue", queue_wait),
                      "\n");
}

// What `after` counted since `before`; `after` itself if their buckets differ.
v1::Histogram Since(const v1::Histogram& before, const v1::Histogram& after) {
  v1::Histogram since = after;
  if (before.counts_size() != after.counts_size()) return since;
  for (int i = 0; i < after.counts_size(); ++i) {
    since.set_counts(i, after.counts(i) - std::min(before.counts(i), after.counts(i)));
  }
  return since;
}

}  // namespace

std::optional<double> Quantile(const v1::Histogram& histogram, double quantile) {
  double total = 0;
  for (const uint64_t count : histogram.counts()) total += static_cast<double>(count);
  if (total == 0) return std::nullopt;
  const double rank = quantile * total;
  double below = 0;  // counted before this bucket
  double low = 0;    // its lower bound
  const int buckets = std::min(histogram.bounds_size(), histogram.counts_size());
  for (int i = 0; i < buckets; ++i) {
    const auto count = static_cast<double>(histogram.counts(i));
    if (count > 0 && below + count >= rank) {
      return low + (histogram.bounds(i) - low) * (rank - below) / count;
    }
    below += count;
    low = histogram.bounds(i);
  }
  return low;
}

std::string GroupStateName(v1::GroupState state) {
  switch (state) {
    case v1::GROUP_STATE_LOADING:
      return "loading";
    case v1::GROUP_STATE_READY:
      return "ready";
    case v1::GROUP_STATE_LOST:
      return "lost";
    default:
      return "unknown";
  }
}

std::string StatusText(const v1::StatusResponse& status, const std::optional<StatusRates>& rates) {
  std::string text = absl::StrFormat(
      "%s: %s, up %.1f s\n", status.model().empty() ? "model" : Name(status.model()),
      status.draining() ? "draining" : (status.serving() ? "serving" : "not serving"),
      static_cast<double>(status.uptime_ms()) / 1e3);
  if (rates.has_value()) {
    absl::StrAppendFormat(&text,
                          "  now %.1f tokens/s, %.1f requests/s, %.1f plans/s, mean batch %.2f\n",
                          rates->tokens, rates->requests, rates->plans, rates->mean_batch);
  }
  text += rates.has_value()
              ? TimesText(rates->first_token, rates->token_gap, rates->queue_wait)
              : TimesText(status.first_token(), status.token_gap(), status.queue_wait());
  absl::StrAppendFormat(&text,
                        "  running %d, queued %d, requests %d, tokens %d after %d of prompts\n",
                        status.running(), status.queued(), status.requests_total(),
                        status.tokens_total(), status.prompt_tokens_total());
  absl::StrAppendFormat(
      &text, "  plans %d, mean batch %.2f, preemptions %d, replays %d, overrun tokens %d\n",
      status.plans_total(), status.mean_batch(), status.preemptions(), status.replays(),
      status.overrun_tokens());
  text += PrefixText(status);
  absl::StrAppendFormat(
      &text, "  paused %d, pauses %d, slow readers ended %d, bad logits ended %d\n",
      status.paused(), status.pauses(), status.slow_readers_ended(), status.bad_logits());
  text += RefusalText(status);
  for (const v1::GroupStatus& group : status.groups()) text += GroupText(group);
  if (status.groups().empty()) text += "no group has attached\n";
  return text;
}

std::optional<StatusRates> RatesBetween(const v1::StatusResponse& before,
                                        const v1::StatusResponse& after) {
  if (after.uptime_ms() <= before.uptime_ms() || after.tokens_total() < before.tokens_total() ||
      after.requests_total() < before.requests_total() ||
      after.plans_total() < before.plans_total()) {
    return std::nullopt;
  }
  const double seconds = static_cast<double>(after.uptime_ms() - before.uptime_ms()) / 1e3;
  const auto plans = static_cast<double>(after.plans_total() - before.plans_total());
  const auto entries = [](const v1::StatusResponse& status) {
    return status.mean_batch() * static_cast<double>(status.plans_total());
  };
  StatusRates rates;
  rates.tokens = static_cast<double>(after.tokens_total() - before.tokens_total()) / seconds;
  rates.requests = static_cast<double>(after.requests_total() - before.requests_total()) / seconds;
  rates.plans = plans / seconds;
  rates.first_token = Since(before.first_token(), after.first_token());
  rates.token_gap = Since(before.token_gap(), after.token_gap());
  rates.queue_wait = Since(before.queue_wait(), after.queue_wait());
  if (plans > 0) rates.mean_batch = (entries(after) - entries(before)) / plans;
  return rates;
}

std::string Redrawn(const std::string& text) {
  std::string drawn = "\x1b[H";
  for (const char c : text) {
    if (c == '\n') drawn += "\x1b[K";
    drawn += c;
  }
  return drawn + "\x1b[J";
}

}  // namespace pergola
