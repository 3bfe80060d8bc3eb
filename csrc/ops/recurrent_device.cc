// Recurrent layers on a device other than the CPU: one product for the inputs of all steps, then
// the kernels of the steps.
#include <algorithm>

#include "ops/dispatch.h"
#include "ops/recurrent.h"

namespace softgate {
namespace {

// The memory that a direction works in; see RecurrentStepsDirection.
struct Workspace {
  Tensor gates;
  std::optional<Tensor> carry, intermediate;

  Workspace(const Tensor& x, const RecurrentWeight& weight, std::int64_t batch)
      : gates(linear(x, weight.input_weight(), weight.input_bias(), "none", std::nullopt,
                     std::nullopt)) {
    const bool before = weight.kind() == RecurrentKind::gru_reset_before;
    const Dims shape = {batch, weight.hidden_size()};
    if (before || weight.kind() == RecurrentKind::lstm)
      carry = Tensor::empty(shape, DType::float32, x.device());
    if (before || weight.projects()) intermediate = Tensor::empty(shape, x.dtype(), x.device());
  }
};

template <class T>
auto kernel_of(RecurrentKind kind) {
  switch (kind) {
    case RecurrentKind::lstm: return &cuda::Kernels<T>::lstm;
    case RecurrentKind::gru:
    case RecurrentKind::gru_reset_before: return &cuda::Kernels<T>::gru;
    default: return &cuda::Kernels<T>::rnn;
  }
}

}  // namespace

void run_on_device(const Tensor& x, const SequenceOffsets& cu_seqlens,
                   const std::vector<const RecurrentWeight*>& weights,
                   const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                   const bool (&reverse)[2], const RecurrentResult& result) {
  const RecurrentWeight& weight = *weights[0];
  const std::int64_t batch = cu_seqlens.batch(), output = weight.output_size();
  const SequenceSchedule schedule(cu_seqlens.host(), batch);
  const Tensor places = cu_seqlens.places(schedule);
  std::vector<Workspace> work;
  for (const RecurrentWeight* each : weights) work.emplace_back(x, *each, batch);

  dispatch(x.dtype(), [&]<class T>(T) {
    RecurrentStepsArgs<T> args{
        .kind = weight.kind(),
        .order = places.select(0, 0).data<std::int32_t>(),
        .first = places.select(0, 1).data<std::int32_t>(),
        .length = places.select(0, 2).data<std::int32_t>(),
        .active = schedule.active.data(),
        .batch = batch,
        .steps = static_cast<std::int64_t>(schedule.active.size()),
        .hidden_size = weight.hidden_size(),
        .output_size = output,
        .gates_stride = gates_of(weight.kind()) * weight.hidden_size(),
        .out_stride = result.out.stride(0),
        .directions = static_cast<int>(weights.size()),
        .direction = {},
    };
    for (int d = 0; d < args.directions; ++d) {
      const Workspace& own = work[static_cast<std::size_t>(d)];
      args.direction[d] = {
          .gates = own.gates.template data<T>(),
          .weights = weights[static_cast<std::size_t>(d)]->template rows<T>(),
          .h0 = h0 ? h0->select(0, d).data<T>() : nullptr,
          .c0 = c0 ? c0->select(0, d).data<T>() : nullptr,
          .out = result.out.data<T>() + d * output,
          .h_n = result.h_n.select(0, d).data<T>(),
          .c_n = result.c_n ? result.c_n->select(0, d).data<T>() : nullptr,
          .carry = own.carry ? own.carry->template data<float>() : nullptr,
          .intermediate = own.intermediate ? own.intermediate->template data<T>() : nullptr,
          .h0_stride = h0 ? h0->stride(1) : 0,
          .c0_stride = c0 ? c0->stride(1) : 0,
          .reverse = reverse[d],
      };
    }
    const cuda::Kernels<T>& kernels = cuda::kernels<T>(x.device());
    (kernels.*kernel_of<T>(weight.kind()))(args, current_stream(x.device()));
  });
}

}  // namespace softgate
