#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"
#include "ops/recurrent.h"

namespace softgate {
namespace {

constexpr std::array kKinds = {RecurrentKind::rnn_tanh, RecurrentKind::rnn_relu,
                               RecurrentKind::lstm, RecurrentKind::gru,
                               RecurrentKind::gru_reset_before};

RecurrentKind parse_kind(const std::string& text) {
  for (const RecurrentKind kind : kKinds) {
    if (text == name(kind)) return kind;
  }
  check(false, "pack_recurrent: kind is '", text,
        "', expected 'rnn_tanh', 'rnn_relu', 'lstm', 'gru' or 'gru_reset_before'");
  return RecurrentKind::lstm;
}

DType parse_dtype(const std::string& text) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::int8}) {
    if (text == name(dtype)) return dtype;
  }
  check(false, "pack_recurrent: dtype is '", text, "', expected 'float32', 'bfloat16' or 'int8'");
  return DType::float32;
}

// Which of torch's gates is at a place of weight_ih (see RecurrentPanels).
int input_gate(RecurrentKind kind, int place) {
  return gates_of(kind) == 3 ? (place + 2) % 3 : place;
}

bool rows_split(const Tensor& weight) {
  return cpu::kernels().splits && cpu::kernels().splits({.weight = weight.data<float>(),
                                                         .packed = nullptr,
                                                         .in_features = weight.size(1),
                                                         .out_features = weight.size(0),
                                                         .weight_stride = weight.stride(0)});
}

Tensor zeros(const Dims& shape) {
  Tensor tensor = Tensor::empty(shape);
  std::memset(tensor.raw(), 0, tensor.bytes());
  return tensor;
}

}  // namespace

const char* name(RecurrentKind kind) {
  switch (kind) {
    case RecurrentKind::rnn_tanh: return "rnn_tanh";
    case RecurrentKind::rnn_relu: return "rnn_relu";
    case RecurrentKind::lstm: return "lstm";
    case RecurrentKind::gru: return "gru";
    case RecurrentKind::gru_reset_before: return "gru_reset_before";
  }
  return "unknown";
}

RecurrentWeight::RecurrentWeight(const std::string& kind, const Tensor& weight_ih,
                                 const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
                                 const std::optional<Tensor>& bias_hh,
                                 const std::optional<Tensor>& weight_hr, const std::string& dtype)
    : kind_(parse_kind(kind)), dtype_(parse_dtype(dtype)) {
  const char* op = "pack_recurrent";
  const int gates = gates_of(kind_);
  const Device device = weight_ih.device();
  const DType given = check_float(op, "weight_ih", weight_ih);
  check_tensor(op, "weight_ih", weight_ih, given, {-1, -1}, device);
  const std::int64_t rows = weight_ih.size(0);
  check(rows > 0 && rows % gates == 0 && weight_ih.size(1) > 0, op, ": weight_ih has shape ",
        weight_ih.shape(), ", expected ", gates, " * hidden_size rows for kind '", kind,
        "' and at least one column");
  input_size_ = weight_ih.size(1);
  hidden_size_ = output_size_ = rows / gates;
  if (weight_hr) {
    check(kind_ == RecurrentKind::lstm, op, ": weight_hr is given for kind '", kind,
          "', expected it for 'lstm' only");
    check_tensor(op, "weight_hr", *weight_hr, given, {-1, hidden_size_}, device);
    output_size_ = weight_hr->size(0);
    check(output_size_ > 0, op, ": weight_hr has no rows");
  }
  check_tensor(op, "weight_hh", weight_hh, given, {rows, output_size_}, device);
  if (bias_ih) check_tensor(op, "bias_ih", *bias_ih, given, {rows}, device);
  if (bias_hh) check_tensor(op, "bias_hh", *bias_hh, given, {rows}, device);
  if (bias_ih) bias_ih_given_ = copy_to(*bias_ih, device, given);
  if (bias_hh) bias_hh_given_ = copy_to(*bias_hh, device, given);
  if (weight_hr) weight_hr_.emplace(*weight_hr);
  if (device.kind != DeviceKind::cpu) {
    check(dtype_ == DType::float32 || dtype_ == given, op, ": dtype is '", dtype, "' on ", device,
          ", expected that of the weights, ", name(given));
    dtype_ = given;
    pack_rows(weight_ih, weight_hh);
    return;
  }
  isa_ = cpu::isa();
  panel_width_ = cpu::kernels().panel_width;
  blocks_ = (hidden_size_ + panel_width_ - 1) / panel_width_;
  pack_inputs(weight_ih);
  pack_recurrent(weight_hh);
  pack_biases();
}

