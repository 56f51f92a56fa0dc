#include "model/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/json.h"

namespace pergola {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTensorRank = 8;
constexpr size_t kMaxShards = 4096;

struct FileType {
  const char* name;
  int64_t bytes;
};
// Types we can size; the first three also hold weights.
constexpr FileType kFileTypes[] = {
    {"F32", 4}, {"BF16", 2}, {"F16", 2},     {"F64", 8},     {"I64", 8},     {"U64", 8},
    {"C64", 8}, {"I32", 4},  {"U32", 4},     {"I16", 2},     {"U16", 2},     {"I8", 1},
    {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
};
constexpr DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

struct Entry {
  TensorInfo info;
  std::string type;
  bool supported = false;
};

absl::Status Bad(const std::string& tensor, const std::string& text) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(tensor), "\": ", text));
}

// Non-negative integers of a JSON array.
bool ReadInts(const json* value, size_t max_count, std::vector<int64_t>* out) {
  if (value == nullptr || !value->is_array() || value->size() > max_count) return false;
  for (const json& item : *value) {
    const auto* number = item.get_ptr<const json::number_unsigned_t*>();
    if (number == nullptr || *number > static_cast<uint64_t>(INT64_MAX)) return false;
    out->push_back(static_cast<int64_t>(*number));
  }
  return true;
}

// Checks type, shape and size of one entry; `begin` and `end` count from the start of the data.
absl::Status FillEntry(const std::string& name, const JsonObject& fields, int64_t data_bytes,
                       Entry* entry) {
  ASSIGN_OR_RETURN(entry->type, fields.String("dtype", ""));
  if (entry->type.empty()) return Bad(name, "dtype is missing");
  TensorInfo& info = entry->info;
  info.name = name;
  if (!ReadInts(fields.Find("shape"), kMaxTensorRank, &info.shape)) {
    return fields.Wrong("shape", absl::StrCat("at most ", kMaxTensorRank, " sizes"));
  }
  std::vector<int64_t> offsets;
  if (!ReadInts(fields.Find("data_offsets"), 2, &offsets) || offsets.size() != 2) {
    return fields.Wrong("data_offsets", "two offsets");
  }
  if (offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return Bad(name, absl::StrCat("data_offsets [", offsets[0], ", ", offsets[1],
                                  "] lie outside the ", data_bytes, " bytes of data"));
  }
  info.offset = offsets[0];
  info.bytes = offsets[1] - offsets[0];
  const int64_t values = ShapeProduct(info.shape);
  if (values < 0) return Bad(name, absl::StrCat("shape ", ShapeText(info.shape), " overflows"));
  for (size_t i = 0; i < std::size(kFileTypes); ++i) {
    if (entry->type != kFileTypes[i].name) continue;
    // Divided, not multiplied: the product of two untrusted numbers may overflow.
    const int64_t size = kFileTypes[i].bytes;
    if (info.bytes % size != 0 || info.bytes / size != values) {
      return Bad(name, absl::StrCat("has ", info.bytes, " bytes, but ", entry->type, " of shape ",
                                    ShapeText(info.shape), " takes ", size, " x ", values));
    }
    entry->supported = i < std::size(kWeightTypes) && values > 0;
    if (entry->supported) info.dtype = kWeightTypes[i];
  }
  return absl::OkStatus();
}

