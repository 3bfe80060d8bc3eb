// A view of typed memory on a device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "core/device.h"
#include "core/dtype.h"

namespace softgate {

inline constexpr int kMaxDims = 8;

// A short list of sizes or strides.
class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<std::int64_t> values);

  int size() const { return size_; }
  std::int64_t operator[](int i) const { return values_[static_cast<std::size_t>(i)]; }
  std::int64_t& operator[](int i) { return values_[static_cast<std::size_t>(i)]; }
  void push_back(std::int64_t value);  // throws beyond kMaxDims
  const std::int64_t* begin() const { return values_.data(); }
  const std::int64_t* end() const { return values_.data() + size_; }
  friend bool operator==(const Dims& a, const Dims& b);

 private:
  std::array<std::int64_t, kMaxDims> values_{};
  int size_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Dims& dims);  // "[2, 3]"

// The memory behind one or more tensors: ours, or borrowed from an owner that `keep_alive` holds.
struct Storage {
  void* data = nullptr;
  std::size_t bytes = 0;
  std::shared_ptr<void> keep_alive;
  bool writable = true;

  static std::shared_ptr<Storage> allocate(std::size_t bytes, Device device = {});
};

// dtype, shape, strides (in elements; the last dimension is contiguous, outer ones are free) and
// shared memory. Copies share memory.
class Tensor {
 public:
  Tensor() = default;
  // Throws std::invalid_argument when the last dimension is not contiguous or the view leaves the
  // storage.
  Tensor(std::shared_ptr<Storage> storage, void* data, DType dtype, Dims shape, Dims strides,
         Device device);

  // Uninitialised and contiguous.
  static Tensor empty(const Dims& shape, DType dtype = DType::float32, Device device = {});

  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int dim() const { return shape_.size(); }
  const Dims& shape() const { return shape_; }
  const Dims& strides() const { return strides_; }
  // A negative index counts from the end.
  std::int64_t size(int i) const { return shape_[i < 0 ? i + dim() : i]; }
  std::int64_t stride(int i) const { return strides_[i < 0 ? i + dim() : i]; }
  std::int64_t numel() const;
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  bool writable() const { return storage_ && storage_->writable; }
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  void* raw() const { return data_; }
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

  // Rows [begin, end) of dimension `dim`; shares memory. The last dimension stays contiguous.
  Tensor slice(int dim, std::int64_t begin, std::int64_t end) const;
  // Index `i` of dimension `dim`, which disappears.
  Tensor select(int dim, std::int64_t i) const;
  // Shares memory; throws when the strides do not allow it. One size may be -1.
  Tensor reshape(Dims shape) const;

 private:
  std::shared_ptr<Storage> storage_;
  void* data_ = nullptr;
  DType dtype_ = DType::float32;
  Dims shape_, strides_;
  Device device_;
};

// A contiguous copy on `device`, with elements converted to `dtype`; float32, float16 and bfloat16
// convert into each other, on the host. A copy on the host is there on return, one on a device when
// the current stream comes to it.
Tensor copy_to(const Tensor& tensor, Device device, DType dtype);
// The same into a view of the same shape, which does not overlap it.
void copy_into(const Tensor& from, const Tensor& to);

// What was copied between the host and other devices since the process began.
struct Transfers {
  std::uint64_t uploads, uploaded_bytes, downloads, downloaded_bytes;
};
Transfers transfers();

// Do the two views share a byte (by the address range each spans)?
bool overlap(const Tensor& a, const Tensor& b);
// Do they view the same elements in the same order?
bool same_view(const Tensor& a, const Tensor& b);

// Product of sizes times `element` bytes; throws std::invalid_argument on overflow or a negative
// size.
std::size_t checked_bytes(const Dims& shape, std::size_t element);

// Bytes from a view's first element to the end of its last; throws std::invalid_argument on
// overflow.
std::size_t checked_span(const Dims& shape, const Dims& strides, std::size_t element);

}  // namespace softgate
