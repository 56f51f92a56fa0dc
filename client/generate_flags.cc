#include "client/generate_flags.h"

#include <cstddef>
#include <string_view>

#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/status.h"
#include "client/utf8.h"

namespace pergola {
namespace {

// As the server's own limits say it.
constexpr int32_t kMaxPriority = 100;

absl::Status Wrong(std::string_view option, std::string_view value, const std::string& limit) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(option), " ", std::string(value), ": ", limit));
}

absl::Status AddBias(const std::string& text, v1::SamplingParameters* sampling) {
  constexpr NumberLimits<int32_t> kIds{0, INT32_MAX};
  constexpr NumberLimits<float> kBiases{-kMaxPenalty, kMaxPenalty};
  const size_t equals = text.find('=');
  std::optional<int32_t> id;
  std::optional<float> bias;
  if (equals != std::string::npos) {
    id = ReadNumber(text.substr(0, equals), kIds);
    bias = ReadNumber(text.substr(equals + 1), kBiases);
  }
  if (!id || !bias) {
    return Wrong("--logit-bias", text,
                 absl::StrCat("must be ID=BIAS with an id of ", LimitsText(kIds), " and a bias of ",
                              LimitsText(kBiases)));
  }
  if (sampling->logit_bias().count(*id) > 0) {
    return Wrong("--logit-bias", text, absl::StrCat("the id ", *id, " comes twice"));
  }
  (*sampling->mutable_logit_bias())[*id] = *bias;
  return absl::OkStatus();
}

absl::Status FillSampling(const GenerateFlags& flags, v1::SamplingParameters* sampling) {
  if (flags.temperature) sampling->set_temperature(*flags.temperature);
  if (flags.top_k) sampling->set_top_k(*flags.top_k);
  if (flags.top_p) sampling->set_top_p(*flags.top_p);
  if (flags.seed) sampling->set_seed(*flags.seed);
  if (flags.min_p) sampling->set_min_p(*flags.min_p);
  if (flags.typical_p) sampling->set_typical_p(*flags.typical_p);
  if (flags.repetition_penalty) sampling->set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling->set_frequency_penalty(*flags.frequency_penalty);
  if (flags.no_repeat_ngram_size) sampling->set_no_repeat_ngram_size(*flags.no_repeat_ngram_size);
  if (flags.n) sampling->set_n(*flags.n);
  if (flags.best_of) sampling->set_best_of(*flags.best_of);
  if (flags.logprobs) sampling->set_logprobs(*flags.logprobs);
  if (flags.logit_bias.size() > kMaxLogitBiases) {
    return absl::InvalidArgumentError(absl::StrCat("--logit-bias comes ", flags.logit_bias.size(),
                                                   " times: must be at most ", kMaxLogitBiases));
  }
  for (const std::string& bias : flags.logit_bias) {
    RETURN_IF_ERROR(AddBias(bias, sampling));
  }
  return absl::OkStatus();
}

void FillStop(const GenerateFlags& flags, v1::StopConditions* stop) {
  if (flags.max_new_tokens) stop->set_max_new_tokens(*flags.max_new_tokens);
  if (flags.min_new_tokens) stop->set_min_new_tokens(*flags.min_new_tokens);
  for (const std::string& text : flags.stop) stop->add_strings(text);
  stop->mutable_ids()->Add(flags.stop_ids.begin(), flags.stop_ids.end());
  stop->set_ignore_eos(flags.ignore_eos);
}

// Flags that each hold alone but not together.
absl::Status CheckTogether(const GenerateFlags& flags) {
  if (flags.max_new_tokens == 0U && !flags.prompt_logprobs) {
    return Wrong("--max-new-tokens", "0",
                 absl::StrCat("must be 1 to ", UINT32_MAX, "; 0 only with --prompt-logprobs"));
  }
  if (flags.best_of && *flags.best_of < flags.sequences()) {
    return Wrong("--best-of", std::to_string(*flags.best_of),
                 absl::StrCat("must be at least --n, which is ", flags.sequences()));
  }
  if (flags.logprobs && !flags.json) {
    return Wrong("--logprobs", std::to_string(*flags.logprobs),
                 "needs --json; text has no place for log-probabilities");
  }
  if (flags.prompt_logprobs && !flags.json) {
    return Wrong("--prompt-logprobs", std::to_string(*flags.prompt_logprobs),
                 "needs --json; text has no place for log-probabilities");
  }
  return absl::OkStatus();
}

// gRPC metadata is printable ASCII; anything else would abort the call inside the library.
absl::Status CheckTenant(const std::string& tenant) {
  if (tenant.size() > kMaxTenantBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tenant has ", tenant.size(), " bytes: must have 1 to ", kMaxTenantBytes));
  }
  for (size_t i = 0; i < tenant.size(); ++i) {
    if (tenant[i] > 0x20 && tenant[i] < 0x7F) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--tenant: byte ", i, " is not printable ASCII without spaces"));
  }
  return absl::OkStatus();
}

absl::Status CheckUtf8(const std::string& option, const std::string& text) {
  if (FirstInvalidUtf8(text) == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(option, " is not valid UTF-8"));
}

absl::Status CheckTexts(const GenerateFlags& flags) {
  RETURN_IF_ERROR(CheckUtf8("--model", flags.model));
  RETURN_IF_ERROR(CheckUtf8("--request-id", flags.request_id));
  if (flags.request_id.size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--request-id has ", flags.request_id.size(),
                                                   " bytes: must have at most ",
                                                   kMaxRequestIdBytes));
  }
  for (const std::string& stop : flags.stop) {
    RETURN_IF_ERROR(CheckUtf8("--stop", stop));
  }
  return CheckTenant(flags.tenant);
}

