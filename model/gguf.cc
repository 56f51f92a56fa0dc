#include "model/gguf.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"

namespace pergola {
namespace {

// Far above real headers (a 256 k vocabulary with merges takes about 20 MB), far below what would
// hurt.
constexpr int64_t kMaxHeaderBytes = int64_t{512} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;      // the format's own limit
constexpr uint64_t kMaxTensorNameBytes = 64;  // the format's own limit
constexpr uint32_t kMaxDims = 4;
constexpr int kMaxArrayDepth = 4;
constexpr int64_t kMaxAlignment = 1 << 20;

struct TensorType {
  uint32_t id;
  const char* name;
  int supported;  // a DType, or -1
};
constexpr TensorType kTensorTypes[] = {
    {0, "F32", static_cast<int>(DType::kF32)},
    {1, "F16", static_cast<int>(DType::kF16)},
    {2, "Q4_0", static_cast<int>(DType::kQ4_0)},
    {3, "Q4_1", static_cast<int>(DType::kQ4_1)},
    {8, "Q8_0", static_cast<int>(DType::kQ8_0)},
    {30, "BF16", static_cast<int>(DType::kBF16)},
    {6, "Q5_0", static_cast<int>(DType::kQ5_0)},
    {7, "Q5_1", static_cast<int>(DType::kQ5_1)},
    {9, "Q8_1", -1},
    {10, "Q2_K", static_cast<int>(DType::kQ2_K)},
    {11, "Q3_K", static_cast<int>(DType::kQ3_K)},
    {12, "Q4_K", static_cast<int>(DType::kQ4_K)},
    {13, "Q5_K", static_cast<int>(DType::kQ5_K)},
    {14, "Q6_K", static_cast<int>(DType::kQ6_K)},
    {15, "Q8_K", -1},
    {16, "IQ2_XXS", -1},
    {17, "IQ2_XS", -1},
    {18, "IQ3_XXS", -1},
    {19, "IQ1_S", -1},
    {20, "IQ4_NL", static_cast<int>(DType::kIQ4_NL)},
    {21, "IQ3_S", -1},
    {22, "IQ2_S", -1},
    {23, "IQ4_XS", -1},
    {24, "I8", -1},
    {25, "I16", -1},
    {26, "I32", -1},
    {27, "I64", -1},
    {28, "F64", -1},
    {29, "IQ1_M", -1},
    {34, "TQ1_0", -1},
    {35, "TQ2_0", -1},
    {39, "MXFP4", -1},
};

// Bytes of a scalar; 0 for strings, arrays and unknown types.
int64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

// Reads forward through the header in windows; every read is checked against the end first.
class Reader {
 public:
  explicit Reader(const ByteSource& source)
      : source_(source), end_(std::min(source.size(), kMaxHeaderBytes)) {}

  int64_t position() const { return position_; }
  uint64_t remaining() const { return static_cast<uint64_t>(end_ - position_); }

  absl::Status Bytes(uint64_t count, std::string* out) {
    RETURN_IF_ERROR(Need(count, 1));
    out->resize(count);
    size_t done = 0;
    while (done < count) {
      if (position_ >= window_begin_ + static_cast<int64_t>(window_.size())) {
        RETURN_IF_ERROR(Refill());
      }
      const auto at = static_cast<size_t>(position_ - window_begin_);
      const size_t n = std::min<size_t>(count - done, window_.size() - at);
      std::memcpy(out->data() + done, window_.data() + at, n);
      done += n;
      position_ += static_cast<int64_t>(n);
    }
    if (hash_ != nullptr) hash_->UpdateField(*out);
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Scalar(T* out) {
    std::string raw;
    RETURN_IF_ERROR(Bytes(sizeof(T), &raw));
    std::memcpy(out, raw.data(), sizeof(T));
    return absl::OkStatus();
  }
  absl::Status String(uint64_t max_bytes, std::string* out) {
    uint64_t length = 0;
    RETURN_IF_ERROR(Scalar(&length));
    if (length > max_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a string of ", length, " bytes at offset ",
                                                     position_, "; at most ", max_bytes,
                                                     " are allowed"));
    }
    return Bytes(length, out);
  }
  // Whether `count` things of at least `bytes_each` can still follow.
  absl::Status Need(uint64_t count, uint64_t bytes_each) const {
    if (count <= remaining() / bytes_each) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(count, " x ", bytes_each, " bytes are announced at offset ", position_,
                     ", but only ", remaining(), " bytes of ",
                     end_ == source_.size() ? "the file" : "the largest header read", " follow"));
  }
  // From now on, everything read also goes to `hash`.
  void set_hash(Sha256* hash) { hash_ = hash; }

