#include "core/tensor.h"

#include <algorithm>
#include <utility>

#include "core/allocator.h"
#include "core/backend.h"
#include "core/check.h"

namespace softgate {
namespace {

bool is_empty(const Dims& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

Dims contiguous_strides(const Dims& shape) {
  Dims strides = shape;
  std::int64_t stride = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(shape[i], 1);
  }
  return strides;
}

// Strides that are never stepped along become those of a contiguous tensor.
Dims normalized_strides(const Dims& shape, const Dims& strides) {
  if (is_empty(shape)) return contiguous_strides(shape);
  Dims normal = strides;
  std::int64_t next = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    if (shape[i] == 1) normal[i] = next;
    next = normal[i] * shape[i];
  }
  return normal;
}

std::int64_t checked_multiply(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  check(!__builtin_mul_overflow(a, b, &product), "a tensor this large cannot be addressed");
  return product;
}

std::int64_t checked_add(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  check(!__builtin_add_overflow(a, b, &sum), "a tensor this large cannot be addressed");
  return sum;
}

std::uintptr_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

std::size_t span(const Tensor& tensor) {
  return checked_span(tensor.shape(), tensor.strides(), size_of(tensor.dtype()));
}

// The size that -1 stands for.
void infer_size(Dims& shape, std::int64_t numel) {
  int unknown = -1;
  std::int64_t known = 1;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1) {
      check(unknown < 0, "reshape: ", shape, " has -1 twice");
      unknown = i;
    } else {
      check(shape[i] >= 0, "reshape: ", shape, " has a negative size");
      known = checked_multiply(known, shape[i]);
    }
  }
  if (unknown >= 0 && known > 0 && numel % known == 0) shape[unknown] = numel / known;
}

// The strides at which `shape` views the elements of `tensor` in order; throws where none do.
Dims reshaped_strides(const Tensor& tensor, const Dims& shape) {
  if (tensor.numel() == 0) return contiguous_strides(shape);
  // Neighbouring dimensions that step evenly form one run.
  Dims run_sizes, run_strides;
  for (int i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 1) continue;
    const int last = run_sizes.size() - 1;
    if (last >= 0 && run_strides[last] == tensor.stride(i) * tensor.size(i)) {
      run_sizes[last] *= tensor.size(i);
      run_strides[last] = tensor.stride(i);
    } else {
      run_sizes.push_back(tensor.size(i));
      run_strides.push_back(tensor.stride(i));
    }
  }
  // Each run is split into new dimensions, from its inner end.
  Dims strides = shape;
  int run = run_sizes.size() - 1;
  std::int64_t taken = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    if (shape[i] == 1) continue;
    if (taken == run_sizes[run]) {
      --run;
      taken = 1;
    }
    strides[i] = run_strides[run] * taken;
    taken *= shape[i];
    check(run_sizes[run] % taken == 0, "reshape: a tensor of shape ", tensor.shape(),
          " and strides ", tensor.strides(), " is no view of shape ", shape);
  }
  return strides;
}

}  // namespace

Dims::Dims(std::initializer_list<std::int64_t> values) {
  for (const std::int64_t value : values) push_back(value);
}

void Dims::push_back(std::int64_t value) {
  check(size_ < kMaxDims, "a tensor has at most ", kMaxDims, " dimensions");
  values_[static_cast<std::size_t>(size_++)] = value;
}

bool operator==(const Dims& a, const Dims& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::ostream& operator<<(std::ostream& out, const Dims& dims) {
  out << '[';
  for (int i = 0; i < dims.size(); ++i) out << (i > 0 ? ", " : "") << dims[i];
  return out << ']';
}

std::shared_ptr<Storage> Storage::allocate(std::size_t bytes, Device device) {
  auto storage = std::make_shared<Storage>();
  storage->bytes = bytes;
  if (device.kind == DeviceKind::cpu) {
    storage->data = softgate::allocate(bytes);
    storage->keep_alive =
        std::shared_ptr<void>(storage->data, [bytes](void* block) { deallocate(block, bytes); });
    return storage;
  }
  const Backend& backend = softgate::backend(device);
  Stream stream = current_stream(device);
  storage->data = backend.allocate(device.index, bytes, stream);
  storage->keep_alive = std::shared_ptr<void>(
      storage->data,
      [&backend, device, stream](void* block) { backend.deallocate(device.index, block, stream); });
  return storage;
}

std::size_t checked_bytes(const Dims& shape, std::size_t element) {
  auto bytes = static_cast<std::int64_t>(element);
  for (const std::int64_t size : shape) {
    check(size >= 0, "shape ", shape, " has a negative size");
    // Skipping zeros keeps the strides of an empty tensor from overflowing too.
    if (size > 0 && __builtin_mul_overflow(bytes, size, &bytes)) {
      check(false, "shape ", shape, " has more bytes than can be addressed");
    }
  }
  return is_empty(shape) ? 0 : static_cast<std::size_t>(bytes);
}

std::size_t checked_span(const Dims& shape, const Dims& strides, std::size_t element) {
  if (is_empty(shape)) return 0;
  std::int64_t last = 0;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] > 1) last = checked_add(last, checked_multiply(shape[i] - 1, strides[i]));
  }
  const std::int64_t elements = checked_add(last, 1);
  return static_cast<std::size_t>(checked_multiply(elements, static_cast<std::int64_t>(element)));
}

