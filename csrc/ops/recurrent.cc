#include "ops/recurrent.h"

#include <algorithm>
#include <numeric>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"

namespace softgate {
namespace {

// Of the sums of a chunk of steps, which stay in cache from the input's product to the steps.
constexpr std::int64_t kChunkBytes = 1 << 20;
constexpr std::int64_t kMinChunkRows = 128;
constexpr std::int64_t kLineFloats = 16;

std::int64_t round_up(std::int64_t x, std::int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Floats between rows such that equal columns of several rows do not share a set of the cache.
std::int64_t spread(std::int64_t columns) { return round_up(columns, kLineFloats) + kLineFloats; }

bool fits(const std::string& layer, RecurrentKind kind) {
  switch (kind) {
    case RecurrentKind::rnn_tanh:
    case RecurrentKind::rnn_relu: return layer == "rnn";
    case RecurrentKind::lstm: return layer == "lstm";
    case RecurrentKind::gru:
    case RecurrentKind::gru_reset_before: return layer == "gru";
  }
  return false;
}

struct Directions {
  int count;
  bool reverse[2];
};

Directions parse_direction(const char* op, const std::string& text) {
  if (text == "forward") return {1, {false}};
  if (text == "reverse") return {1, {true}};
  check(text == "bidirectional", op, ": direction is '", text,
        "', expected 'forward', 'reverse' or 'bidirectional'");
  return {2, {false, true}};
}

void check_weight(const char* op, const char* argument, const std::string& layer,
                  const RecurrentWeight& weight, Device device) {
  check(weight.device() == device, op, ": ", argument, " is on ", weight.device(), ", expected ",
        device);
  check(device.kind != DeviceKind::cpu || cpu::reads_packed(weight.isa()), op, ": ", argument,
        " was packed for ", weight.isa(), ", the ISA in use is ", cpu::isa());
  check(fits(layer, weight.kind()), op, ": ", argument, " is of kind ", name(weight.kind()),
        ", expected ",
        layer == "rnn"    ? "rnn_tanh or rnn_relu"
        : layer == "lstm" ? "lstm"
                          : "gru or gru_reset_before");
}

void check_pair(const char* op, const RecurrentWeight& forward, const RecurrentWeight& reverse) {
  check(forward.kind() == reverse.kind() && forward.dtype() == reverse.dtype(), op,
        ": weights is a pair of kinds ", name(forward.kind()), " and ", name(reverse.kind()),
        " in ", name(forward.dtype()), " and ", name(reverse.dtype()), ", expected equal ones");
  const auto sizes = [](const RecurrentWeight& weight) {
    return Dims{weight.input_size(), weight.hidden_size(), weight.output_size()};
  };
  check(sizes(forward) == sizes(reverse), op,
        ": weights is a pair of input, hidden and output sizes ", sizes(forward), " and ",
        sizes(reverse), ", expected equal ones");
}

// What x, the states and the results are made of.
DType element_type(const RecurrentWeight& weight) {
  return weight.device().kind == DeviceKind::cpu ? DType::float32 : weight.dtype();
}

bool are_ids(const Tensor& x) {
  return x.dtype() == DType::int32 && x.dim() == 1 && x.device().kind == DeviceKind::cpu;
}

void check_ids(const char* op, const Tensor& x, std::int64_t input_size) {
  const auto* ids = x.data<std::int32_t>();
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    if (ids[i] < 0 || ids[i] >= input_size) [[unlikely]]
      check(false, op, ": x[", i, "] is ", ids[i], ", expected 0 <= id < ", input_size);
  }
}

void check_input(const char* op, const Tensor& x, const RecurrentWeight& weight) {
  if (are_ids(x)) return check_ids(op, x, weight.input_size());
  const DType dtype = element_type(weight);
  check_type(x.dtype() == dtype, op, ": x has dtype ", name(x.dtype()), ", expected ", name(dtype));
  check(x.dim() == 2 && x.size(1) == weight.input_size(), op, ": x has shape ", x.shape(),
        ", expected [any, ", weight.input_size(), "]");
}

// A state's shape is checked; strides between directions and rows are free.
void check_state(const char* op, const char* argument, const std::optional<Tensor>& state,
                 const RecurrentWeight& weight, const Dims& shape) {
  if (state) check_tensor(op, argument, *state, element_type(weight), shape, weight.device());
}

void check_rows(const char* op, const Tensor& h0_rows, std::int64_t batch,
                const std::optional<Tensor>& h0, Device device) {
  check(device.kind == DeviceKind::cpu, op, ": h0_rows is for the CPU, x is on ", device);
  check(h0.has_value(), op, ": h0_rows without h0, whose rows they are");
  check_tensor(op, "h0_rows", h0_rows, DType::int32, {batch}, device);
  const auto* rows = h0_rows.data<std::int32_t>();
  const std::int64_t states = h0->size(1);
  for (std::int64_t i = 0; i < batch; ++i) {
    if (rows[i] < 0 || rows[i] >= states) [[unlikely]]
      check(false, op, ": h0_rows[", i, "] is ", rows[i], ", expected 0 <= row < ", states,
            ", the rows of h0");
  }
}

// Sequences by their rows of h0.
std::vector<std::int32_t> by_rows(const Tensor& h0_rows, std::int64_t states) {
  const auto* rows = h0_rows.data<std::int32_t>();
  const auto batch = static_cast<std::int32_t>(h0_rows.size(0));
  std::vector<std::int32_t> places(static_cast<std::size_t>(states) + 1);
  for (std::int32_t i = 0; i < batch; ++i) ++places[static_cast<std::size_t>(rows[i]) + 1];
  std::partial_sum(places.begin(), places.end(), places.begin());
  std::vector<std::int32_t> sequences(static_cast<std::size_t>(batch));
  for (std::int32_t i = 0; i < batch; ++i) {
    std::int32_t& place = places[static_cast<std::size_t>(rows[i])];
    sequences[static_cast<std::size_t>(place++)] = i;
  }
  return sequences;
}

// See RecurrentArgs.
std::vector<std::int32_t> runs_of(const std::int32_t* h0_rows, const std::int32_t* cu_seqlens,
                                  const std::vector<std::int32_t>& order) {
  const auto key = [=](std::int32_t i) {
    return std::pair(cu_seqlens[i] - cu_seqlens[i + 1], h0_rows[i]);
  };
  std::vector<std::int32_t> runs(order.size());
  for (std::size_t i = 1; i < order.size(); ++i)
    runs[i] = runs[i - 1] + (key(order[i]) != key(order[i - 1]));
  return runs;
}

// The memory that a call works in; see RecurrentDirection.
struct Workspace {
  Tensor x, gates, h, products, intermediate, c;