 private:
  absl::Status Refill() {
    constexpr int64_t kWindow = 1 << 20;
    window_begin_ = position_;
    window_.resize(static_cast<size_t>(std::min(kWindow, end_ - position_)));
    return source_.ReadAt(position_, absl::MakeSpan(window_));
  }

  const ByteSource& source_;
  const int64_t end_;
  int64_t position_ = 0;
  int64_t window_begin_ = 0;
  std::vector<uint8_t> window_;
  Sha256* hash_ = nullptr;
};

absl::Status ReadType(Reader* reader, GgufType* type) {
  uint32_t raw = 0;
  RETURN_IF_ERROR(reader->Scalar(&raw));
  if (raw > static_cast<uint32_t>(GgufType::kFloat64)) {
    return absl::InvalidArgumentError(absl::StrCat("value type ", raw, " is unknown"));
  }
  *type = static_cast<GgufType>(raw);
  return absl::OkStatus();
}

absl::Status ReadArray(Reader* reader, int depth, GgufValue* value) {
  if (depth > kMaxArrayDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("arrays are nested deeper than ", kMaxArrayDepth));
  }
  RETURN_IF_ERROR(ReadType(reader, &value->element_type));
  RETURN_IF_ERROR(reader->Scalar(&value->count));
  if (const int64_t size = ScalarBytes(value->element_type)) {
    RETURN_IF_ERROR(reader->Need(value->count, static_cast<uint64_t>(size)));
    return reader->Bytes(value->count * static_cast<uint64_t>(size), &value->bytes);
  }
  const bool strings = value->element_type == GgufType::kString;
  // An empty string takes its length, an empty array its type and count.
  RETURN_IF_ERROR(reader->Need(value->count, strings ? 8 : 12));
  for (uint64_t i = 0; i < value->count; ++i) {
    if (strings) {
      RETURN_IF_ERROR(reader->String(reader->remaining(), &value->strings.emplace_back()));
    } else {
      GgufValue nested;
      RETURN_IF_ERROR(ReadArray(reader, depth + 1, &nested));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadValue(Reader* reader, GgufValue* value) {
  RETURN_IF_ERROR(ReadType(reader, &value->type));
  if (value->type == GgufType::kString) {
    return reader->String(reader->remaining(), &value->bytes);
  }
  if (value->type == GgufType::kArray) return ReadArray(reader, 1, value);
  return reader->Bytes(static_cast<uint64_t>(ScalarBytes(value->type)), &value->bytes);
}

absl::Status ReadPreamble(Reader* reader, uint64_t* tensors, uint64_t* keys) {
  std::string magic;
  uint32_t version = 0;
  RETURN_IF_ERROR(reader->Bytes(4, &magic));
  if (magic != "GGUF") {
    return absl::InvalidArgumentError(
        absl::StrCat("begins with \"", Printable(magic), "\", not with \"GGUF\""));
  }
  RETURN_IF_ERROR(reader->Scalar(&version));
  if ((version & 0xffffU) == 0 && version != 0) {
    return absl::InvalidArgumentError("is a big-endian GGUF file; only little-endian is read");
  }
  if (version != 2 && version != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("is GGUF version ", version, "; versions 2 and 3 are read"));
  }
  RETURN_IF_ERROR(reader->Scalar(tensors));
  RETURN_IF_ERROR(reader->Scalar(keys));
  // The least a tensor takes: name length, dimension count, one dimension, type, offset. A key:
  // length, type, one byte.
  RETURN_IF_ERROR(Prefixed(reader->Need(*tensors, 8 + 4 + 8 + 4 + 8), "tensor count"));
  return Prefixed(reader->Need(*keys, 8 + 4 + 1), "metadata count");
}

struct Entry {
  TensorInfo info;
  std::string type;
  bool supported = false;
};

absl::Status ReadTensor(Reader* reader, Entry* entry) {
  TensorInfo& info = entry->info;
  RETURN_IF_ERROR(reader->String(kMaxTensorNameBytes, &info.name));
  const std::string where = absl::StrCat("tensor \"", Printable(info.name), "\"");
  uint32_t dims = 0;
  RETURN_IF_ERROR(reader->Scalar(&dims));
  if (dims > kMaxDims) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " has ", dims, " dimensions; at most ", kMaxDims, " are allowed"));
  }
  for (uint32_t i = 0; i < dims; ++i) RETURN_IF_ERROR(reader->Scalar(&info.shape.emplace_back()));
  // The file has the innermost dimension first.
  std::reverse(info.shape.begin(), info.shape.end());
  const int64_t values = ShapeProduct(info.shape);
  if (values <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has shape ", ShapeText(info.shape),
                                                   "; sizes must be at least 1 and their ",
                                                   "product at most 2^62"));
  }
  uint32_t type = 0;
  uint64_t offset = 0;
  RETURN_IF_ERROR(reader->Scalar(&type));
  RETURN_IF_ERROR(reader->Scalar(&offset));
  if (offset > static_cast<uint64_t>(INT64_MAX / 2)) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has offset ", offset));
  }
  info.offset = static_cast<int64_t>(offset);
  entry->type = absl::StrCat("number ", type);
  for (const TensorType& known : kTensorTypes) {
    if (known.id != type) continue;
    entry->type = known.name;
    if (known.supported < 0) break;
    entry->supported = true;
    info.dtype = static_cast<DType>(known.supported);
    const int64_t inner = info.shape.empty() ? 1 : info.shape.back();
    if (inner % BlockValues(info.dtype) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(where, " has rows of ", inner, " values; ",
                                                     entry->type, " needs a multiple of ",
                                                     BlockValues(info.dtype)));
    }
    const int64_t blocks = values / BlockValues(info.dtype);
    if (blocks > (INT64_MAX / 4) / BlockBytes(info.dtype)) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " of shape ", ShapeText(info.shape), " is too large"));
    }
    info.bytes = blocks * BlockBytes(info.dtype);
  }
  return absl::OkStatus();
}

