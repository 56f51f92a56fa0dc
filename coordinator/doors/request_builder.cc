#include "coordinator/doors/request_builder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/sampling_builder.h"

namespace pergola {
namespace {

// A numerics id is a SHA-256 in hex today; twice that leaves room and bounds what a client can make
// us keep.
constexpr size_t kMaxNumericsIdBytes = 128;

absl::Span<const int32_t> Ids(const v1::TokenIds& tokens) {
  return {tokens.ids().data(), static_cast<size_t>(tokens.ids_size())};
}

// What an interrupted client has of one sequence.
struct ReceivedPart {
  std::vector<int32_t> ids;
  uint64_t text_bytes = 0;
  bool finished = false;
};

class Builder {
 public:
  Builder(const v1::GenerateRequest& request, const BuildInputs& inputs, BuiltRequest* built)
      : request_(request), inputs_(inputs), built_(*built), violations_(inputs.field_prefix) {}

  google::rpc::Status Build() {
    google::rpc::Status named = CheckModelName(request_.model(), *inputs_.served.parts);
    if (named.code() != 0) return named;
    Identity();
    Sampling();
    Stops();
    const bool prompt_known = Prompt();
    Length(prompt_known);
    Scoring();
    Received(prompt_known);
    if (!violations_.empty()) return violations_.ToStatus();
    Facts();
    MakeSequences();
    return {};
  }

 private:
  void Identity() {
    const std::string& id = request_.request_id();
    if (id.size() > kMaxRequestIdBytes) {
      violations_.Add("request_id", absl::StrCat(id.size(), " bytes exceed the limit of ",
                                                 kMaxRequestIdBytes, " bytes"));
    }
    sequence_.request_id = id.empty() ? inputs_.request_id : id;
    sequence_.priority = request_.priority();
    if (sequence_.priority < kMinPriority || sequence_.priority > kMaxPriority) {
      violations_.Add("priority", absl::StrCat(sequence_.priority, " is not in ", kMinPriority,
                                               " to ", kMaxPriority));
    }
    sequence_.tenant = inputs_.tenant;
    sequence_.deadline = inputs_.deadline;
  }

  void Sampling() {
    const v1::SamplingParameters& asked = request_.sampling();
    sequence_.sampling = ResolveSampling(
        asked, inputs_.served.parts->defaults,
        {inputs_.limits.vocabulary_size, inputs_.limits.context_length}, &violations_);
    const bool samples = sequence_.sampling.temperature() > 0;
    count_ = ResolveCount(asked, /*greedy=*/!samples, &violations_);
    Seed(asked, samples);
  }

  void Seed(const v1::SamplingParameters& asked, bool samples) {
    if (request_.has_resume()) {
      sequence_.seed = request_.resume().seed();
      if (asked.has_seed() && asked.seed() != sequence_.seed) {
        violations_.Add("resume.seed", absl::StrCat(sequence_.seed, " differs from sampling.seed, ",
                                                    asked.seed()));
      }
    } else if (asked.has_seed()) {
      sequence_.seed = asked.seed();
    } else if (samples && inputs_.draw_seed) {
      sequence_.seed = inputs_.draw_seed();
    }
  }

  void Stops() {
    const v1::StopConditions& stop = request_.stop();
    if (static_cast<uint32_t>(stop.strings_size()) > kMaxStopStrings) {
      violations_.Add(
          "stop.strings",
          absl::StrCat(stop.strings_size(), " strings exceed the limit of ", kMaxStopStrings));
    }
    for (int i = 0; i < std::min<int>(stop.strings_size(), kMaxStopStrings); ++i) {
      StopString(stop.strings(i), absl::StrCat("stop.strings[", i, "]"));
    }
    if (static_cast<uint32_t>(stop.ids_size()) > kMaxStopIds) {
      violations_.Add("stop.ids",
                      absl::StrCat(stop.ids_size(), " ids exceed the limit of ", kMaxStopIds));
    } else {
      CheckIds({stop.ids().data(), static_cast<size_t>(stop.ids_size())},
               inputs_.limits.vocabulary_size, "stop.ids", &violations_);
      sequence_.stop_ids.assign(stop.ids().begin(), stop.ids().end());
    }
    if (!stop.ignore_eos()) sequence_.eos_ids = inputs_.served.parts->defaults.eos_ids;
  }

