// The tensors that the files of a checkpoint hold, by name: what both file formats fill in and
// families bind from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/byte_source.h"
#include "model/checkpoint.h"

namespace pergola {

// Filled by the format readers, then sealed and immutable.
class TensorTable {
 public:
  // The index of the file in files().
  int AddFile(std::unique_ptr<ByteSource> source);
  // INVALID_ARGUMENT if the name is known.
  absl::Status Add(TensorInfo tensor);
  // A tensor of a type that no weight may have; refused only if a weight needs it. `type` is the
  // file's word for it.
  absl::Status AddUnsupported(const std::string& name, const std::string& type);
  // Sorts by name.
  void Seal();

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::pair<std::string, std::string>>& unsupported() const {
    return unsupported_;
  }
  const std::vector<std::string>& files() const { return files_; }
  const ByteSource& source(int file) const { return *sources_[static_cast<size_t>(file)]; }
  // nullptr if there is none. After Seal only.
  const TensorInfo* Find(const std::string& name) const;
  bool Contains(const std::string& name) const { return index_.contains(name); }
  // The tensor, which must be there, in a supported type and of this shape.
  absl::StatusOr<const TensorInfo*> Require(const std::string& name,
                                            const std::vector<int64_t>& shape) const;
  // Reads within a tensor.
  absl::Status Read(const TensorInfo& tensor, int64_t offset, absl::Span<uint8_t> out) const;

 private:
  std::vector<std::unique_ptr<ByteSource>> sources_;
  std::vector<std::string> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::pair<std::string, std::string>> unsupported_;  // name, type
  // >= 0: into tensors_; < 0: into unsupported_, as -1 - i.
  absl::flat_hash_map<std::string, int64_t> index_;
};

// The product of `shape`; -1 if a dimension is negative or the product exceeds 2^62.
int64_t ShapeProduct(absl::Span<const int64_t> shape);
// "[3, 4]".
std::string ShapeText(absl::Span<const int64_t> shape);

}  // namespace pergola