void AddSamplingFlags(CLI::App& command, GenerateFlags* flags) {
  AddNumber(command, "--temperature", &flags->temperature, {0, kMaxTemperature},
            "of the draws, 0: greedy (default: the model's, else 0)");
  AddNumber(command, "--top-k", &flags->top_k, {0, UINT32_MAX},
            "keep the K most probable tokens, 0: all (default: the model's, else 0)");
  AddNumber(command, "--top-p", &flags->top_p, {0, 1, true},
            "keep the smallest set of this probability (default: the model's, else 1)");
  AddNumber(command, "--min-p", &flags->min_p, {0, 1},
            "drop tokens less probable than this times the most probable (default: the model's, "
            "else 0)");
  AddNumber(command, "--typical-p", &flags->typical_p, {0, 1, true},
            "keep the most typical tokens of this probability (default: the model's, else 1)");
  AddNumber(command, "--repetition-penalty", &flags->repetition_penalty, {0, kMaxPenalty, true},
            "divides the logits of tokens in prompt and output, 1: off (default: the model's, "
            "else 1)");
  AddNumber(command, "--presence-penalty", &flags->presence_penalty, {-kMaxPenalty, kMaxPenalty},
            "taken off the logits of new tokens seen (default: 0)");
  AddNumber(command, "--frequency-penalty", &flags->frequency_penalty, {-kMaxPenalty, kMaxPenalty},
            "taken off the logit of a token as often as it was sampled (default: 0)");
  AddNumber(command, "--no-repeat-ngram-size", &flags->no_repeat_ngram_size, {0, UINT32_MAX},
            "no so many tokens in a row come twice, 0: off (default: the model's, else 0)");
  command
      .add_option("--logit-bias", flags->logit_bias,
                  "ID=BIAS, added to the logit of a token; may come often (default: none)")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  AddNumber(command, "--seed", &flags->seed, {0, UINT64_MAX},
            "of the draws (default: the server draws one)");
}

void AddStopFlags(CLI::App& command, GenerateFlags* flags) {
  AddNumber(command, "--max-new-tokens", &flags->max_new_tokens, {0, UINT32_MAX},
            "most new tokens; 0 only with --prompt-logprobs (default: what fits in the context, "
            "at most 2048)");
  AddNumber(command, "--min-new-tokens", &flags->min_new_tokens, {0, UINT32_MAX},
            "no end-of-sequence or stop token before so many new tokens (default: 0)");
  command.add_option("--stop", flags->stop, "end before this text; up to 16 times (default: none)")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command
      .add_option("--stop-id", flags->stop_ids,
                  "end with this token id; up to 64 times (default: none)")
      ->expected(1)
      ->transform(NumberValidator("--stop-id", NumberLimits<int32_t>{0, INT32_MAX}))
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_flag("--ignore-eos", flags->ignore_eos,
                   "do not end at the model's end-of-sequence token (default: end)");
}

}  // namespace

void AddSharedFlags(CLI::App& command, GenerateFlags* flags) {
  AddStopFlags(command, flags);
  AddSamplingFlags(command, flags);
  AddNumber(command, "--priority", &flags->priority, {-kMaxPriority, kMaxPriority},
            "higher first among what waits (default: 0)");
  command.add_option("--tenant", flags->tenant,
                     "whom the request is charged to (default: nobody by name)");
  command.add_option("--model", flags->model, "name of the model (default: whatever is served)");
  command.add_option("--request-id", flags->request_id,
                     "name of this request in logs (default: the server makes one)");
}

void AddGenerateFlags(CLI::App& command, GenerateFlags* flags) {
  AddSharedFlags(command, flags);
  AddNumber(command, "--n", &flags->n, {1, kMaxSequences},
            "sequences to return, as text one block each (default: 1)");
  AddNumber(command, "--best-of", &flags->best_of, {1, kMaxSequences},
            "sequences to run, of which the --n most probable are returned (default: --n)");
  AddNumber(command, "--logprobs", &flags->logprobs, {0, kMaxLogprobs},
            "with --json: log-probability of each new token and of the K most probable ones "
            "(default: none)");
  AddNumber(command, "--prompt-logprobs", &flags->prompt_logprobs, {0, kMaxLogprobs},
            "with --json: the same for each token of the prompt (default: none)");
  command.add_flag("--echo", flags->echo, "the text starts with the prompt's own (default: no)");
  command.add_flag("--json", flags->json,
                   "one JSON object per line instead of text, each a GenerateResponse with index, "
                   "ids, text, log-probabilities if asked for, and at last finish");
}

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateFlags& flags,
                                                        const std::string& prompt) {
  RETURN_IF_ERROR(CheckTogether(flags));
  RETURN_IF_ERROR(CheckTexts(flags));
  v1::GenerateRequest request;
  request.set_text(prompt);
  request.set_model(flags.model);
  request.set_request_id(flags.request_id);
  RETURN_IF_ERROR(FillSampling(flags, request.mutable_sampling()));
  FillStop(flags, request.mutable_stop());
  request.set_echo(flags.echo);
  if (flags.prompt_logprobs) request.set_prompt_logprobs(*flags.prompt_logprobs);
  if (flags.priority) request.set_priority(*flags.priority);
  return request;
}

}  // namespace pergola
