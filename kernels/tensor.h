// Views of device memory, dense, outermost dimension first, and memory of the host. What owns
// device memory is stream.h's business.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>

#include "base/check.h"
#include "model/dtype.h"

namespace pergola {

// A dense view of up to four dimensions. Copying copies the view.
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims)
      : data_(data), dtype_(dtype) {
    PERGOLA_CHECK(dims.size() <= 4);
    for (int64_t dim : dims) dims_[rank_++] = dim;
  }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return dims_[i]; }
  int64_t values() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  // The data as `T`; the caller knows the dtype.
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  float* f32() const {
    PERGOLA_CHECK(dtype_ == DType::kF32);
    return static_cast<float*>(data_);
  }
  int32_t* i32() const {
    PERGOLA_CHECK(dtype_ == DType::kI32);
    return static_cast<int32_t*>(data_);
  }

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, 4> dims_ = {};
};

// At least 64-byte aligned, zeroed, in huge pages if it is large; std::free gives it back.
// Out of memory is fatal. nullptr for 0 bytes.
uint8_t* AllocateHostMemory(int64_t bytes);

// Host memory, 64-byte aligned, zeroed, freed with the object. Allocated at load only (DESIGN I7).
// Large memory comes in fresh pages, which the thread that first writes them takes and clears.
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(int64_t bytes);
  uint8_t* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    Free() : mapped(0) {}
    explicit Free(size_t bytes) : mapped(bytes) {}
    void operator()(uint8_t* p) const;
    size_t mapped;  // bytes of fresh pages; 0: std::free
  };
  std::unique_ptr<uint8_t[], Free> data_;
  int64_t size_ = 0;
};

}  // namespace pergola
