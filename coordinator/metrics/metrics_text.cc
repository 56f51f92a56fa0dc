#include "coordinator/metrics/metrics_text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>
#include <vector>

#include "coordinator/engine/overload.h"
#include "coordinator/text/utf8.h"
#include "prometheus/metric_family.h"
#include "prometheus/text_serializer.h"

namespace pergola {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// A model's name comes from a path or a file, and one bad byte would spoil the whole page.
std::string ValidUtf8(const std::string& text) {
  LossyUtf8Decoder decoder;
  std::string valid;
  decoder.Push(text, &valid);
  decoder.Finish(&valid);
  return valid;
}

// Gathers families; one without a value yet is left out.
class Page {
 public:
  void Gauge(const char* name, const char* help, double value) {
    Begin(name, help, MetricType::Gauge);
    AddGauge({}, value);
  }
  void Counter(const char* name, const char* help, double value) {
    Begin(name, help, MetricType::Counter);
    AddCounter({}, value);
  }
  void Histogram(const char* name, const char* help, const v1::Histogram& histogram) {
    Begin(name, help, MetricType::Histogram);
    AddHistogram({}, histogram);
  }

  // A family whose values follow by Add...().
  void Begin(const char* name, const char* help, MetricType type) {
    families_.push_back({name, help, type, {}});
  }
  void AddGauge(Labels labels, double value) { Add(std::move(labels)).gauge.value = value; }
  void AddCounter(Labels labels, double value) { Add(std::move(labels)).counter.value = value; }
  void AddHistogram(Labels labels, const v1::Histogram& histogram) {
    ClientMetric::Histogram& out = Add(std::move(labels)).histogram;
    const int buckets = std::min(histogram.bounds_size(), histogram.counts_size());
    for (int i = 0; i < histogram.counts_size(); ++i) {
      out.sample_count += histogram.counts(i);
      if (i < buckets) out.bucket.push_back({out.sample_count, histogram.bounds(i)});
    }
    out.bucket.push_back({out.sample_count, std::numeric_limits<double>::infinity()});
    out.sample_sum = histogram.sum();
  }

  std::string Text() {
    const auto empty = [](const MetricFamily& family) { return family.metric.empty(); };
    families_.erase(std::remove_if(families_.begin(), families_.end(), empty), families_.end());
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return out.str();
  }

 private:
  ClientMetric& Add(Labels labels) {
    for (ClientMetric::Label& label : labels) label.value = ValidUtf8(label.value);
    families_.back().metric.emplace_back().label = std::move(labels);
    return families_.back().metric.back();
  }

