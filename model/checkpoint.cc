#include "model/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "base/sha256.h"
#include "base/status.h"
#include "model/family.h"
#include "model/safetensors.h"
#include "model/text_parts.h"

namespace pergola {
namespace {

class FileCheckpoint final : public Checkpoint {
 public:
  FileCheckpoint(std::string path, ModelSpec spec, std::vector<WeightBinding> weights,
                 std::unique_ptr<TensorTable> table)
      : path_(std::move(path)),
        spec_(std::move(spec)),
        weights_(std::move(weights)),
        table_(std::move(table)) {}

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<WeightBinding>& weights() const override { return weights_; }
  const std::vector<std::string>& files() const override { return table_->files(); }
  const std::vector<TensorInfo>& tensors() const override { return table_->tensors(); }
  const TensorInfo* Find(const std::string& name) const override { return table_->Find(name); }
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    absl::Span<uint8_t> out) const override {
    return table_->Read(tensor, offset, out);
  }
  void Prefetch(const TensorInfo& tensor, int64_t offset, int64_t bytes) const override {
    table_->source(tensor.file).Prefetch(tensor.offset + offset, bytes);
  }
  absl::StatusOr<std::string> Fingerprint() const override {
    ASSIGN_OR_RETURN(const TextParts text, LoadTextParts(path_));
    Sha256 hash;
    hash.UpdateField("pergola fingerprint 1");
    hash.UpdateField(text.hash);
    for (const auto& [name, type] : table_->unsupported()) {
      hash.UpdateField(name);
      hash.UpdateField(type);
    }
    for (const TensorInfo& tensor : table_->tensors()) {
      hash.UpdateField(tensor.name);
      hash.UpdateField(absl::StrCat(ToAbsl(DTypeName(tensor.dtype)), " ", ShapeText(tensor.shape),
                                    " ", tensor.bytes));
      RETURN_IF_ERROR(HashSamples(tensor, &hash));
    }
    return hash.FinishHex();
  }

 private:
  // 4 KiB from start, middle and end; they overlap in tensors of less than 12 KiB.
  absl::Status HashSamples(const TensorInfo& tensor, Sha256* hash) const {
    std::vector<uint8_t> sample(static_cast<size_t>(std::min<int64_t>(4096, tensor.bytes)));
    const int64_t last = tensor.bytes - static_cast<int64_t>(sample.size());
    for (const int64_t offset : {int64_t{0}, last / 2, last}) {
      RETURN_IF_ERROR(Read(tensor, offset, absl::MakeSpan(sample)));
      hash->Update(sample.data(), sample.size());
    }
    return absl::OkStatus();
  }

  const std::string path_;
  const ModelSpec spec_;
  const std::vector<WeightBinding> weights_;
  const std::unique_ptr<TensorTable> table_;
};

// The last part of the path, for people.
std::string BaseName(const std::string& path) {
  std::filesystem::path clean = std::filesystem::path(path).lexically_normal();
  if (!clean.has_filename()) clean = clean.parent_path();
  return clean.filename().string();
}

// A GGUF file has no configuration that could leave a layer's tensor out: the architecture has it,
// or the file is of another one.
absl::Status RefuseUnusedLayerTensors(const Checkpoint& checkpoint) {
  for (const std::string& name : UnusedTensors(checkpoint)) {
    if (!absl::StartsWith(name, "blk.")) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(name),
                                                   "\" is part of no ",
                                                   checkpoint.spec().architecture, " model"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Bind(const std::string& path, FileFormat format,
                                                 const Family& family, ModelSpec spec,
                                                 std::unique_ptr<TensorTable> table) {
  std::vector<WeightBinding> weights;
  RETURN_IF_ERROR(Prefixed(family.bind(format, *table, &spec, &weights), path));
  std::unique_ptr<Checkpoint> checkpoint =
      std::make_unique<FileCheckpoint>(path, std::move(spec), std::move(weights), std::move(table));
  if (format == FileFormat::kGguf) {
    RETURN_IF_ERROR(Prefixed(RefuseUnusedLayerTensors(*checkpoint), path));
  }
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHuggingFace(const std::string& path) {
  const std::string config_path = absl::StrCat(path, "/config.json");
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, config_path));
  const JsonObject config(json, config_path);
  ASSIGN_OR_RETURN(const Family* family, FindHfFamily(config));
  ASSIGN_OR_RETURN(ModelSpec spec, family->spec_from_hf(config));
  spec.name = BaseName(path);
  auto table = std::make_unique<TensorTable>();
  RETURN_IF_ERROR(AddSafetensorsDirectory(path, table.get()));
  table->Seal();
  return Bind(path, FileFormat::kHuggingFace, *family, std::move(spec), std::move(table));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(auto source, OpenFileSource(path));
  auto table = std::make_unique<TensorTable>();
  ASSIGN_OR_RETURN(const GgufHeader header, AddGguf(std::move(source), table.get()));
  table->Seal();
  const GgufMetadata& metadata = header.metadata;
  RETURN_IF_ERROR(metadata.Int("split.count", 1, 0, 1).status());
  ASSIGN_OR_RETURN(const Family* family, FindGgufFamily(metadata));
  ASSIGN_OR_RETURN(ModelSpec spec, family->spec_from_gguf(metadata));
  ASSIGN_OR_RETURN(spec.name, metadata.String("general.name", BaseName(path)));
  return Bind(path, FileFormat::kGguf, *family, std::move(spec), std::move(table));
}

// What transformers computes by itself, and the head of a model that ties it.
bool IsRedundant(const std::string& name) {
  for (const char* end : {"rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "lm_head.weight",
                          "rope_freqs.weight", "output.weight"}) {
    const bool whole = name == end || absl::EndsWith(name, absl::StrCat(".", end));
    if (whole && !absl::StartsWith(name, "blk.")) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> UnusedTensors(const Checkpoint& checkpoint) {
  absl::flat_hash_set<std::string> used;
  for (const WeightBinding& weight : checkpoint.weights()) used.insert(weight.tensor);
  std::vector<std::string> unused;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (!used.contains(tensor.name) && !IsRedundant(tensor.name)) unused.push_back(tensor.name);
  }
  return unused;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (S_ISDIR(info.st_mode)) return OpenHuggingFace(path);
  if (absl::EndsWith(path, ".safetensors")) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": give the directory that holds config.json and the safetensors files"));
  }
  return OpenGguf(path);
}

}  // namespace pergola
