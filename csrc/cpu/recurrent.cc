// Recurrent layers, step by step. Each member of a team owns some blocks of hidden units for the
// whole sequence, so that their weights stay in its cache where they fit, and meets the others once
// or twice a step.
#include "cpu/recurrent.h"

#include "core/parallel.h"
#include "cpu/rows.h"
#include "cpu/tile.h"
#include "ops/linear.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear(const LinearArgs& args);

namespace {

// Up to so many rows one panel's accumulators are too few to hide the latency of an addition, and
// several panels are multiplied at once: as many as there are registers for.
constexpr int kFewRows = 3;
constexpr int kPanelsAtOnce = 4;
template <int Rows>
constexpr int kPanelsFor = Rows == 1 || kLanes == 16 ? kPanelsAtOnce : 2;

constexpr std::int64_t kLineBytes = 64;

constexpr std::int64_t kProjectionSliceDepth = 16;

// Multiply-adds per step and member that are worth a barrier.
constexpr std::int64_t kMemberWork = 32 << 10;

// Weights that stay in a core's own cache beside what else a step touches.
constexpr std::int64_t kCachedBytes = 3 << 19;

SG_INLINE std::int64_t part_begin(std::int64_t size, std::int64_t parts, std::int64_t i) {
  return size * i / parts;
}

// A panel and the sums it adds to.
struct Target {
  const void* panel;
  const float* scales;  // of an int8 panel's columns
  float* sums;          // [rows, kPanel], sums_stride between rows
};

struct Range {
  std::int64_t begin, end;
};

struct Operand {
  const float* a;  // [rows, depth]
  std::int64_t stride, rows, depth;
  std::int64_t slice_depth = kSliceDepth;  // at most
};

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls f with the Constant n, in [1, N].
template <int N, class F>
SG_INLINE void with_constant(std::int64_t n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_constant<N - 1>(n, f);
  }
  f(Constant<N>{});
}

// Calls f(Constant rows, Constant panels, first target) for groups of the targets.
template <class F>
SG_INLINE void for_few_rows(std::int64_t rows, const Target* targets, int count, const F& f) {
  with_constant<kFewRows>(rows, [&](auto r) {
    constexpr int kPanels = kPanelsFor<decltype(r)::value>;
    for (int i = 0; i < count; i += kPanels)
      with_constant<kPanels>(min_int(kPanels, count - i), [&](auto p) { f(r, p, targets + i); });
  });
}

// How a panel of floating-point weights is stored.
struct Float32 {
  using Element = float;
  static constexpr std::int64_t kRow = kPanel;  // elements
  SG_INLINE void load_row(const float* p, vf& b0, vf& b1) {
    b0 = load(p);
    b1 = load(p + kLanes);
  }
};
struct BFloat16 {
  using Element = std::uint32_t;  // two values
  static constexpr std::int64_t kRow = kLanes;
  SG_INLINE void load_row(const std::uint32_t* p, vf& b0, vf& b1) { load_bfloat16(p, b0, b1); }
};

// A sum is built from slices of the depth, each a chain that starts at zero: a chain that starts at
// the input's part, which is often large, would round to that part's precision at every step.
SG_INLINE std::int64_t slices_of(const Operand& x) { return ceil_div(x.depth, x.slice_depth); }
SG_INLINE Range slice_of(const Operand& x, std::int64_t s) {
  const std::int64_t slices = slices_of(x);
  return {part_begin(x.depth, slices, s), part_begin(x.depth, slices, s + 1)};
}

