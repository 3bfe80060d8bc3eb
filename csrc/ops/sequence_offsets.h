// Where the sequences of a packed batch begin, known to the host and to the device that reads it:
// an op that gets these copies nothing between the two.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/tensor.h"

namespace softgate {

// In which order sequences are taken, longest first, and how many of them reach each step.
struct SequenceSchedule {
  std::vector<std::int32_t> order, active;

  SequenceSchedule(const std::int32_t* cu_seqlens, std::int64_t batch);
  // Those of one length in the order given.
  SequenceSchedule(const std::int32_t* cu_seqlens, std::vector<std::int32_t> sequences);
};

// Immutable and shared.
class SequenceOffsets {
 public:
  // cu_seqlens: int32 [batch + 1], starting at 0, never falling. Fetched from a device other than
  // the CPU, which waits for its current stream. op and argument are those of error messages.
  SequenceOffsets(const char* op, const char* argument, const Tensor& cu_seqlens);
  // A copy for `device`, to be kept.
  static SequenceOffsets on(Device device, const char* op, const char* argument,
                            const Tensor& cu_seqlens);

  Device device() const { return cu_seqlens_.device(); }
  std::int64_t batch() const { return cu_seqlens_.size(0) - 1; }
  std::int64_t total() const { return host()[batch()]; }
  std::int64_t longest() const;
  std::int64_t shortest() const;  // of those that are not empty; the total where none is

  const Tensor& on_host() const { return on_host_; }
  const Tensor& cu_seqlens() const { return cu_seqlens_; }  // on the device
  const std::int32_t* data() const { return cu_seqlens_.data<std::int32_t>(); }
  const std::int32_t* host() const { return on_host_.data<std::int32_t>(); }
  // Of the sequences, longest first, on the device: place in the batch, first token, length;
  // int32 [3, batch].
  Tensor places(const SequenceSchedule& schedule) const;

  // The sequences are those of an argument on `device` with `total` tokens.
  void check_fit(const char* op, const char* argument, std::int64_t total, Device device) const;

 private:
  SequenceOffsets() = default;

  Tensor on_host_, cu_seqlens_;
  std::optional<Tensor> places_;
};

}  // namespace softgate