  Workspace(const RecurrentArgs& args, std::int64_t blocks) {
    const std::int64_t width = cpu::kernels().panel_width;
    if (args.x) x = Tensor::empty({args.chunk_rows, args.work_x_stride});
    gates = Tensor::empty({args.chunk_rows, args.gates_stride});
    h = Tensor::empty({2, args.batch, args.state_stride});
    if (args.runs) products = Tensor::empty({blocks, args.batch, gates_of(args.kind) * width});
    intermediate = Tensor::empty({args.batch, args.state_stride});
    c = Tensor::empty({blocks, args.batch, width});
  }
};

void run(const RecurrentArgs& args) {
  const cpu::Kernels& kernels = cpu::kernels();
  switch (args.kind) {
    case RecurrentKind::rnn_tanh:
    case RecurrentKind::rnn_relu: return kernels.rnn(args);
    case RecurrentKind::lstm: return kernels.lstm(args);
    case RecurrentKind::gru:
    case RecurrentKind::gru_reset_before: return kernels.gru(args);
  }
}

}  // namespace

RecurrentResult recurrent(const char* op, const Tensor& x, const SequenceOffsets& cu_seqlens,
                          const std::vector<const RecurrentWeight*>& weights,
                          const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                          const std::optional<Tensor>& h0_rows, const std::string& direction,
                          std::optional<Tensor> out, bool wants_last) {
  const Directions directions = parse_direction(op, direction);
  const auto count = static_cast<std::size_t>(directions.count);
  check(weights.size() == count, op, ": weights are ", weights.size(), " for direction '",
        direction, "', expected ", count);
  const RecurrentWeight& weight = *weights[0];
  const Device device = x.device();
  for (const RecurrentWeight* each : weights) check_weight(op, "weights", op, *each, device);
  check_pair(op, weight, *weights[count - 1]);
  check_input(op, x, weight);
  cu_seqlens.check_fit(op, "cu_seqlens", x.size(0), device);
  const std::int64_t batch = cu_seqlens.batch();
  const std::int64_t hidden = weight.hidden_size(), output = weight.output_size();
  check_state(op, "h0", h0, weight, {directions.count, h0_rows ? -1 : batch, output});
  if (h0_rows) check_rows(op, *h0_rows, batch, h0, device);
  const std::int64_t states = h0_rows ? h0->size(1) : batch;
  check_state(op, "c0", c0, weight, {directions.count, states, hidden});

  RecurrentResult result;
  const DType dtype = element_type(weight);
  result.out =
      resolve_out(op, std::move(out), dtype, {x.size(0), directions.count * output}, device);
  check_overlap(op, result.out, "x", x, false);
  check_overlap(op, result.out, "cu_seqlens", cu_seqlens.cu_seqlens(), false);
  if (h0) check_overlap(op, result.out, "h0", *h0, false);
  if (c0) check_overlap(op, result.out, "c0", *c0, false);
  if (h0_rows) check_overlap(op, result.out, "h0_rows", *h0_rows, false);
  result.h_n = Tensor::empty({directions.count, batch, output}, dtype, device);
  if (weight.kind() == RecurrentKind::lstm)
    result.c_n = Tensor::empty({directions.count, batch, hidden}, dtype, device);
  if (device.kind != DeviceKind::cpu) {
    run_on_device(x, cu_seqlens, weights, h0, c0, directions.reverse, result);
    return result;
  }

  // Of one length, those that share a state come together.
  const SequenceSchedule schedule =
      h0_rows ? SequenceSchedule(cu_seqlens.host(), by_rows(*h0_rows, states))
              : SequenceSchedule(cu_seqlens.host(), batch);
  const std::int32_t* state_rows = h0_rows ? h0_rows->data<std::int32_t>() : nullptr;
  std::vector<std::int32_t> runs;
  if (state_rows) runs = runs_of(state_rows, cu_seqlens.host(), schedule.order);
  const std::int64_t width = cpu::kernels().panel_width;
  const std::int64_t blocks = (hidden + width - 1) / width;
  const std::int64_t gates_stride = spread(blocks * gates_of(weight.kind()) * width);
  const std::int64_t rows = std::max(kMinChunkRows, kChunkBytes / (gates_stride * 4));
  RecurrentArgs args{
      .kind = weight.kind(),
      .dtype = weight.dtype(),
      .x = are_ids(x) ? nullptr : x.data<float>(),
      .ids = are_ids(x) ? x.data<std::int32_t>() : nullptr,
      .cu_seqlens = cu_seqlens.host(),
      .order = schedule.order.data(),
      .active = schedule.active.data(),
      .h0_rows = state_rows,
      .runs = state_rows ? runs.data() : nullptr,
      .batch = batch,
      .steps = static_cast<std::int64_t>(schedule.active.size()),
      .input_size = weight.input_size(),
      .hidden_size = hidden,
      .output_size = output,
      .x_stride = x.stride(0),
      .out_stride = result.out.stride(0),
      .chunk_rows = std::max(batch, std::min(rows, x.size(0))),
      .work_x_stride = spread(weight.input_size()),
      .gates_stride = gates_stride,
      .state_stride = spread(round_up(std::max(hidden, output), width)),
      .splits = cpu::kernels().splits && weight.splits() && weights[count - 1]->splits(),
      .splits_steps =
          cpu::kernels().splits && weight.splits_steps() && weights[count - 1]->splits_steps(),
      .directions = directions.count,
      .direction = {},
  };
  std::vector<Workspace> workspaces;
  for (int d = 0; d < directions.count; ++d) {
    const Workspace& work = workspaces.emplace_back(args, blocks);
    args.direction[d] = {
        .weights = weights[static_cast<std::size_t>(d)]->panels(),
        .reverse = directions.reverse[d],
        .h0 = h0 ? h0->select(0, d).data<float>() : nullptr,
        .c0 = c0 ? c0->select(0, d).data<float>() : nullptr,
        .out = result.out.data<float>() + d * output,
        .h_n = wants_last ? result.h_n.select(0, d).data<float>() : nullptr,
        .c_n = result.c_n ? result.c_n->select(0, d).data<float>() : nullptr,
        .h0_stride = h0 ? h0->stride(1) : 0,
        .c0_stride = c0 ? c0->stride(1) : 0,
        .x = args.x ? work.x.data<float>() : nullptr,
        .gates = work.gates.data<float>(),
        .h = work.h.data<float>(),
        .products = state_rows ? work.products.data<float>() : nullptr,
        .intermediate = work.intermediate.data<float>(),
        .c = work.c.data<float>(),
    };
  }
  run(args);
  return result;
}

std::pair<Tensor, std::optional<Tensor>> recurrent_cell(const char* op, const Tensor& x,
                                                        const RecurrentWeight& weight,
                                                        const Tensor& h,
                                                        const std::optional<Tensor>& c) {
  const std::string text = op;
  const std::string layer = text.substr(0, text.find('_'));
  check_weight(op, "weight", layer, weight, x.device());
  check_input(op, x, weight);
  const std::int64_t batch = x.size(0);
  check_tensor(op, "h", h, element_type(weight), {batch, weight.output_size()}, x.device());
  check_state(op, "c", c, weight, {batch, weight.hidden_size()});
  const Tensor each = Tensor::empty({batch + 1}, DType::int32);
  auto* offsets = each.data<std::int32_t>();
  std::iota(offsets, offsets + batch + 1, 0);
  const auto cu_seqlens = x.device().kind == DeviceKind::cpu
                              ? SequenceOffsets(op, "x", each)
                              : SequenceOffsets::on(x.device(), op, "x", each);
  const auto stacked = [](const Tensor& state) {
    return state.reshape({1, state.size(0), state.size(1)});
  };
  std::optional<Tensor> c0;
  if (c) c0 = stacked(*c);
  RecurrentResult result = recurrent(layer.c_str(), x, cu_seqlens, {&weight}, stacked(h), c0,
                                     std::nullopt, "forward", std::nullopt, false);
  return {std::move(result.out), result.c_n ? std::optional(result.c_n->select(0, 0)) : c};
}

}  // namespace softgate