// sums += a slice of a @ panel, for all R rows and P panels at once.
template <class Format, int R, int P>
SG_INLINE void add_slice(const Operand& x, const Target* targets, std::int64_t sums_stride,
                         Range slice) {
  vf c[R][P][2];
  const typename Format::Element* panel[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    panel[p] = static_cast<const typename Format::Element*>(targets[p].panel);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) c[r][p][0] = c[r][p][1] = zero();
  }
  for (std::int64_t k = slice.begin; k < slice.end; ++k) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      vf b0, b1;
      Format::load_row(panel[p] + k * Format::kRow, b0, b1);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf value = set1(x.a[r * x.stride + k]);
        c[r][p][0] = fma(value, b0, c[r][p][0]);
        c[r][p][1] = fma(value, b1, c[r][p][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* sums = targets[p].sums + r * sums_stride;
      store(sums, add(load(sums), c[r][p][0]));
      store(sums + kLanes, add(load(sums + kLanes), c[r][p][1]));
    }
  }
}

template <class Format, int R, int P>
void add_few(const Operand& x, const Target* targets, std::int64_t sums_stride) {
  for (std::int64_t s = 0; s < slices_of(x); ++s)
    add_slice<Format, R, P>(x, targets, sums_stride, slice_of(x, s));
}

// A slice of a panel as float32: in place, or widened for all the rows that pass over it.
SG_INLINE const float* widen(Float32, const float* panel, std::int64_t) { return panel; }
SG_INLINE const float* widen(BFloat16, const std::uint32_t* panel, std::int64_t depth) {
  auto* slice =
      static_cast<float*>(scratch(static_cast<std::size_t>(kSliceDepth * kPanel * kFloat)));
  for (std::int64_t k = 0; k < depth; ++k) {
    vf b0, b1;
    load_bfloat16(panel + k * kLanes, b0, b1);
    store(slice + k * kPanel, b0);
    store(slice + k * kPanel + kLanes, b1);
  }
  return slice;
}

// Many rows and one panel, a slice of which stays in L1 while rows pass over it.
template <class Format>
void add_many(const Operand& x, const Target& target, std::int64_t sums_stride) {
  const auto* panel = static_cast<const typename Format::Element*>(target.panel);
  const std::int64_t tiles = ceil_div(x.rows, kTileRows);
  for (std::int64_t s = 0; s < slices_of(x); ++s) {
    const Range part = slice_of(x, s);
    const std::int64_t depth = part.end - part.begin;
    const float* slice = widen(Format(), panel + part.begin * Format::kRow, depth);
    // The next slice, or the next panel: they follow each other.
    const auto* next = reinterpret_cast<const float*>(panel + part.end * Format::kRow);
    const std::int64_t lines =
        depth * Format::kRow * static_cast<std::int64_t>(sizeof *panel) / kLineBytes;
    const std::int64_t steps = max_int(1, depth / kPrefetchSteps) * tiles;
    Prefetch ahead{next, static_cast<int>(ceil_div(lines, steps))};
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t row = part_begin(x.rows, tiles, t);
      with_rows(part_begin(x.rows, tiles, t + 1) - row, [&](auto tile) {
        clear(tile);
        multiply(tile, x.a + row * x.stride + part.begin, x.stride, slice, depth, ahead);
        add_to(tile, target.sums + row * sums_stride, sums_stride);
      });
    }
  }
}

// The product of a state with panels of floating-point weights.
template <class Format>
class FloatProduct {
 public:
  explicit FloatProduct(const Operand& x) : x_(x) {
    // Other cores have just written most of it; many rows wait less for it.
    for (std::int64_t r = 0; x.rows <= kFewRows && r < x.rows; ++r)
      for (std::int64_t k = 0; k < x.depth; k += kLineFloats)
        __builtin_prefetch(x.a + r * x.stride + k, 0, 3);
  }

  void add(const Target* targets, int count, std::int64_t sums_stride) const {
    if (x_.rows > kFewRows) {
      for (int i = 0; i < count; ++i) add_many<Format>(x_, targets[i], sums_stride);
      return;
    }
    for_few_rows(x_.rows, targets, count, [&](auto rows, auto panels, const Target* group) {
      add_few<Format, decltype(rows)::value, decltype(panels)::value>(x_, group, sums_stride);
    });
  }