void RecurrentWeight::pack_rows(const Tensor& weight_ih, const Tensor& weight_hh) {
  input_weight_.emplace(weight_ih);
  weight_hh_ = copy_to(weight_hh, weight_hh.device(), dtype_);
  if (bias_ih_given_ || bias_hh_given_) add_biases();
}

// On the host, in float32.
void RecurrentWeight::add_biases() {
  const std::int64_t rows = gates_of(kind_) * hidden_size_;
  const Tensor sum = zeros({rows}), recurrent = zeros({hidden_size_});
  const auto add = [](const Tensor& from, std::int64_t first, const Tensor& to) {
    for (std::int64_t i = 0; i < to.numel(); ++i)
      to.data<float>()[i] += from.data<float>()[first + i];
  };
  if (bias_ih_given_) add(copy_to(*bias_ih_given_, {}, DType::float32), 0, sum);
  if (bias_hh_given_) {
    const Tensor hh = copy_to(*bias_hh_given_, {}, DType::float32);
    const bool apart = kind_ == RecurrentKind::gru;
    add(hh, 0, apart ? sum.slice(0, 0, 2 * hidden_size_) : sum);
    if (apart) {
      add(hh, 2 * hidden_size_, recurrent);
      bias_hn_ = copy_to(recurrent, device(), dtype_);
    }
  }
  input_bias_ = copy_to(sum, device(), dtype_);
}

// body(block, gate, first row of torch's gate, rows)
template <class Body>
void RecurrentWeight::for_each_panel(const Body& body) const {
  for (std::int64_t block = 0; block < blocks_; ++block) {
    const std::int64_t unit = block * panel_width_;
    const std::int64_t units = std::min(panel_width_, hidden_size_ - unit);
    for (int gate = 0; gate < gates_of(kind_); ++gate)
      body(block * gates_of(kind_) + gate, gate, unit, units);
  }
}

RecurrentWeight RecurrentWeight::with_inputs(const Tensor& weight_ih) const {
  const char* op = "with_inputs";
  check(device().kind == DeviceKind::cpu, op, ": weight is on ", device(), ", expected cpu");
  check(cpu::reads_packed(isa_), op, ": weight was packed for ", isa_, ", the ISA in use is ",
        cpu::isa());
  check_tensor(op, "weight_ih", weight_ih, DType::float32, {gates_of(kind_) * hidden_size_, -1});
  check(weight_ih.size(1) > 0, op, ": weight_ih has no columns");
  RecurrentWeight changed = *this;
  changed.input_size_ = weight_ih.size(1);
  changed.pack_inputs(weight_ih);
  return changed;
}

void RecurrentWeight::pack_inputs(const Tensor& weight) {
  splits_ = rows_split(weight);
  weight_ih_ = Tensor::empty({blocks_ * gates_of(kind_), input_size_, panel_width_});
  for_each_panel([&](std::int64_t panel, int place, std::int64_t unit, std::int64_t units) {
    const std::int64_t row = input_gate(kind_, place) * hidden_size_ + unit;
    cpu::kernels().pack({.weight = weight.data<float>() + row * weight.stride(0),
                         .packed = weight_ih_.select(0, panel).data<float>(),
                         .in_features = input_size_,
                         .out_features = units,
                         .weight_stride = weight.stride(0)});
  });
}

Tensor RecurrentWeight::unpack_inputs() const {
  Tensor weight = Tensor::empty({gates_of(kind_) * hidden_size_, input_size_});
  for_each_panel([&](std::int64_t panel, int place, std::int64_t unit, std::int64_t units) {
    const std::int64_t row = input_gate(kind_, place) * hidden_size_ + unit;
    cpu::kernels().unpack({.weight = weight.data<float>() + row * input_size_,
                           .packed = weight_ih_.select(0, panel).data<float>(),
                           .in_features = input_size_,
                           .out_features = units,
                           .weight_stride = input_size_});
  });
  return weight;
}

void RecurrentWeight::pack_recurrent(const Tensor& weight) {
  splits_steps_ = dtype_ == DType::float32 && rows_split(weight);
  const std::int64_t panels = blocks_ * gates_of(kind_);
  const auto bytes =
      static_cast<std::int64_t>(cpu::kernels().stored_panel_bytes(dtype_, output_size_));
  weight_hh_ = Tensor::empty({panels, bytes}, DType::int8);
  if (dtype_ == DType::int8) scales_ = Tensor::empty({panels, panel_width_});
  const Tensor plain = Tensor::empty({output_size_, panel_width_});
  for_each_panel([&](std::int64_t panel, int gate, std::int64_t unit, std::int64_t units) {
    const std::int64_t row = gate * hidden_size_ + unit;
    cpu::kernels().pack({.weight = weight.data<float>() + row * weight.stride(0),
                         .packed = plain.data<float>(),
                         .in_features = output_size_,
                         .out_features = units,
                         .weight_stride = weight.stride(0)});
    cpu::kernels().store_panel(panel_args(panel, plain));
  });
}