  // Before so many new ids nothing that ends the stream by its id is sampled.
  void Minimum() {
    const v1::StopConditions& stop = request_.stop();
    const uint32_t stated = inputs_.served.parts->defaults.min_new_tokens.value_or(0);
    const uint32_t least = stop.has_min_new_tokens() ? stop.min_new_tokens()
                                                     : std::min(stated, sequence_.max_new_tokens);
    if (least > sequence_.max_new_tokens) {
      violations_.Add("stop.min_new_tokens",
                      absl::StrCat(least, " exceeds max_new_tokens, ", sequence_.max_new_tokens));
      return;
    }
    const bool by_id = !sequence_.eos_ids.empty() || !sequence_.stop_ids.empty();
    const bool by_text = request_.stop().strings_size() > 0;
    sequence_.least_new_tokens =
        by_id || by_text ? std::max(1U, by_text ? 1U : least) : sequence_.max_new_tokens;
    if (least == 0 || !by_id) return;
    std::vector<int32_t> suppressed = sequence_.eos_ids;
    suppressed.insert(suppressed.end(), sequence_.stop_ids.begin(), sequence_.stop_ids.end());
    std::sort(suppressed.begin(), suppressed.end());
    suppressed.erase(std::unique(suppressed.begin(), suppressed.end()), suppressed.end());
    if (suppressed.size() > kMaxSuppressedIds) {
      violations_.Add("stop.min_new_tokens",
                      absl::StrCat(suppressed.size(), " ids would end the stream; at most ",
                                   kMaxSuppressedIds, " can be held back"));
      return;
    }
    sequence_.sampling.set_min_new_tokens(least);
    sequence_.sampling.mutable_suppressed()->Add(suppressed.begin(), suppressed.end());
  }

  void StopString(const std::string& text, const std::string& field) {
    if (text.empty() || text.size() > kMaxStopStringBytes) {
      violations_.Add(field, absl::StrCat("has ", text.size(), " bytes; a stop string has 1 to ",
                                          kMaxStopStringBytes));
    }
    const int64_t invalid = FindInvalidUtf8(text);
    if (invalid >= 0) violations_.Add(field, absl::StrCat("invalid UTF-8 at byte ", invalid));
  }

  std::vector<std::string> StopStrings() const {
    return {request_.stop().strings().begin(), request_.stop().strings().end()};
  }

  // Returns whether prompt_ids hold a usable prompt.
  bool Prompt() {
    if (request_.has_resume()) return ResumedPrompt();
    switch (request_.prompt_case()) {
      case v1::GenerateRequest::kText:
        return PromptText();
      case v1::GenerateRequest::kTokens:
        return PromptIds(request_.tokens(), "tokens.ids");
      case v1::GenerateRequest::PROMPT_NOT_SET:
        break;
    }
    violations_.Add("prompt", "unset; set text or tokens");
    return false;
  }

  bool PromptText() {
    if (!CheckText(request_.text(), "text", &violations_)) return false;
    auto ids = inputs_.served.tokenizer->Encode(request_.text(), /*add_special_tokens=*/true);
    if (!ids.ok()) {
      violations_.Add("text", std::string(ToStd(ids.status().message())));
      return false;
    }
    if (ids->empty()) {
      violations_.Add("text", "yields no token; at least 1 is needed");
      return false;
    }
    // A tokenizer may know more ids than the LM head has rows.
    if (!CheckIds(*ids, inputs_.limits.vocabulary_size, "text", &violations_)) return false;
    sequence_.prompt_ids = *std::move(ids);
    return true;
  }

  bool PromptIds(const v1::TokenIds& tokens, std::string_view field) {
    if (tokens.ids().empty()) {
      violations_.Add(field, "empty; at least 1 id is needed");
      return false;
    }
    if (!CheckIds(Ids(tokens), inputs_.limits.vocabulary_size, field, &violations_)) return false;
    sequence_.prompt_ids.assign(tokens.ids().begin(), tokens.ids().end());
    return true;
  }