 private:
  Operand x_;
};

// From values of at most `largest` to integers of at most 127; what is so small that the factor
// would be infinite becomes zero.
SG_INLINE float int8_factor(float largest) { return largest > 1e-36f ? 127.0f / largest : 0.0f; }

// The product of a state with panels of int8 weights, exact in integers but for the rounding of
// each row of the state to multiples of its largest magnitude / 127.
class Int8Product {
 public:
  explicit Int8Product(const Operand& x)
      : rows_(x.rows), depth_(ceil_div(x.depth, kDotDepth) * kDotDepth) {
    const std::int64_t element = sizeof(DotElement);
    auto* block = static_cast<char*>(
        scratch(static_cast<std::size_t>(rows_ * (stride() * element + 2 * kFloat))));
    quantised_ = reinterpret_cast<DotElement*>(block);
    scales_ = reinterpret_cast<float*>(block + rows_ * stride() * element);
    starts_ = reinterpret_cast<std::int32_t*>(scales_ + rows_);
    for (std::int64_t row = 0; row < rows_; ++row) quantise(x.a + row * x.stride, x.depth, row);
  }

  void add(const Target* targets, int count, std::int64_t sums_stride) const {
    if (rows_ <= kFewRows) {
      for_few_rows(rows_, targets, count, [&](auto rows, auto panels, const Target* group) {
        add_tile<decltype(rows)::value, decltype(panels)::value>(0, group, sums_stride);
      });
      return;
    }
    const std::int64_t tiles = ceil_div(rows_, kTileRows);
    for (int i = 0; i < count; ++i) {
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t row = part_begin(rows_, tiles, t);
        with_constant<kTileRows>(part_begin(rows_, tiles, t + 1) - row, [&](auto rows) {
          add_tile<decltype(rows)::value, 1>(row, targets + i, sums_stride);
        });
      }
    }
  }

 private:
  // Between rows, such that a whole vector can be written at a row's end.
  std::int64_t stride() const { return ceil_div(depth_, kLanes) * kLanes + kLineBytes; }

  void quantise(const float* x, std::int64_t depth, std::int64_t row) {
    vf largest = zero(), zeros = zero();  // NaN once a value is not finite
    for_each_vector(depth, [&](std::int64_t i, auto part) {
      const vf value = load(x + i, part);
      largest = max(abs(value), largest);
      zeros = fma(value, zero(), zeros);
    });
    const float bound = hmax(largest);
    const bool finite = sum(zeros) == 0.0f;
    const vf factor = set1(int8_factor(bound));
    DotElement* to = quantised_ + row * stride();
    std::int32_t total = 0;
    for (std::int64_t i = 0; i < depth_; i += kLanes) {
      float values[kLanes];
      const vf value = load_n(x + i, static_cast<int>(min_int(kLanes, max_int(0, depth - i))));
      store(values, finite ? round(mul(value, factor)) : zero());
      for (int j = 0; j < kLanes; ++j) {
        to[i + j] = static_cast<DotElement>(values[j]);
        total += to[i + j];
      }
    }
    scales_[row] = finite ? bound / 127.0f : __builtin_nanf("");
    starts_[row] = -kDotOffset * total;
  }

  template <int R, int P>
  void add_tile(std::int64_t row, const Target* targets, std::int64_t sums_stride) const {
    vi c[R][P][2];
    const std::uint8_t* panel[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      panel[p] = static_cast<const std::uint8_t*>(targets[p].panel);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) c[r][p][0] = c[r][p][1] = set1_int(starts_[row + r]);
    }
    const DotElement* x = quantised_ + row * stride();
    for (std::int64_t k = 0; k < depth_; k += kDotDepth) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const DotElement* values = x + r * stride() + k;
          c[r][p][0] = dot(c[r][p][0], panel[p] + k * kPanel, values);
          c[r][p][1] = dot(c[r][p][1], panel[p] + k * kPanel + kDotDepth * kLanes, values);
        }
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf scale = set1(scales_[row + r]);
        float* sums = targets[p].sums + (row + r) * sums_stride;
        for (int j = 0; j < 2; ++j) {
          const vf column_scale = load(targets[p].scales + j * kLanes);
          store(sums + j * kLanes,
                fma(to_float(c[r][p][j]), mul(column_scale, scale), load(sums + j * kLanes)));
        }
      }
    }
  }

  std::int64_t rows_, depth_;
  DotElement* quantised_;  // [rows, stride]
  float* scales_;          // [rows]
  std::int32_t* starts_;   // [rows], what takes the weights' offset away again
};