  std::vector<MetricFamily> families_;
};

double Number(uint64_t value) {
  return static_cast<double>(value);
}

void AddNow(const v1::StatusResponse& status, Page* page) {
  page->Begin("pergola_info", "Always 1; the model that is served.", MetricType::Gauge);
  page->AddGauge({{"model", status.model()}}, 1);
  page->Gauge("pergola_uptime_seconds", "Time since the coordinator started.",
              Number(status.uptime_ms()) / 1e3);
  page->Gauge("pergola_serving", "1 if requests are taken and a group answers.",
              status.serving() ? 1 : 0);
  page->Gauge("pergola_draining", "1 if no new requests are taken any more.",
              status.draining() ? 1 : 0);
  page->Gauge("pergola_sequences_queued", "Sequences that wait for a slot.", status.queued());
  page->Gauge("pergola_sequences_running", "Sequences in slots.", status.running());
  page->Gauge("pergola_sequences_paused", "Sequences whose readers do not keep up.",
              status.paused());
}

void AddTotals(const v1::StatusResponse& status, Page* page) {
  page->Counter("pergola_sequences_accepted_total", "Sequences taken into the waiting queue.",
                Number(status.requests_total()));
  page->Begin("pergola_sequences_ended_total",
              "Sequences that ended, by status code and, if OK, by finish reason.",
              MetricType::Counter);
  for (const v1::EndCount& end : status.ended()) {
    page->AddCounter({{"status", end.status()}, {"finish", end.finish()}}, Number(end.count()));
  }
  page->Begin("pergola_refusals_total",
              "Requests and sequences refused before the waiting queue, by reason.",
              MetricType::Counter);
  // All reasons from the start: a rate over a first refusal needs the 0 before it.
  for (int i = 0; i < kRefusals; ++i) {
    const char* reason = RefusalName(static_cast<Refusal>(i));
    const auto found = status.refusals().find(reason);
    page->AddCounter({{"reason", reason}},
                     found == status.refusals().end() ? 0.0 : Number(found->second));
  }
  page->Counter("pergola_prompt_tokens_total",
                "Prompt tokens of sequences that got a slot, each prompt once.",
                Number(status.prompt_tokens_total()));
  page->Counter("pergola_generated_tokens_total", "New tokens given to sequences.",
                Number(status.tokens_total()));
  page->Counter("pergola_overrun_tokens_total", "Tokens computed for sequences that had ended.",
                Number(status.overrun_tokens()));
  page->Counter("pergola_prefix_asked_tokens_total",
                "Positions looked for in shared blocks when their sequence got a slot.",
                Number(status.prefix_hit_tokens() + status.prefix_missed_tokens()));
  page->Counter("pergola_prefix_hit_tokens_total", "Positions of those that stood there.",
                Number(status.prefix_hit_tokens()));
  page->Counter("pergola_forks_total", "Sequences that started behind a sibling's prompt.",
                Number(status.forks()));
  page->Counter("pergola_preemptions_total", "Sequences that lost their slot to others.",
                Number(status.preemptions()));
  page->Counter("pergola_replays_total", "Sequences started again after the loss of a group.",
                Number(status.replays()));
  page->Counter("pergola_pauses_total", "Times that a sequence was paused for its reader.",
                Number(status.pauses()));
  page->Counter("pergola_slow_readers_ended_total",
                "Sequences ended for a reader that took nothing.",
                Number(status.slow_readers_ended()));
  page->Counter("pergola_bad_logits_total",
                "Sequences ended because their logits held a NaN or allowed no token.",
                Number(status.bad_logits()));
  page->Counter("pergola_repeated_passes_total",
                "Forward passes done again because a GPU had guessed a token wrong.",
                Number(status.repeated_passes()));
  page->Counter("pergola_plans_total", "Plans with entries that groups answered.",
                Number(status.plans_total()));
  // What was given out as a mean is a count again.
  page->Counter("pergola_plan_entries_total", "Entries of those plans.",
                std::round(status.mean_batch() * Number(status.plans_total())));
}

void AddTimes(const v1::StatusResponse& status, Page* page) {
  page->Histogram("pergola_first_token_seconds", "From submission to the first new token.",
                  status.first_token());
  page->Histogram("pergola_token_gap_seconds",
                  "Between tokens of a sequence; tokens of one time share the gap.",
                  status.token_gap());
  page->Histogram("pergola_queue_wait_seconds", "From submission to the first slot.",
                  status.queue_wait());
}

void AddGroups(const v1::StatusResponse& status, Page* page) {
  const auto each = [&](const char* name, const char* help, auto value) {
    page->Begin(name, help, MetricType::Gauge);
    for (const v1::GroupStatus& group : status.groups()) {
      page->AddGauge({{"group", group.name()}}, value(group));
    }
  };
  using G = const v1::GroupStatus&;
  each("pergola_group_ready", "1 if the group is attached.",
       [](G group) { return group.state() == v1::GROUP_STATE_READY ? 1 : 0; });
  each("pergola_group_blocks", "KV cache blocks of the group.",
       [](G group) { return group.blocks_total(); });
  each("pergola_group_blocks_used", "Blocks that running sequences hold.",
       [](G group) { return group.blocks_used(); });
  each("pergola_group_blocks_cached", "Blocks not in use whose content may be shared.",
       [](G group) { return group.blocks_cached(); });
  each("pergola_group_slots", "Slots of the group.", [](G group) { return group.slots_total(); });
  each("pergola_group_slots_used", "Slots that sequences hold.",
       [](G group) { return group.slots_used(); });
  page->Begin("pergola_step_seconds", "Computing time of a plan over all stages, by group.",
              MetricType::Histogram);
  for (const v1::GroupStatus& group : status.groups()) {
    page->AddHistogram({{"group", group.name()}}, group.step_time());
  }
}

}  // namespace

std::string MetricsText(const v1::StatusResponse& status) {
  Page page;
  AddNow(status, &page);
  AddTotals(status, &page);
  AddTimes(status, &page);
  AddGroups(status, &page);
  return page.Text();
}

}  // namespace pergola