  bool ResumedPrompt() {
    const v1::Resume& resume = request_.resume();
    if (request_.prompt_case() != v1::GenerateRequest::PROMPT_NOT_SET) {
      violations_.Add("prompt", "set together with resume; resume.prompt takes its place");
    }
    if (resume.numerics_id().size() > kMaxNumericsIdBytes) {
      violations_.Add("resume.numerics_id",
                      absl::StrCat(resume.numerics_id().size(), " bytes exceed the limit of ",
                                   kMaxNumericsIdBytes, " bytes"));
    } else {
      sequence_.resume_numerics_id = resume.numerics_id();
    }
    return PromptIds(resume.prompt(), "resume.prompt.ids");
  }

  void RefusePrompt(std::string description) {
    if (!inputs_.prompt_path.empty()) {
      violations_.AddAt(inputs_.prompt_path, std::move(description));
    } else if (request_.has_resume()) {
      violations_.Add("resume.prompt.ids", std::move(description));
    } else {
      violations_.Add(request_.has_text() ? "text" : "tokens.ids", std::move(description));
    }
  }

  // Prompt and new tokens together fit the context and the KV cache, or the request is refused
  // (DESIGN I5).
  void Length(bool prompt_known) {
    const RequestLimits& limits = inputs_.limits;
    const v1::StopConditions& stop = request_.stop();
    const uint64_t asked = stop.max_new_tokens();
    const uint64_t least = request_.has_prompt_logprobs() ? 0 : 1;
    if (stop.has_max_new_tokens() && (asked < least || asked > limits.context_length)) {
      violations_.Add("stop.max_new_tokens",
                      absl::StrCat(asked, " is not in ", least, " to the context length of ",
                                   limits.context_length));
      return;
    }
    if (!prompt_known) return;
    const uint64_t prompt = sequence_.prompt_ids.size();
    const bool kv_bound = limits.kv_tokens > 0 && limits.kv_tokens < limits.context_length;
    const uint64_t room = kv_bound ? limits.kv_tokens : limits.context_length;
    const std::string limit =
        absl::StrCat(kv_bound ? "the KV cache of " : "the context length of ", room, " tokens");
    if (prompt > room || (prompt == room && !(stop.has_max_new_tokens() && asked == 0))) {
      RefusePrompt(absl::StrCat("the prompt's ", prompt, " tokens and 1 new token exceed ", limit));
      return;
    }
    if (asked > room - prompt) {
      violations_.Add("stop.max_new_tokens", absl::StrCat("the prompt's ", prompt, " tokens and ",
                                                          asked, " new tokens exceed ", limit,
                                                          "; at most ", room - prompt, " fit"));
      return;
    }
    const uint64_t fallback = std::min<uint64_t>(DefaultNewTokens(prompt), room - prompt);
    sequence_.max_new_tokens = static_cast<uint32_t>(stop.has_max_new_tokens() ? asked : fallback);
    length_known_ = true;
    Minimum();
  }

  // Where the request does not say. A prompt beyond the model's max_length leaves it no meaning.
  uint64_t DefaultNewTokens(uint64_t prompt) const {
    const GenerationDefaults& defaults = inputs_.served.parts->defaults;
    if (defaults.max_new_tokens) return *defaults.max_new_tokens;
    const uint64_t most = defaults.max_length.value_or(0);
    return most > prompt ? most - prompt : kDefaultMaxNewTokens;
  }

  void Scoring() {
    if (!request_.has_prompt_logprobs()) return;
    if (request_.prompt_logprobs() > kMaxLogprobs) {
      violations_.Add("prompt_logprobs", absl::StrCat(request_.prompt_logprobs(),
                                                      " exceeds the limit of ", kMaxLogprobs));
    }
    if (request_.has_resume()) {
      violations_.Add("prompt_logprobs",
                      "set together with resume; the broken stream began with them");
    }
  }