// One member's way through one direction.
class Member {
 public:
  Member(const RecurrentArgs& args, const Cell& cell, const RecurrentDirection& direction,
         Team& team, int member)
      : args_(args), cell_(cell), direction_(direction), team_(team), member_(member) {
    panel_bytes_ = stored_panel_bytes(args.dtype, args.output_size);
    blocks_ = own(ceil_div(args.hidden_size, kPanel));
  }

  void run() {
    load_states();
    for (std::int64_t step = 0; step < args_.steps;) {
      std::int64_t rows = 0, end = step;
      while (end < args_.steps && (rows == 0 || rows + args_.active[end] <= args_.chunk_rows))
        rows += args_.active[end++];
      project({step, end}, rows);
      for (std::int64_t row = 0; step < end; row += args_.active[step++]) run_step(step, row);
    }
    store_states();
  }

 private:
  // This member's part of [0, size).
  Range own(std::int64_t size) const {
    return {part_begin(size, team_.size(), member_), part_begin(size, team_.size(), member_ + 1)};
  }

  std::int64_t first_token(std::int64_t i) const {
    const std::int32_t sequence = args_.order[i];
    return direction_.reverse ? args_.cu_seqlens[sequence + 1] - 1 : args_.cu_seqlens[sequence];
  }
  std::int64_t token(std::int64_t i, std::int64_t step) const {
    return first_token(i) + (direction_.reverse ? -step : step);
  }
  std::int64_t length(std::int64_t i) const {
    const std::int32_t sequence = args_.order[i];
    return args_.cu_seqlens[sequence + 1] - args_.cu_seqlens[sequence];
  }

  // The states before a step: two take turns.
  float* h(std::int64_t step) const {
    return direction_.h + (step % 2) * args_.batch * args_.state_stride;
  }
  float* c(std::int64_t block) const { return direction_.c + block * args_.batch * kPanel; }
  float* sums(std::int64_t block, std::int64_t row) const {
    return direction_.gates + (block * args_.chunk_rows + row) * sums_stride();
  }
  std::int64_t sums_stride() const { return slots_of(args_.kind) * kPanel; }
  std::int64_t units(std::int64_t block) const {
    return min_int(kPanel, args_.hidden_size - block * kPanel);
  }

