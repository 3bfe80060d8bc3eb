#include "ops/sequence_offsets.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "ops/arguments.h"

namespace softgate {
namespace {

constexpr Device kHost{};

// See SequenceOffsets::places; `all` is that on the host.
void write_places(const std::int32_t* cu_seqlens, const SequenceSchedule& schedule,
                  std::int32_t* all) {
  const std::size_t batch = schedule.order.size();
  for (std::size_t i = 0; i < batch; ++i) {
    const std::int32_t sequence = schedule.order[i];
    all[i] = sequence;
    all[batch + i] = cu_seqlens[sequence];
    all[2 * batch + i] = cu_seqlens[sequence + 1] - cu_seqlens[sequence];
  }
}

std::vector<std::int32_t> numbers(std::int64_t count) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

SequenceSchedule::SequenceSchedule(const std::int32_t* cu_seqlens, std::int64_t batch)
    : SequenceSchedule(cu_seqlens, numbers(batch)) {}

SequenceSchedule::SequenceSchedule(const std::int32_t* cu_seqlens,
                                   std::vector<std::int32_t> sequences)
    : order(std::move(sequences)) {
  const auto length = [&](std::int32_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  const auto longer = [&](std::int32_t a, std::int32_t b) { return length(a) > length(b); };
  // Of single steps, which all have one length, there is nothing to sort.
  if (!std::is_sorted(order.begin(), order.end(), longer))
    std::stable_sort(order.begin(), order.end(), longer);
  auto reaching = static_cast<std::int32_t>(order.size());
  for (std::int32_t step = 0;; ++step) {
    while (reaching > 0 && length(order[static_cast<std::size_t>(reaching - 1)]) <= step)
      --reaching;
    if (reaching == 0) break;
    active.push_back(reaching);
  }
}

SequenceOffsets::SequenceOffsets(const char* op, const char* argument, const Tensor& cu_seqlens)
    : cu_seqlens_(cu_seqlens) {
  check_tensor(op, argument, cu_seqlens, DType::int32, {-1}, cu_seqlens.device());
  check(cu_seqlens.size(0) >= 1, op, ": ", argument, " is empty, expected batch + 1 offsets");
  on_host_ = device() == kHost ? cu_seqlens : copy_to(cu_seqlens, kHost, DType::int32);
  check(host()[0] == 0, op, ": ", argument, " starts at ", host()[0], ", expected 0");
  for (std::int64_t i = 1; i <= batch(); ++i) {
    check(host()[i - 1] <= host()[i], op, ": ", argument, " falls from ", host()[i - 1], " to ",
          host()[i], " at ", i);
  }
}

SequenceOffsets SequenceOffsets::on(Device device, const char* op, const char* argument,
                                    const Tensor& cu_seqlens) {
  const SequenceOffsets given(op, argument, cu_seqlens);
  SequenceOffsets kept;
  kept.on_host_ = copy_to(given.on_host_, kHost, DType::int32);
  kept.on_host_.storage()->writable = false;
  if (device == kHost) {
    kept.cu_seqlens_ = kept.on_host_;
    return kept;
  }
  // One upload for both.
  const std::int64_t batch = given.batch();
  Tensor both = Tensor::empty({batch + 1 + 3 * batch}, DType::int32);
  std::copy_n(given.host(), batch + 1, both.data<std::int32_t>());
  write_places(given.host(), SequenceSchedule(given.host(), batch),
               both.data<std::int32_t>() + batch + 1);
  both = copy_to(both, device, DType::int32);
  both.storage()->writable = false;
  kept.cu_seqlens_ = both.slice(0, 0, batch + 1);
  kept.places_ = both.slice(0, batch + 1, both.size(0)).reshape({3, batch});
  return kept;
}

std::int64_t SequenceOffsets::longest() const {
  std::int64_t length = 0;
  for (std::int64_t i = 1; i <= batch(); ++i)
    length = std::max<std::int64_t>(length, host()[i] - host()[i - 1]);
  return length;
}

std::int64_t SequenceOffsets::shortest() const {
  std::int64_t shortest = total();
  for (std::int64_t i = 1; i <= batch(); ++i) {
    const std::int64_t length = host()[i] - host()[i - 1];
    if (length > 0) shortest = std::min(shortest, length);
  }
  return shortest;
}

Tensor SequenceOffsets::places(const SequenceSchedule& schedule) const {
  if (places_) return *places_;
  const Tensor all = Tensor::empty({3, batch()}, DType::int32);
  write_places(host(), schedule, all.data<std::int32_t>());
  return copy_to(all, device(), DType::int32);
}

void SequenceOffsets::check_fit(const char* op, const char* argument, std::int64_t total,
                                Device device) const {
  check_device(op, argument, cu_seqlens_, device);
  check(this->total() == total, op, ": ", argument, " ends at ", this->total(), ", expected the ",
        total, " tokens given");
}

}  // namespace softgate