Tensor RecurrentWeight::unpack_recurrent() const {
  Tensor weight = Tensor::empty({gates_of(kind_) * hidden_size_, output_size_});
  const Tensor plain = Tensor::empty({output_size_, panel_width_});
  for_each_panel([&](std::int64_t panel, int gate, std::int64_t unit, std::int64_t units) {
    cpu::kernels().restore_panel(panel_args(panel, plain));
    const std::int64_t row = gate * hidden_size_ + unit;
    cpu::kernels().unpack({.weight = weight.data<float>() + row * output_size_,
                           .packed = plain.data<float>(),
                           .in_features = output_size_,
                           .out_features = units,
                           .weight_stride = output_size_});
  });
  return weight;
}

PanelArgs RecurrentWeight::panel_args(std::int64_t panel, const Tensor& plain) const {
  return {.dtype = dtype_,
          .panel = plain.data<float>(),
          .stored = weight_hh_.select(0, panel).raw(),
          .scales = scales_ ? scales_->select(0, panel).data<float>() : nullptr,
          .depth = output_size_};
}

void RecurrentWeight::pack_biases() {
  const float* ih = bias_ih_given_ ? bias_ih_given_->data<float>() : nullptr;
  const float* hh = bias_hh_given_ ? bias_hh_given_->data<float>() : nullptr;
  const bool apart = kind_ == RecurrentKind::gru;
  bias_ = zeros({blocks_ * gates_of(kind_), panel_width_});
  if (apart) bias_hn_ = zeros({blocks_, panel_width_});
  for_each_panel([&](std::int64_t panel, int place, std::int64_t unit, std::int64_t units) {
    const int gate = input_gate(kind_, place);
    const std::int64_t row = gate * hidden_size_ + unit;
    auto* bias = bias_.select(0, panel).data<float>();
    auto* recurrent =
        apart && gate == 2 ? bias_hn_->select(0, unit / panel_width_).data<float>() : bias;
    for (std::int64_t i = 0; i < units; ++i) {
      if (ih) bias[i] += ih[row + i];
      if (hh) recurrent[i] += hh[row + i];
    }
  });
}

std::vector<std::pair<std::string, Tensor>> RecurrentWeight::unpack() const {
  const bool on_cpu = device().kind == DeviceKind::cpu;
  check(!on_cpu || cpu::reads_packed(isa_), "unpack: weight was packed for ", isa_,
        ", the ISA in use is ", cpu::isa());
  const auto copy = [](const Tensor& tensor) {
    return copy_to(tensor, tensor.device(), tensor.dtype());
  };
  std::vector<std::pair<std::string, Tensor>> all;
  all.emplace_back("weight_ih", on_cpu ? unpack_inputs() : input_weight_->unpack());
  all.emplace_back("weight_hh", on_cpu ? unpack_recurrent() : copy(weight_hh_));
  if (bias_ih_given_) all.emplace_back("bias_ih", copy(*bias_ih_given_));
  if (bias_hh_given_) all.emplace_back("bias_hh", copy(*bias_hh_given_));
  if (weight_hr_) all.emplace_back("weight_hr", weight_hr_->unpack());
  return all;
}

std::size_t RecurrentWeight::bytes() const {
  std::size_t sum = weight_ih_.bytes() + weight_hh_.bytes() + bias_.bytes();
  for (const auto& part : {scales_, bias_hn_, bias_ih_given_, bias_hh_given_, input_bias_}) {
    if (part) sum += part->bytes();
  }
  for (const auto& part : {weight_hr_, input_weight_}) {
    if (part) sum += part->bytes();
  }
  return sum;
}

RecurrentPanels RecurrentWeight::panels() const {
  return {.weight_ih = weight_ih_.data<float>(),
          .bias = bias_.data<float>(),
          .weight_hh = weight_hh_.raw(),
          .scales = scales_ ? scales_->data<float>() : nullptr,
          .bias_hn = bias_hn_ ? bias_hn_->data<float>() : nullptr,
          .weight_hr = weight_hr_ ? weight_hr_->data<float>() : nullptr};
}

}  // namespace softgate
