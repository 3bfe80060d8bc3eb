// Recurrent layers over a packed batch: Elman's RNN, LSTM (Hochreiter & Schmidhuber 1997, without
// peepholes, with the projection of Sak et al. 2014) and GRU (Cho et al. 2014).
//
//   rnn   h = tanh or relu(W_ih x + b_ih + W_hh h + b_hh)
//   lstm  i, f, o = sigmoid, g = tanh of their rows of W_ih x + b_ih + W_hh h + b_hh
//         c = f * c + i * g, h = o * tanh(c), or h = W_hr (o * tanh(c))
//   gru   r, z = sigmoid of their rows of W_ih x + b_ih + W_hh h + b_hh
//         n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), before the product
//         n = tanh(W_in x + b_in + W_hn (r * h) + b_hn), h = (1 - z) * n + z * h
//
//   x: [total_tokens, input_size], or on the CPU int32 [total_tokens], which stand for rows of the
//   identity matrix: W_ih x is a column of W_ih    cu_seqlens: int32 [batch + 1]
//   out: [total_tokens, directions * output_size], the forward half first
//   h0, h_n: [directions, batch, output_size]    c0, c_n: [directions, batch, hidden_size]
//   h0_rows: int32 [batch], on the CPU: each sequence's row of h0 and c0, which then have any
//   number of rows
//
// output_size is W_hr's number of rows, else hidden_size. A direction that runs in reverse starts
// at each sequence's last token. Missing states are zeros; a sequence of length 0 gives its initial
// state back. out overlaps no input. NaN propagates.
//
// A sum adds, in a fixed order, the input's part and chains of fixed length over the state: results
// do not depend on the batch's other sequences or on the number of threads. With h0_rows a first
// step's chains are added to each other before the input's part. But where
// Kernels::splits, float32 products with x, and with the states of steps of many sequences, are
// formed from parts of the numbers (cpu/bfloat16_parts.h), as accurately.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "ops/linear.h"
#include "ops/sequence_offsets.h"

namespace softgate {

enum class RecurrentKind { rnn_tanh, rnn_relu, lstm, gru, gru_reset_before };

// Of a unit.
constexpr int gates_of(RecurrentKind kind) {
  if (kind == RecurrentKind::lstm) return 4;
  return kind == RecurrentKind::gru || kind == RecurrentKind::gru_reset_before ? 3 : 1;
}

// Weights as kernels read them. A block is panel_width hidden units, the last filled up with zero
// columns; its panels (ops/linear.h), one per gate, follow each other. A GRU's sums are in the
// order n, r, z, and so is its weight_ih.
struct RecurrentPanels {
  const float* weight_ih;  // [blocks, gates, input_size, panel_width]
  const float* bias;       // [blocks, gates, panel_width]
  const void* weight_hh;   // [blocks, gates, output_size, panel_width] of the stored dtype
  const float* scales;     // int8: [blocks, gates, panel_width], else null
  const float* bias_hn;    // gru: [blocks, panel_width], else null
  const float* weight_hr;  // panels of [output_size, hidden_size], or null
};

struct RecurrentDirection {
  RecurrentPanels weights;
  bool reverse;
  const float *h0, *c0;               // [batch, output_size], [batch, hidden_size], or null
  float* out;                         // this direction's columns
  float *h_n, *c_n;                   // h_n: or null
  std::int64_t h0_stride, c0_stride;  // elements between rows
  // Working memory, which the kernel fills.
  float* x;      // [chunk_rows, work_x_stride]
  float* gates;  // sums: [chunk_rows, gates_stride]
  float* h;  // before a step, with runs at first one of each, and after: [2, batch, state_stride]
  float* products;      // with runs, of those: [blocks, batch, gates, panel_width]
  float* intermediate;  // between a step's products: [batch, state_stride]
  float* c;  // [blocks, batch, panel_width]: lstm's state, gru's sums of n's recurrent part
};

// Sequences are taken longest first and a step's rows are those that reach it, so that no padding
// is computed.
struct RecurrentArgs {
  RecurrentKind kind;
  DType dtype;              // of weight_hh
  const float* x;           // or null
  const std::int32_t* ids;  // where x is null: [total_tokens]
  const std::int32_t* cu_seqlens;
  const std::int32_t* order;   // [batch], by falling length
  const std::int32_t* active;  // [steps], how many sequences reach each step
  // Null, or of each sequence its row of h0 and c0; and of the sequences in order, how many changes
  // of those, and of lengths, come before. What is of one run shares its first product.
  const std::int32_t *h0_rows, *runs;  // [batch]
  std::int64_t batch, steps;
  std::int64_t input_size, hidden_size, output_size;
  std::int64_t x_stride, out_stride;
  std::int64_t chunk_rows;  // at most so many rows of steps that follow each other are projected
  std::int64_t work_x_stride, gates_stride, state_stride;  // of the working memory
  bool splits, splits_steps;  // weight_ih and weight_hh, see PanelLinearArgs
  int directions;
  RecurrentDirection direction[2];
};

// What devices take: the steps, after linear has formed the inputs' part of all sums. Weights are
// dense, gates in torch's order.
template <class T>
struct RecurrentRows {
  const T* weight_hh;  // [gates * hidden_size, output_size]
  const T* bias_hn;    // gru: [hidden_size], or null
  const T* weight_hr;  // [output_size, hidden_size], or null
};

template <class T>
struct RecurrentStepsDirection {
  const T* gates;  // [total_tokens, gates * hidden_size], W_ih x and the biases but for b_hn
  RecurrentRows<T> weights;
  const T *h0, *c0;  // [batch, output_size], [batch, hidden_size], or null
  T* out;            // this direction's columns
  T *h_n, *c_n;
  // Working memory, [batch, hidden_size] in the order in which sequences are taken.
  float* carry;     // lstm: c; gru_reset_before: z
  T* intermediate;  // gru_reset_before: r * h; lstm with projection: o * tanh(c); else null
  std::int64_t h0_stride, c0_stride;  // elements between rows
  bool reverse;
};

template <class T>
struct RecurrentStepsArgs {
  RecurrentKind kind;
  // Of the sequences, longest first: place in the batch, first token, length. In device memory.
  const std::int32_t *order, *first, *length;
  const std::int32_t* active;  // [steps], how many sequences reach each step; in host memory
  std::int64_t batch, steps;
  std::int64_t hidden_size, output_size;
  std::int64_t gates_stride, out_stride;  // elements between rows
  int directions;
  RecurrentStepsDirection<T> direction[2];
};

// One panel of float32 to or from a stored dtype.
struct PanelArgs {
  DType dtype;
  float* panel;  // [depth, panel_width]
  void* stored;
  float* scales;  // int8: [panel_width]
  std::int64_t depth;
};

// The weights of one direction of one layer in the layout that the kernels of their device read: on
// the CPU the panels of one ISA, elsewhere rows. Immutable and shared.
class RecurrentWeight {
 public:
  // weight_ih: float32 [gates * hidden, input], weight_hh: [gates * hidden, output], bias_ih and
  // bias_hh: [gates * hidden], weight_hr: [output, hidden], lstm only. Gates in torch's order:
  // i f g o, r z n. dtype, "float32", "bfloat16" or "int8" (a scale per column), is how weight_hh
  // is stored on the CPU. On another device all are there, of one floating dtype, and stay in it.
  RecurrentWeight(const std::string& kind, const Tensor& weight_ih, const Tensor& weight_hh,
                  const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
                  const std::optional<Tensor>& weight_hr, const std::string& dtype);