Tensor::Tensor(std::shared_ptr<Storage> storage, void* data, DType dtype, Dims shape, Dims strides,
               Device device)
    : storage_(std::move(storage)), data_(data), dtype_(dtype), shape_(shape), device_(device) {
  check(strides.size() == shape.size(), "shape ", shape.size(), " and strides ", strides.size(),
        " differ in length");
  checked_bytes(shape, size_of(dtype));
  strides_ = normalized_strides(shape, strides);
  if (std::any_of(strides_.begin(), strides_.end(), [](std::int64_t s) { return s < 0; })) {
    check(false, "strides ", strides, " are negative");
  }
  if (dim() > 0 && stride(-1) != 1) {
    check(false, "shape ", shape, " with strides ", strides, " has no contiguous last dimension");
  }
  const std::size_t bytes = span(*this);
  const std::uintptr_t offset = address(data_) - address(storage_->data);
  check(bytes == 0 || (offset <= storage_->bytes && bytes <= storage_->bytes - offset),
        "a view of ", bytes, " bytes leaves its storage of ", storage_->bytes);
}

Tensor Tensor::empty(const Dims& shape, DType dtype, Device device) {
  auto storage = Storage::allocate(checked_bytes(shape, size_of(dtype)), device);
  void* data = storage->data;
  return {std::move(storage), data, dtype, shape, contiguous_strides(shape), device};
}

std::int64_t Tensor::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape_) count *= size;
  return count;
}

bool Tensor::is_contiguous() const { return strides_ == contiguous_strides(shape_); }

Tensor Tensor::slice(int dim, std::int64_t begin, std::int64_t end) const {
  check(dim >= 0 && dim < this->dim(), "slice: dimension ", dim, " of a tensor with ", this->dim());
  check(0 <= begin && begin <= end && end <= size(dim), "slice: [", begin, ", ", end,
        ") of a dimension of size ", size(dim));
  Dims shape = shape_;
  shape[dim] = end - begin;
  auto* first = static_cast<std::byte*>(data_);
  if (!is_empty(shape)) first += begin * stride(dim) * static_cast<std::int64_t>(size_of(dtype_));
  return {storage_, first, dtype_, shape, strides_, device_};
}

Tensor Tensor::select(int dim, std::int64_t i) const {
  check(dim >= 0 && dim < this->dim(), "select: dimension ", dim, " of a tensor with ",
        this->dim());
  check(0 <= i && i < size(dim), "select: index ", i, " of a dimension of size ", size(dim));
  const Tensor one = slice(dim, i, i + 1);
  Dims shape, strides;
  for (int d = 0; d < this->dim(); ++d) {
    if (d == dim) continue;
    shape.push_back(one.size(d));
    strides.push_back(one.stride(d));
  }
  return {storage_, one.raw(), dtype_, shape, strides, device_};
}

Tensor Tensor::reshape(Dims shape) const {
  infer_size(shape, numel());
  if (std::find(shape.begin(), shape.end(), -1) != shape.end() ||
      checked_bytes(shape, size_of(dtype_)) != bytes()) {
    check(false, "reshape: shape ", shape_, " does not fit ", shape);
  }
  return {storage_, data_, dtype_, shape, reshaped_strides(*this, shape), device_};
}

bool overlap(const Tensor& a, const Tensor& b) {
  const std::uintptr_t first_a = address(a.raw()), first_b = address(b.raw());
  const std::size_t span_a = span(a), span_b = span(b);
  if (span_a == 0 || span_b == 0) return false;
  return a.device() == b.device() && first_a < first_b + span_b && first_b < first_a + span_a;
}

bool same_view(const Tensor& a, const Tensor& b) {
  return a.raw() == b.raw() && a.dtype() == b.dtype() && a.device() == b.device() &&
         a.shape() == b.shape() && a.strides() == b.strides();
}

}  // namespace softgate