  // What an interrupted client has of every index.
  void Received(bool prompt_known) {
    if (request_.echo() && prompt_known) {
      echo_ = inputs_.served.tokenizer->Decode(sequence_.prompt_ids, /*skip_special_tokens=*/true);
    }
    received_.resize(count_.best_of);
    if (!request_.has_resume()) return;
    const v1::Resume& resume = request_.resume();
    if (count_.best_of > count_.n) {
      violations_.Add("resume", "set together with best_of above n, which sends nothing to resume");
      return;
    }
    if (static_cast<uint32_t>(resume.others_size()) >= count_.n) {
      violations_.Add("resume.others", absl::StrCat(resume.others_size(), " do not go with n ",
                                                    count_.n, " sequences"));
      return;
    }
    ReceivedOf(0, resume.received(), resume.text_bytes(), "resume");
    received_[0].finished = resume.finished();
    for (int i = 0; i < resume.others_size(); ++i) {
      const v1::Received& other = resume.others(i);
      ReceivedOf(i + 1, other.ids(), other.text_bytes(), absl::StrCat("resume.others[", i, "]"));
      received_[i + 1].finished = other.finished();
    }
    if (std::all_of(received_.begin(), received_.end(),
                    [](const ReceivedPart& part) { return part.finished; })) {
      violations_.Add("resume",
                      "says that every sequence has finished; there is nothing to resume");
    }
  }

  void ReceivedOf(size_t index, const v1::TokenIds& tokens, uint64_t text_bytes,
                  const std::string& field) {
    const std::string ids_field = absl::StrCat(field, index == 0 ? ".received.ids" : ".ids.ids");
    if (length_known_ && static_cast<uint64_t>(tokens.ids_size()) > sequence_.max_new_tokens) {
      violations_.Add(ids_field,
                      absl::StrCat(tokens.ids_size(), " received tokens exceed max_new_tokens, ",
                                   sequence_.max_new_tokens));
      return;
    }
    if (!CheckIds(Ids(tokens), inputs_.limits.vocabulary_size, ids_field, &violations_)) return;
    ReceivedPart& part = received_[index];
    part.ids.assign(tokens.ids().begin(), tokens.ids().end());
    part.text_bytes = text_bytes;
    if (violations_.empty()) ReceivedText(part, absl::StrCat(field, ".text_bytes"));
  }

  // The prompt's echo and the received ids decide how much text can have been received. What is
  // flushed at the end comes with `finish`, and who has that resumes nothing.
  void ReceivedText(const ReceivedPart& part, const std::string& field) {
    std::string text = echo_;
    const auto stream = MakeTextStream(*inputs_.served.tokenizer, StopStrings());
    for (const int32_t id : part.ids) {
      const TextStream::Delta delta = stream->Push(id);
      text += delta.text;
      if (delta.stopped) break;
    }
    const uint64_t bytes = part.text_bytes;
    if (bytes > text.size() && !part.finished) {
      violations_.Add(field, absl::StrCat(bytes, " exceed the ", text.size(),
                                          " bytes of text that the received ids make"));
    } else if (bytes < text.size() && (static_cast<unsigned char>(text[bytes]) & 0xC0) == 0x80) {
      violations_.Add(field, absl::StrCat(bytes, " splits a UTF-8 character"));
    }
  }

  void Facts() {
    RequestFacts& facts = built_.facts;
    facts.request_id = sequence_.request_id;
    facts.model = inputs_.served.parts->model_name;
    facts.prompt_token_count = static_cast<uint32_t>(sequence_.prompt_ids.size());
    if (request_.resumable()) {
      facts.prompt.mutable_ids()->Add(sequence_.prompt_ids.begin(), sequence_.prompt_ids.end());
    }
    facts.n = count_.n;
    facts.best_of = count_.best_of;
    facts.tell_logprobs = sequence_.sampling.has_logprobs();
    // The choice among more sequences than are returned is by log-probability.
    if (facts.best_of > facts.n && !facts.tell_logprobs) sequence_.sampling.set_logprobs(0);
  }