  // These weights but for weight_ih, of as many rows: what is not replaced is shared. On the CPU.
  RecurrentWeight with_inputs(const Tensor& weight_ih) const;

  // What was given, by name; bit for bit but for a weight_hh stored in fewer bits.
  std::vector<std::pair<std::string, Tensor>> unpack() const;

  RecurrentKind kind() const { return kind_; }
  std::int64_t input_size() const { return input_size_; }
  std::int64_t hidden_size() const { return hidden_size_; }
  std::int64_t output_size() const { return output_size_; }
  DType dtype() const { return dtype_; }
  // weight_ih and weight_hh, see Kernels::splits
  bool splits() const { return splits_; }
  bool splits_steps() const { return splits_steps_; }
  bool projects() const { return weight_hr_.has_value(); }
  Device device() const { return weight_hh_.device(); }
  const std::string& isa() const { return isa_; }  // empty but on the CPU
  std::size_t bytes() const;

  RecurrentPanels panels() const;  // on the CPU
  // Elsewhere: the inputs' product, its bias if there is one, and the steps' part.
  const PackedWeight& input_weight() const { return *input_weight_; }
  const std::optional<Tensor>& input_bias() const { return input_bias_; }
  template <class T>
  RecurrentRows<T> rows() const {
    return {.weight_hh = weight_hh_.data<T>(),
            .bias_hn = bias_hn_ ? bias_hn_->data<T>() : nullptr,
            .weight_hr = weight_hr_ ? weight_hr_->data<T>() : nullptr};
  }

 private:
  template <class Body>
  void for_each_panel(const Body& body) const;
  PanelArgs panel_args(std::int64_t panel, const Tensor& plain) const;
  void pack_rows(const Tensor& weight_ih, const Tensor& weight_hh);
  void add_biases();
  void pack_inputs(const Tensor& weight_ih);
  void pack_recurrent(const Tensor& weight_hh);
  void pack_biases();
  Tensor unpack_inputs() const;
  Tensor unpack_recurrent() const;

  RecurrentKind kind_;
  DType dtype_;
  std::int64_t input_size_, hidden_size_, output_size_;
  std::string isa_;
  bool splits_ = false, splits_steps_ = false;
  std::int64_t panel_width_, blocks_;
  Tensor weight_ih_, weight_hh_, bias_;
  std::optional<Tensor> scales_, bias_hn_;
  std::optional<PackedWeight> weight_hr_;
  std::optional<PackedWeight> input_weight_;
  std::optional<Tensor> input_bias_;
  std::optional<Tensor> bias_ih_given_, bias_hh_given_;
};

const char* name(RecurrentKind kind);

struct RecurrentResult {
  Tensor out, h_n;
  std::optional<Tensor> c_n;  // lstm
};

// What a call with checked arguments does on a device other than the CPU.
void run_on_device(const Tensor& x, const SequenceOffsets& cu_seqlens,
                   const std::vector<const RecurrentWeight*>& weights,
                   const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                   const bool (&reverse)[2], const RecurrentResult& result);

// op is "rnn", "lstm" or "gru". weights: one, or for direction "bidirectional" two. h_n is
// undefined unless the caller wants it.
RecurrentResult recurrent(const char* op, const Tensor& x, const SequenceOffsets& cu_seqlens,
                          const std::vector<const RecurrentWeight*>& weights,
                          const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                          const std::optional<Tensor>& h0_rows, const std::string& direction,
                          std::optional<Tensor> out, bool wants_last = true);

// One step. op is "rnn_cell", "lstm_cell" or "gru_cell"; x: [batch, input_size], h: [batch,
// output_size], c: [batch, hidden_size]. Gives the next h and c.
std::pair<Tensor, std::optional<Tensor>> recurrent_cell(const char* op, const Tensor& x,
                                                        const RecurrentWeight& weight,
                                                        const Tensor& h,
                                                        const std::optional<Tensor>& c);

}  // namespace softgate