  static void copy(float* to, const float* from, std::int64_t floats) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(floats * kFloat));
  }
  static void clear(float* to, std::int64_t floats) {
    __builtin_memset(to, 0, static_cast<std::size_t>(floats * kFloat));
  }

  void load_states() {
    const Range rows = own(args_.batch);
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      float* to = h(0) + i * args_.state_stride;
      clear(to, args_.state_stride);
      if (direction_.h0)
        copy(to, direction_.h0 + args_.order[i] * direction_.h0_stride, args_.output_size);
    }
    if (args_.kind != RecurrentKind::lstm) return;
    for (std::int64_t block = blocks_.begin; block < blocks_.end; ++block) {
      clear(c(block), args_.batch * kPanel);
      for (std::int64_t i = 0; direction_.c0 && i < args_.batch; ++i)
        copy(c(block) + i * kPanel,
             direction_.c0 + args_.order[i] * direction_.c0_stride + block * kPanel, units(block));
    }
  }

  void store_states() {
    const Range rows = own(args_.batch);
    for (std::int64_t i = rows.begin; i < rows.end; ++i)
      copy(direction_.h_n + args_.order[i] * args_.output_size,
           h(length(i)) + i * args_.state_stride, args_.output_size);
    if (args_.kind != RecurrentKind::lstm) return;
    for (std::int64_t block = blocks_.begin; block < blocks_.end; ++block)
      for (std::int64_t i = 0; i < args_.batch; ++i)
        copy(direction_.c_n + args_.order[i] * args_.hidden_size + block * kPanel,
             c(block) + i * kPanel, units(block));
  }

  // The inputs' part of the sums of all `rows` rows of some steps.
  void project(Range steps, std::int64_t rows) {
    const float* x = direction_.x;
    std::int64_t x_stride = args_.work_x_stride;
    if (args_.batch == 1) {
      x = args_.x + token(0, steps.begin) * args_.x_stride;
      x_stride = direction_.reverse ? -args_.x_stride : args_.x_stride;
    } else {
      gather(steps, own(rows));
    }
    team_.wait(member_);
    const int gates = gates_of(args_.kind);
    for (std::int64_t block = blocks_.begin; block < blocks_.end; ++block) {
      const std::int64_t panel = block * gates;
      linear({.x = x,
              .weight = direction_.weights.weight_ih + panel * args_.input_size * kPanel,
              .bias = direction_.weights.bias + panel * kPanel,
              .residual = nullptr,
              .out = sums(block, 0),
              .rows = rows,
              .in_features = args_.input_size,
              .out_features = gates * kPanel,
              .x_stride = x_stride,
              .residual_stride = 0,
              .out_stride = sums_stride(),
              .activation = Activation::none});
      if (direction_.weights.bias_hn) start_reset_sums(block, rows);
    }
  }

  void start_reset_sums(std::int64_t block, std::int64_t rows) {
    const float* bias = direction_.weights.bias_hn + block * kPanel;
    for (std::int64_t row = 0; row < rows; ++row) copy(sums(block, row) + 3 * kPanel, bias, kPanel);
  }

  // The inputs of some of the rows, in the order of steps.
  void gather(Range steps, Range rows) {
    std::int64_t first = 0;
    for (std::int64_t step = steps.begin; step < steps.end; ++step) {
      const std::int64_t begin = max_int(rows.begin - first, 0);
      const std::int64_t end = min_int(rows.end - first, args_.active[step]);
      for (std::int64_t i = begin; i < end; ++i)
        copy(direction_.x + (first + i) * args_.work_x_stride,
             args_.x + token(i, step) * args_.x_stride, args_.input_size);
      first += args_.active[step];
    }
  }

  void run_step(std::int64_t step, std::int64_t first_row) {
    const bool projected = direction_.weights.weight_hr != nullptr;
    for (int i = 0; i < cell_.phases; ++i) {
      const Phase& phase = cell_.phase[i];
      const bool last = i + 1 == cell_.phases && !projected;
      const float* from = i == 0 ? h(step) : direction_.intermediate;
      const Operand x{.a = from,
                      .stride = args_.state_stride,
                      .rows = args_.active[step],
                      .depth = args_.output_size};
      float* to = last ? h(step + 1) : direction_.intermediate;
      if (args_.dtype == DType::int8)
        run_phase(phase, step, first_row, Int8Product(x), to);
      else if (args_.dtype == DType::bfloat16)
        run_phase(phase, step, first_row, FloatProduct<BFloat16>(x), to);
      else
        run_phase(phase, step, first_row, FloatProduct<Float32>(x), to);
      if (last)
        write_out(step, {blocks_.begin * kPanel, min_int(blocks_.end * kPanel, args_.hidden_size)});
      team_.wait(member_);
    }
    if (!projected) return;
    project_state(step);
    team_.wait(member_);
  }

  template <class Product>
  void run_phase(const Phase& phase, std::int64_t step, std::int64_t first_row,
                 const Product& product, float* to) {
    const std::int64_t rows = args_.active[step];
    const std::int64_t at_once = rows <= kFewRows ? kPanelsAtOnce / phase.gates : 1;
    // Steps sweep up and down in turn: what one leaves in cache the next one finds.
    const std::int64_t groups = ceil_div(blocks_.end - blocks_.begin, at_once);
    for (std::int64_t i = 0; i < groups; ++i) {
      const std::int64_t group = step % 2 == 0 ? i : groups - 1 - i;
      const std::int64_t begin = blocks_.begin + group * at_once;
      const std::int64_t end = min_int(begin + at_once, blocks_.end);
      Target targets[kPanelsAtOnce];
      int count = 0;
      for (std::int64_t block = begin; block < end; ++block)
        for (int gate = 0; gate < phase.gates; ++gate)
          targets[count++] = target(phase, block, first_row, gate);
      product.add(targets, count, sums_stride());
      for (std::int64_t block = begin; block < end; ++block)
        phase.finish({.rows = rows,
                      .sums = sums(block, first_row),
                      .h = h(step) + block * kPanel,
                      .c = c(block),
                      .next = to + block * kPanel,
                      .state_stride = args_.state_stride});
    }
  }

  Target target(const Phase& phase, std::int64_t block, std::int64_t first_row, int i) const {
    const std::int64_t panel = block * gates_of(args_.kind) + phase.first_gate + i;
    const auto* weights = static_cast<const char*>(direction_.weights.weight_hh);
    const float* scales = direction_.weights.scales;
    return {.panel = weights + panel * panel_bytes_,
            .scales = scales ? scales + panel * kPanel : nullptr,
            .sums = sums(block, first_row) + (phase.first_slot + i) * kPanel};
  }

  void project_state(std::int64_t step) {
    const Range panels = own(ceil_div(args_.output_size, kPanel));
    // Nothing but this product rounds the state, so its chains are short.
    const FloatProduct<Float32> product({.a = direction_.intermediate,
                                         .stride = args_.state_stride,
                                         .rows = args_.active[step],
                                         .depth = args_.hidden_size,
                                         .slice_depth = kProjectionSliceDepth});
    for (std::int64_t p = panels.begin; p < panels.end; p += kPanelsAtOnce) {
      Target targets[kPanelsAtOnce];
      int count = 0;
      for (; count < min_int(kPanelsAtOnce, panels.end - p); ++count) {
        float* to = h(step + 1) + (p + count) * kPanel;
        for (std::int64_t i = 0; i < args_.active[step]; ++i)
          clear(to + i * args_.state_stride, kPanel);
        const float* weight =
            direction_.weights.weight_hr + (p + count) * args_.hidden_size * kPanel;
        targets[count] = {weight, nullptr, to};
      }
      product.add(targets, count, args_.state_stride);
    }
    write_out(step, {panels.begin * kPanel, min_int(panels.end * kPanel, args_.output_size)});
  }

  // Columns of the state after a step.
  void write_out(std::int64_t step, Range columns) {
    for (std::int64_t i = 0; i < args_.active[step]; ++i)
      copy(direction_.out + token(i, step) * args_.out_stride + columns.begin,
           h(step + 1) + i * args_.state_stride + columns.begin, columns.end - columns.begin);
  }

  const RecurrentArgs& args_;
  const Cell& cell_;
  const RecurrentDirection& direction_;
  Team& team_;
  const int member_;
  std::int64_t panel_bytes_;
  Range blocks_;
};

