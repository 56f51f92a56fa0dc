#include "worker/hello.h"

#include "base/limits.h"
#include "base/sha256.h"
#include "base/status.h"

namespace pergola {

std::string RankNumerics(const std::string& dtypes, const std::string& device) {
  return absl::StrCat(dtypes, " on ", device);
}

std::string NumericsId(const std::string& fingerprint, int tensor_parallel,
                       const std::vector<Range>& stages,
                       const std::vector<std::string>& rank_numerics) {
  Sha256 hash;
  hash.UpdateField(absl::StrCat("pergola numerics ", kNumericsVersion));
  hash.UpdateField(fingerprint);
  hash.UpdateField(absl::StrCat("tp ", tensor_parallel, " pp ", stages.size()));
  for (const Range& stage : stages) hash.UpdateField(absl::StrCat(stage.begin, " ", stage.end));
  for (const std::string& rank : rank_numerics) hash.UpdateField(rank);
  return hash.FinishHex();
}

absl::StatusOr<v1::Hello> MakeHello(const WorkerOptions& options, const HelloFacts& facts) {
  const ModelSpec& spec = facts.checkpoint->spec();
  ASSIGN_OR_RETURN(const std::vector<Range> stages, CutStages(spec, options.pipeline_parallel));
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_group(options.group);
  hello.set_fingerprint(facts.fingerprint);
  hello.set_text_hash(facts.text->hash);
  hello.set_numerics_id(
      NumericsId(facts.fingerprint, options.tensor_parallel, stages, facts.rank_numerics));
  hello.set_bitwise(facts.bitwise);
  v1::Layout* layout = hello.mutable_layout();
  layout->set_tensor_parallel(options.tensor_parallel);
  layout->set_pipeline_parallel(options.pipeline_parallel);
  for (size_t i = 0; i < stages.size(); ++i) {
    v1::Stage* stage = layout->add_stages();
    stage->set_first_layer(static_cast<uint32_t>(stages[i].begin));
    stage->set_layer_count(static_cast<uint32_t>(stages[i].size()));
    const size_t leader = i * options.tensor_parallel;
    stage->set_host(facts.places[leader].host);
    for (int tp_rank = 0; tp_rank < options.tensor_parallel; ++tp_rank) {
      stage->add_pids(facts.places[leader + tp_rank].pid);
    }
  }
  hello.set_vocabulary_size(static_cast<uint32_t>(spec.vocabulary));
  hello.set_context_length(static_cast<uint32_t>(facts.info.context_length));
  hello.set_block_count(static_cast<uint32_t>(facts.block_count));
  hello.set_block_tokens(static_cast<uint32_t>(options.executor.block_tokens));
  hello.set_slot_count(static_cast<uint32_t>(options.executor.slot_count));
  hello.set_step_tokens(static_cast<uint32_t>(options.executor.step_tokens));
  hello.set_model(spec.name);
  hello.set_architecture(spec.architecture);
  return hello;
}

}  // namespace pergola