// Bytes must follow one another without overlap or hole, to the end of the file.
absl::Status CheckLayout(std::vector<Entry>* entries, int64_t data_bytes) {
  std::sort(entries->begin(), entries->end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.info.offset, a.info.bytes) < std::pair(b.info.offset, b.info.bytes);
  });
  int64_t at = 0;
  for (const Entry& entry : *entries) {
    if (entry.info.offset != at) {
      return Bad(entry.info.name, absl::StrCat("begins at ", entry.info.offset,
                                               ", but the tensors before it end at ", at,
                                               entry.info.offset < at ? " (overlap)" : " (hole)"));
    }
    at += entry.info.bytes;
  }
  if (at != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensors end at ", at, ", but the file holds ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

absl::Status ReadHeader(const ByteSource& source, std::vector<Entry>* entries) {
  uint8_t raw[8] = {};
  if (source.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", source.size(), " bytes; a safetensors file has at least 8"));
  }
  RETURN_IF_ERROR(source.ReadAt(0, absl::MakeSpan(raw)));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | raw[i];
  const auto limit =
      static_cast<uint64_t>(std::min<int64_t>(kMaxSafetensorsHeaderBytes, source.size() - 8));
  if (length > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("header length is ", length, ", but must be at most ", limit));
  }
  std::string text(length, '\0');
  RETURN_IF_ERROR(
      source.ReadAt(8, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  ASSIGN_OR_RETURN(const json header, ParseJsonObject(text, "header"));
  const int64_t data_begin = 8 + static_cast<int64_t>(length);
  const int64_t data_bytes = source.size() - data_begin;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    if (!value.is_object()) return Bad(name, "its entry is not an object");
    Entry& entry = entries->emplace_back();
    const JsonObject fields(value, absl::StrCat("tensor \"", Printable(name), "\""));
    RETURN_IF_ERROR(FillEntry(name, fields, data_bytes, &entry));
  }
  RETURN_IF_ERROR(CheckLayout(entries, data_bytes));
  for (Entry& entry : *entries) entry.info.offset += data_begin;
  return absl::OkStatus();
}

bool FileExists(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0;
}

// A shard's name comes from a file: it must be a plain name in the same directory.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

absl::Status AddShards(const std::string& directory, const std::string& index_path,
                       TensorTable* table) {
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(index_path, kMaxSafetensorsHeaderBytes));
  ASSIGN_OR_RETURN(const SafetensorsShards shards, ParseSafetensorsIndex(text, index_path));
  std::map<std::string, int> files;  // name to index in the table's files
  for (const auto& [name, tensors] : shards) {
    files[name] = static_cast<int>(table->files().size());
    ASSIGN_OR_RETURN(auto source, OpenFileSource(absl::StrCat(directory, "/", name)));
    RETURN_IF_ERROR(AddSafetensors(std::move(source), table));
  }
  table->Seal();
  for (const auto& [name, tensors] : shards) {
    const int file = files.at(name);
    for (const std::string& tensor : tensors) {
      const TensorInfo* info = table->Find(tensor);
      if (info == nullptr || info->file == file) continue;
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor \"", Printable(tensor),
                                                     "\" is not in ",
                                                     table->files()[static_cast<size_t>(file)]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsShards> ParseSafetensorsIndex(std::string_view text,
                                                        const std::string& path) {
  ASSIGN_OR_RETURN(const json index, ParseJsonObject(text, path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map is missing"));
  }
  SafetensorsShards shards;
  for (const auto& [tensor, shard] : map->items()) {
    const auto* name = shard.get_ptr<const std::string*>();
    if (name == nullptr || !IsPlainName(*name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", Printable(tensor), "\" lies in ", JsonText(shard),
                       ", which is not the name of a file in this directory"));
    }
    shards[*name].push_back(tensor);
  }
  if (shards.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": names ", shards.size(), " files; at most ", kMaxShards, " are read"));
  }
  return shards;
}

absl::Status AddSafetensors(std::unique_ptr<ByteSource> source, TensorTable* table) {
  const std::string path = source->name();
  std::vector<Entry> entries;
  RETURN_IF_ERROR(Prefixed(ReadHeader(*source, &entries), path));
  const int file = table->AddFile(std::move(source));
  for (Entry& entry : entries) {
    entry.info.file = file;
    const std::string name = entry.info.name;
    const bool empty = ShapeProduct(entry.info.shape) == 0;
    const absl::Status added =
        entry.supported ? table->Add(std::move(entry.info))
                        : table->AddUnsupported(name, entry.type + (empty ? " (empty)" : ""));
    RETURN_IF_ERROR(Prefixed(added, path));
  }
  return absl::OkStatus();
}

absl::Status AddSafetensorsDirectory(const std::string& directory, TensorTable* table) {
  const std::string single = absl::StrCat(directory, "/model.safetensors");
  const std::string index = single + ".index.json";
  if (FileExists(single)) {
    ASSIGN_OR_RETURN(auto source, OpenFileSource(single));
    return AddSafetensors(std::move(source), table);
  }
  if (FileExists(index)) return AddShards(directory, index, table);
  const bool pickled = FileExists(absl::StrCat(directory, "/pytorch_model.bin")) ||
                       FileExists(absl::StrCat(directory, "/pytorch_model.bin.index.json"));
  return absl::NotFoundError(
      absl::StrCat(directory, ": holds neither model.safetensors nor model.safetensors.index.json",
                   pickled ? "; pytorch_model.bin is never read, convert it to safetensors" : ""));
}

}  // namespace pergola