// Offsets become absolute. Tensors of unsupported types have no known size, so only their start is
// checked.
absl::Status CheckLayout(int64_t data_begin, int64_t file_bytes, int64_t alignment,
                         std::vector<Entry>* entries) {
  const int64_t data_bytes = std::max<int64_t>(0, file_bytes - data_begin);
  std::sort(entries->begin(), entries->end(),
            [](const Entry& a, const Entry& b) { return a.info.offset < b.info.offset; });
  int64_t end_before = 0;
  for (Entry& entry : *entries) {
    TensorInfo& info = entry.info;
    const std::string where = absl::StrCat("tensor \"", Printable(info.name), "\"");
    if (info.offset % alignment != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " begins at ", info.offset, ", which is no multiple of ", alignment));
    }
    if (info.offset > data_bytes || info.bytes > data_bytes - info.offset) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " takes ", info.bytes, " bytes at offset ", info.offset,
                       " of the data, but the file holds ", data_bytes, " bytes of data"));
    }
    if (info.offset < end_before) {
      return absl::InvalidArgumentError(absl::StrCat(where, " begins at ", info.offset,
                                                     ", but the one before it ends at ", end_before,
                                                     " (overlap)"));
    }
    end_before = info.offset + info.bytes;
    info.offset += data_begin;
  }
  return absl::OkStatus();
}

absl::Status ReadAll(const ByteSource& source, GgufHeader* header, std::vector<Entry>* entries) {
  Reader reader(source);
  uint64_t tensors = 0;
  uint64_t keys = 0;
  RETURN_IF_ERROR(ReadPreamble(&reader, &tensors, &keys));
  Sha256 hash;
  reader.set_hash(&hash);
  for (uint64_t i = 0; i < keys; ++i) {
    std::string key;
    GgufValue value;
    RETURN_IF_ERROR(reader.String(kMaxKeyBytes, &key));
    RETURN_IF_ERROR(Prefixed(ReadValue(&reader, &value), Printable(key)));
    RETURN_IF_ERROR(header->metadata.Add(key, std::move(value)));
  }
  reader.set_hash(nullptr);
  header->metadata_bytes_hash = hash.FinishHex();
  for (uint64_t i = 0; i < tensors; ++i) {
    RETURN_IF_ERROR(ReadTensor(&reader, &entries->emplace_back()));
  }
  ASSIGN_OR_RETURN(const int64_t alignment,
                   header->metadata.Int("general.alignment", 32, 1, kMaxAlignment));
  if ((alignment & (alignment - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("general.alignment is ", alignment, ", but must be a power of two"));
  }
  const int64_t data_begin = (reader.position() + alignment - 1) / alignment * alignment;
  return CheckLayout(data_begin, source.size(), alignment, entries);
}

}  // namespace

absl::StatusOr<GgufHeader> AddGguf(std::unique_ptr<ByteSource> source, TensorTable* table) {
  const std::string path = source->name();
  GgufHeader header;
  header.metadata = GgufMetadata(path);
  std::vector<Entry> entries;
  RETURN_IF_ERROR(Prefixed(ReadAll(*source, &header, &entries), path));
  const int file = table->AddFile(std::move(source));
  for (Entry& entry : entries) {
    entry.info.file = file;
    const std::string name = entry.info.name;
    const absl::Status added = entry.supported ? table->Add(std::move(entry.info))
                                               : table->AddUnsupported(name, entry.type);
    RETURN_IF_ERROR(Prefixed(added, path));
  }
  return header;
}

}  // namespace pergola
