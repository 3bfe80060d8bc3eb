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
// several panels are multiplied at once.
constexpr int kFewRows = 3;
constexpr int kPanelsAtOnce = 4;

// Multiply-adds per step and member that are worth a barrier.
constexpr std::int64_t kMemberWork = 32 << 10;

SG_INLINE std::int64_t part_begin(std::int64_t size, std::int64_t parts, std::int64_t i) {
  return size * i / parts;
}

// A panel and the sums it adds to, sums_stride between rows.
struct Target {
  const void* panel;
  float* sums;
  const float* scales;
};

struct Operand {
  const float* a;  // [rows, depth]
  std::int64_t stride, rows, depth;
};

// sums += a @ panel for R rows and P panels at once, each sum a chain in the order of depth.
template <int R, int P>
SG_INLINE void multiply_few(const Operand& x, std::int64_t row, const Target* targets,
                            std::int64_t sums_stride) {
  vf c[R][P][2];
  const float* panel[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    panel[p] = static_cast<const float*>(targets[p].panel);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float* sums = targets[p].sums + (row + r) * sums_stride;
      c[r][p][0] = load(sums);
      c[r][p][1] = load(sums + kLanes);
    }
  }
  const float* a = x.a + row * x.stride;
  for (std::int64_t k = 0; k < x.depth; ++k) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const vf b0 = load(panel[p] + k * kPanel);
      const vf b1 = load(panel[p] + k * kPanel + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf value = set1(a[r * x.stride + k]);
        c[r][p][0] = fma(value, b0, c[r][p][0]);
        c[r][p][1] = fma(value, b1, c[r][p][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* sums = targets[p].sums + (row + r) * sums_stride;
      store(sums, c[r][p][0]);
      store(sums + kLanes, c[r][p][1]);
    }
  }
}

template <int R>
void add_few(const Operand& x, const Target* targets, int count, std::int64_t sums_stride) {
  switch (count) {
    case 1: return multiply_few<R, 1>(x, 0, targets, sums_stride);
    case 2: return multiply_few<R, 2>(x, 0, targets, sums_stride);
    case 3: return multiply_few<R, 3>(x, 0, targets, sums_stride);
    default: return multiply_few<R, 4>(x, 0, targets, sums_stride);
  }
}

// Many rows and one panel, whose depth is cut so that a slice stays in L1 while rows pass over it.
void add_many(const Operand& x, const Target& target, std::int64_t sums_stride) {
  const auto* panel = static_cast<const float*>(target.panel);
  const std::int64_t slices = ceil_div(x.depth, kSliceDepth);
  const std::int64_t tiles = ceil_div(x.rows, kTileRows);
  for (std::int64_t s = 0; s < slices; ++s) {
    const std::int64_t k = part_begin(x.depth, slices, s);
    const std::int64_t depth = part_begin(x.depth, slices, s + 1) - k;
    // The next slice, or the next panel: they follow each other.
    const std::int64_t lines = depth * kPanel / kLineFloats;
    const std::int64_t steps = max_int(1, depth / kPrefetchSteps) * tiles;
    Prefetch ahead{panel + (k + depth) * kPanel, static_cast<int>(ceil_div(lines, steps))};
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t row = part_begin(x.rows, tiles, t);
      with_rows(part_begin(x.rows, tiles, t + 1) - row, [&](auto tile) {
        float* sums = target.sums + row * sums_stride;
        load(tile, sums, sums_stride);
        multiply(tile, x.a + row * x.stride + k, x.stride, panel + k * kPanel, depth, ahead);
        store(tile, sums, sums_stride);
      });
    }
  }
}

struct Float32Product {
  Operand x;

  explicit Float32Product(const Operand& operand) : x(operand) {}

  void add(const Target* targets, int count, std::int64_t sums_stride) const {
    switch (x.rows) {
      case 1: return add_few<1>(x, targets, count, sums_stride);
      case 2: return add_few<2>(x, targets, count, sums_stride);
      case 3: return add_few<3>(x, targets, count, sums_stride);
      default:
        for (int i = 0; i < count; ++i) add_many(x, targets[i], sums_stride);
    }
  }
};

struct Range {
  std::int64_t begin, end;
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
    team_.wait();
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
      run_phase(phase, step, first_row, from, last ? h(step + 1) : direction_.intermediate);
      if (last)
        write_out(step, {blocks_.begin * kPanel, min_int(blocks_.end * kPanel, args_.hidden_size)});
      team_.wait();
    }
    if (!projected) return;
    project_state(step);
    team_.wait();
  }

  void run_phase(const Phase& phase, std::int64_t step, std::int64_t first_row, const float* from,
                 float* to) {
    const std::int64_t rows = args_.active[step];
    const Float32Product product({from, args_.state_stride, rows, args_.output_size});
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
          targets[count++] = target(block, phase.first_gate + gate,
                                    sums(block, first_row) + (phase.first_slot + gate) * kPanel);
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

  Target target(std::int64_t block, int gate, float* to) const {
    const std::int64_t panel = block * gates_of(args_.kind) + gate;
    const auto* weights = static_cast<const char*>(direction_.weights.weight_hh);
    return {
        .panel = weights + panel * panel_bytes_,
        .sums = to,
        .scales = direction_.weights.scales ? direction_.weights.scales + panel * kPanel : nullptr};
  }

  void project_state(std::int64_t step) {
    const Range panels = own(ceil_div(args_.output_size, kPanel));
    const Float32Product product(
        {direction_.intermediate, args_.state_stride, args_.active[step], args_.hidden_size});
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      float* to = h(step + 1) + p * kPanel;
      for (std::int64_t i = 0; i < args_.active[step]; ++i)
        clear(to + i * args_.state_stride, kPanel);
      const float* panel = direction_.weights.weight_hr + p * args_.hidden_size * kPanel;
      const Target target{panel, to, nullptr};
      product.add(&target, 1, args_.state_stride);
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

}  // namespace

std::int64_t stored_panel_bytes(DType, std::int64_t depth) { return depth * kPanel * kFloat; }

void store_panel(const PanelArgs& args) {
  __builtin_memcpy(args.stored, args.panel,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

void restore_panel(const PanelArgs& args) {
  __builtin_memcpy(args.panel, args.stored,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

void run_recurrent(const RecurrentArgs& args, const Cell& cell) {
  const std::int64_t blocks = ceil_div(args.hidden_size, kPanel);
  const std::int64_t rows = args.steps > 0 ? args.active[0] : 1;
  const std::int64_t work =
      rows * blocks * kPanel * gates_of(args.kind) * args.output_size / kMemberWork;
  const auto members = static_cast<int>(max_int(1, min_int(blocks, work)));
  parallel_teams(args.directions, members, [&](Team& team, int index, int member) {
    Member(args, cell, args.direction[index], team, member).run();
  });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