// The upper half of a float's bits, rounded to nearest even; a NaN stays one.
std::uint32_t to_bfloat16(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if (x != x) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

void store_bfloat16(const PanelArgs& args) {
  auto* words = static_cast<std::uint32_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    const float* row = args.panel + k * kPanel;
    for (int j = 0; j < kLanes; ++j)
      words[k * kLanes + j] = to_bfloat16(row[j]) | to_bfloat16(row[j + kLanes]) << 16;
  }
}

void restore_bfloat16(const PanelArgs& args) {
  const auto* words = static_cast<const std::uint32_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    vf b0, b1;
    load_bfloat16(words + k * kLanes, b0, b1);
    store(args.panel + k * kPanel, b0);
    store(args.panel + k * kPanel + kLanes, b1);
  }
}

// Where an int8 panel keeps a weight: kDotDepth of a column follow each other.
std::int64_t int8_place(std::int64_t k, int column) {
  return (k / kDotDepth * kPanel + column) * kDotDepth + k % kDotDepth;
}

void store_int8(const PanelArgs& args) {
  auto* stored = static_cast<std::uint8_t*>(args.stored);
  __builtin_memset(stored, kDotOffset,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
  for (int j = 0; j < kPanel; ++j) {
    float largest = 0.0f;
    bool finite = true;
    for (std::int64_t k = 0; k < args.depth; ++k) {
      const float magnitude = __builtin_fabsf(args.panel[k * kPanel + j]);
      finite = finite && magnitude < __builtin_inff();
      if (magnitude > largest) largest = magnitude;
    }
    args.scales[j] = finite ? largest / 127.0f : __builtin_nanf("");
    if (!finite) continue;
    for (std::int64_t k = 0; k < args.depth; ++k) {
      const float q = __builtin_rintf(args.panel[k * kPanel + j] * int8_factor(largest));
      stored[int8_place(k, j)] = static_cast<std::uint8_t>(static_cast<int>(q) + kDotOffset);
    }
  }
}

void restore_int8(const PanelArgs& args) {
  const auto* stored = static_cast<const std::uint8_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    for (int j = 0; j < kPanel; ++j) {
      const auto q = static_cast<std::int8_t>(stored[int8_place(k, j)] - kDotOffset);
      args.panel[k * kPanel + j] = static_cast<float>(q) * args.scales[j];
    }
  }
}

}  // namespace