  void MakeSequences() {
    const auto fork = count_.best_of > 1 ? std::make_shared<ForkGroup>() : nullptr;
    for (uint32_t index = 0; index < count_.best_of; ++index) {
      const ReceivedPart& received = received_[index];
      if (received.finished) continue;
      SequenceRequest sequence = Copy();
      sequence.index = index;
      sequence.fork_group = fork;
      if (index == 0 && request_.has_prompt_logprobs()) {
        sequence.prompt_logprobs = request_.prompt_logprobs();
      }
      sequence.received_ids = received.ids;
      const size_t echoed = std::min<uint64_t>(received.text_bytes, echo_.size());
      sequence.received_text_bytes = received.text_bytes - echoed;
      sequence.text = MakeTextStream(*inputs_.served.tokenizer, StopStrings());
      built_.sequences.push_back({std::move(sequence), echo_.substr(echoed)});
    }
  }

  SequenceRequest Copy() const {
    SequenceRequest copy;
    copy.request_id = sequence_.request_id;
    copy.prompt_ids = sequence_.prompt_ids;
    copy.resume_numerics_id = sequence_.resume_numerics_id;
    copy.sampling = sequence_.sampling;
    copy.seed = sequence_.seed;
    copy.max_new_tokens = sequence_.max_new_tokens;
    copy.least_new_tokens = sequence_.least_new_tokens;
    copy.eos_ids = sequence_.eos_ids;
    copy.stop_ids = sequence_.stop_ids;
    copy.deadline = sequence_.deadline;
    copy.priority = sequence_.priority;
    copy.tenant = sequence_.tenant;
    return copy;
  }

  const v1::GenerateRequest& request_;
  const BuildInputs& inputs_;
  BuiltRequest& built_;
  Violations violations_;
  SequenceRequest sequence_;  // what all sequences have in common
  SequenceCount count_;
  bool length_known_ = false;  // sequence_.max_new_tokens is settled
  std::string echo_;
  std::vector<ReceivedPart> received_;  // by index
};

}  // namespace

RequestLimits LimitsFor(const TextParts& parts, const ServingLimits& serving) {
  const auto stated = [](int64_t value) {
    return static_cast<uint64_t>(std::max<int64_t>(value, 0));
  };
  RequestLimits limits;
  limits.context_length =
      serving.context_length > 0 ? serving.context_length : stated(parts.context_length);
  limits.vocabulary_size =
      serving.vocabulary_size > 0 ? serving.vocabulary_size : stated(parts.vocabulary_size);
  limits.kv_tokens = serving.kv_tokens;
  return limits;
}

google::rpc::Status BuildRequest(const v1::GenerateRequest& request, const BuildInputs& inputs,
                                 BuiltRequest* built) {
  return Builder(request, inputs, built).Build();
}

google::rpc::Status CheckModelName(const std::string& name, const TextParts& parts) {
  if (name.empty() || name == parts.model_name) return {};
  return ToRpcStatus(
      absl::NotFoundError(absl::StrCat("model ", Shown(name), " is not served; served is ",
                                       Shown(parts.model_name))),
      "MODEL_NOT_FOUND");
}

bool CheckText(const std::string& text, std::string_view field, Violations* violations) {
  if (text.size() > kMaxTextBytes) {
    violations->Add(
        field, absl::StrCat(text.size(), " bytes exceed the limit of ", kMaxTextBytes, " bytes"));
    return false;
  }
  const int64_t invalid = FindInvalidUtf8(text);
  if (invalid >= 0) violations->Add(field, absl::StrCat("invalid UTF-8 at byte ", invalid));
  return invalid < 0;
}

bool CheckIds(absl::Span<const int32_t> ids, uint64_t vocabulary_size, std::string_view field,
              Violations* violations) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < vocabulary_size) continue;
    violations->Add(
        field, absl::StrCat("id ", ids[i], " at [", i, "] is not in 0 to the vocabulary size of ",
                            vocabulary_size, " (exclusive)"));
    return false;
  }
  return true;
}

}  // namespace pergola
