#include "model/tensor_table.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "base/status.h"

namespace pergola {

int TensorTable::AddFile(std::unique_ptr<ByteSource> source) {
  files_.push_back(source->name());
  sources_.push_back(std::move(source));
  return static_cast<int>(sources_.size()) - 1;
}

absl::Status TensorTable::Add(TensorInfo tensor) {
  const bool is_new = index_.emplace(tensor.name, static_cast<int64_t>(tensors_.size())).second;
  if (!is_new) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", Printable(tensor.name), "\" is there twice"));
  }
  tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status TensorTable::AddUnsupported(const std::string& name, const std::string& type) {
  const int64_t at = -1 - static_cast<int64_t>(unsupported_.size());
  if (!index_.emplace(name, at).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", Printable(name), "\" is there twice"));
  }
  unsupported_.emplace_back(name, type);
  return absl::OkStatus();
}

void TensorTable::Seal() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  std::sort(unsupported_.begin(), unsupported_.end());
  index_.clear();
  for (size_t i = 0; i < tensors_.size(); ++i) {
    index_.emplace(tensors_[i].name, static_cast<int64_t>(i));
  }
  for (size_t i = 0; i < unsupported_.size(); ++i) {
    index_.emplace(unsupported_[i].first, -1 - static_cast<int64_t>(i));
  }
}

const TensorInfo* TensorTable::Find(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end() || found->second < 0) return nullptr;
  return &tensors_[static_cast<size_t>(found->second)];
}

absl::StatusOr<const TensorInfo*> TensorTable::Require(const std::string& name,
                                                       const std::vector<int64_t>& shape) const {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(name), "\" of shape ",
                                                   ShapeText(shape), " is missing"));
  }
  if (found->second < 0) {
    const auto& type = unsupported_[static_cast<size_t>(-1 - found->second)].second;
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", Printable(name), "\" has type ", Printable(type),
                     ", which is not supported; supported: F32, F16, BF16 and, in GGUF, ",
                     "Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K"));
  }
  const TensorInfo& tensor = tensors_[static_cast<size_t>(found->second)];
  if (tensor.shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", Printable(name), "\" has shape ", ShapeText(tensor.shape),
                     ", but the configuration says ", ShapeText(shape)));
  }
  return &tensor;
}

absl::Status TensorTable::Read(const TensorInfo& tensor, int64_t offset,
                               absl::Span<uint8_t> out) const {
  const auto bytes = static_cast<int64_t>(out.size());
  if (offset < 0 || offset > tensor.bytes || bytes > tensor.bytes - offset) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", Printable(tensor.name),
                                                   "\": ", bytes, " bytes wanted at ", offset,
                                                   ", but it has ", tensor.bytes));
  }
  return source(tensor.file).ReadAt(tensor.offset + offset, out);
}

int64_t ShapeProduct(absl::Span<const int64_t> shape) {
  constexpr int64_t kMax = int64_t{1} << 62;
  int64_t product = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return -1;
    if (dim == 0) {
      empty = true;
    } else if (product > kMax / dim) {
      return -1;
    } else {
      product *= dim;
    }
  }
  return empty ? 0 : product;
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace pergola