std::int64_t stored_panel_bytes(DType dtype, std::int64_t depth) {
  if (dtype == DType::float32) return depth * kPanel * kFloat;
  if (dtype == DType::bfloat16) return depth * kPanel * kFloat / 2;
  return ceil_div(depth, kDotDepth) * kDotDepth * kPanel;
}

void store_panel(const PanelArgs& args) {
  if (args.dtype == DType::bfloat16) return store_bfloat16(args);
  if (args.dtype == DType::int8) return store_int8(args);
  __builtin_memcpy(args.stored, args.panel,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

void restore_panel(const PanelArgs& args) {
  if (args.dtype == DType::bfloat16) return restore_bfloat16(args);
  if (args.dtype == DType::int8) return restore_int8(args);
  __builtin_memcpy(args.panel, args.stored,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

void run_recurrent(const RecurrentArgs& args, const Cell& cell) {
  const std::int64_t blocks = ceil_div(args.hidden_size, kPanel);
  const std::int64_t rows = args.steps > 0 ? args.active[0] : 1;
  const std::int64_t panels = blocks * gates_of(args.kind);
  const std::int64_t work = rows * panels * kPanel * args.output_size / kMemberWork;
  const auto members = static_cast<int>(max_int(1, min_int(blocks, work)));
  const auto run = [&](Team& team, int direction, int member) {
    Member(args, cell, args.direction[direction], team, member).run();
  };
  // Side by side, directions wait for fewer members; one after the other, a member has less to keep
  // in its cache.
  const std::int64_t bytes = panels * stored_panel_bytes(args.dtype, args.output_size);
  if (bytes * args.directions <= kCachedBytes * num_threads()) {
    parallel_teams(args.directions, members, run);
  } else {
    for (int i = 0; i < args.directions; ++i)
      parallel_teams(1, members, [&](Team& team, int, int member) { run(team, i, member); });
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
