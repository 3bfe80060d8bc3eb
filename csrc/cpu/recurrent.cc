// Recurrent layers, step by step. Each member of a team owns some blocks of hidden units for the
// whole sequence, so that their weights stay in its cache where they fit, and meets the others once
// or twice a step.
#include "cpu/recurrent.h"

#include "core/parallel.h"
#include "cpu/recurrent_product.h"
#include "ops/linear.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear(const PanelLinearArgs& args);
#if defined(SOFTGATE_ISA_AVX512)
void linear_split(const PanelLinearArgs& args);
#endif

namespace {

// Nothing but its own product rounds a projected state, so that product's chains are short.
constexpr std::int64_t kProjectionSliceDepth = 16;

// Multiply-adds per step and member that are worth a barrier.
constexpr std::int64_t kMemberWork = 32 << 10;

// Weights that stay in a core's own cache beside what else a step touches.
constexpr std::int64_t kCachedBytes = 3 << 19;

// Of a step whose weights are split: below, splitting takes longer than fused multiply-adds.
constexpr std::int64_t kMinSplitStepRows = 24;

// Of a step's state that stay in L2 while a member's panels pass.
constexpr std::int64_t kRowsAtOnce = 512;

void multiply_inputs(const PanelLinearArgs& args) {
#if defined(SOFTGATE_ISA_AVX512)
  if (args.splits) return linear_split(args);
#endif
  linear(args);
}

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
      chunk_ = {step, end};
      if (args_.x) gather(rows);
      team_.wait(member_);
      // Of a lone step, a block's sums go on to its product while they are in cache. But splitting
      // serves all blocks, and an int8 product holds the scratch memory that projecting may want.
      projects_late_ =
          end == step + 1 && (args_.ids || (!args_.splits && args_.dtype != DType::int8));
      if (!projects_late_) project(blocks_, {0, rows});
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
  // Of h0 and c0.
  std::int64_t state_row(std::int64_t i) const {
    return args_.h0_rows ? args_.h0_rows[args_.order[i]] : args_.order[i];
  }
  std::int64_t length(std::int64_t i) const {
    const std::int32_t sequence = args_.order[i];
    return args_.cu_seqlens[sequence + 1] - args_.cu_seqlens[sequence];
  }

  // The states before a step: two take turns.
  float* h(std::int64_t step) const {
    return direction_.h + (step % 2) * args_.batch * args_.state_stride;
  }
  // Are those of one run of sequences one?
  bool shares(std::int64_t step) const { return args_.runs && step == 0; }
  // The state after a sequence. Of one without tokens a shared one has been written over since.
  const float* last_state(std::int64_t i) const {
    if (shares(length(i))) return direction_.h0 + state_row(i) * direction_.h0_stride;
    return h(length(i)) + i * args_.state_stride;
  }
  float* c(std::int64_t block) const { return direction_.c + block * args_.batch * kPanel; }
  // Where blocks are projected late, one group's sums take the place of those that are done with.
  float* sums(std::int64_t block, std::int64_t row) const {
    const std::int64_t columns = gates_of(args_.kind) * kPanel;
    if (!projects_late_) return direction_.gates + row * args_.gates_stride + block * columns;
    const std::int64_t place = blocks_.begin + block - first_late_;
    return direction_.gates + (place * args_.chunk_rows + row) * columns;
  }
  std::int64_t sums_stride() const {
    return projects_late_ ? gates_of(args_.kind) * kPanel : args_.gates_stride;
  }
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
      if (shares(0) && i > 0 && args_.runs[i] == args_.runs[i - 1]) continue;
      float* to = h(0) + (shares(0) ? args_.runs[i] : i) * args_.state_stride;
      const std::int64_t given = direction_.h0 ? args_.output_size : 0;
      if (given > 0) copy(to, direction_.h0 + state_row(i) * direction_.h0_stride, given);
      clear(to + given, args_.state_stride - given);
    }
    if (args_.kind != RecurrentKind::lstm) return;
    for (std::int64_t block = blocks_.begin; block < blocks_.end; ++block) {
      clear(c(block), args_.batch * kPanel);
      for (std::int64_t i = 0; direction_.c0 && i < args_.batch; ++i)
        copy(c(block) + i * kPanel,
             direction_.c0 + state_row(i) * direction_.c0_stride + block * kPanel, units(block));
    }
  }

  void store_states() {
    const Range rows = own(args_.batch);
    for (std::int64_t i = rows.begin; direction_.h_n && i < rows.end; ++i)
      copy(direction_.h_n + args_.order[i] * args_.output_size, last_state(i), args_.output_size);
    if (args_.kind != RecurrentKind::lstm) return;
    for (std::int64_t block = blocks_.begin; block < blocks_.end; ++block)
      for (std::int64_t i = 0; i < args_.batch; ++i)
        copy(direction_.c_n + args_.order[i] * args_.hidden_size + block * kPanel,
             c(block) + i * kPanel, units(block));
  }

  // The inputs' part of some blocks' sums, of rows of a chunk.
  void project(Range blocks, Range rows) {
    if (blocks.begin == blocks.end) return;
    if (args_.ids) return look_up(blocks, rows);
    const int gates = gates_of(args_.kind);
    const std::int64_t panel = blocks.begin * gates;
    multiply_inputs({.linear = {.x = x_ + rows.begin * x_stride_,
                                .weight = nullptr,
                                .bias = direction_.weights.bias + panel * kPanel,
                                .residual = nullptr,
                                .out = sums(blocks.begin, rows.begin),
                                .rows = rows.end - rows.begin,
                                .in_features = args_.input_size,
                                .out_features = (blocks.end - blocks.begin) * gates * kPanel,
                                .x_stride = x_stride_,
                                .residual_stride = 0,
                                .out_stride = sums_stride(),
                                .activation = Activation::none},
                     .format = {},
                     .panels = direction_.weights.weight_ih + panel * args_.input_size * kPanel,
                     .workspace = nullptr,
                     .splits = args_.splits});
  }

  // The same, of ids: columns of weights, each a row of a panel.
  void look_up(Range blocks, Range rows) const {
    const int gates = gates_of(args_.kind);
    const std::int64_t panel_size = args_.input_size * kPanel;
    float* to = sums(blocks.begin, rows.begin);
    std::int64_t first = 0;
    for (std::int64_t step = chunk_.begin; step < chunk_.end; first += args_.active[step++]) {
      const std::int64_t end = min_int(rows.end - first, args_.active[step]);
      for (std::int64_t i = max_int(rows.begin - first, 0); i < end; ++i, to += sums_stride()) {
        const float* row = direction_.weights.weight_ih + args_.ids[token(i, step)] * kPanel;
        for (std::int64_t p = blocks.begin * gates; p < blocks.end * gates; ++p)
          for (int j = 0; j < kPanel; j += kLanes)
            store(to + (p - blocks.begin * gates) * kPanel + j,
                  add(load(row + p * panel_size + j),
                      load(direction_.weights.bias + p * kPanel + j)));
      }
    }
  }

  void start_recurrent_sums(std::int64_t block, Range rows) const {
    const float* bias = direction_.weights.bias_hn + block * kPanel;
    for (std::int64_t row = rows.begin; row < rows.end; ++row)
      copy(c(block) + row * kPanel, bias, kPanel);
  }

  // Do a step's tokens follow each other?
  bool is_in_order(std::int64_t step) const {
    for (std::int64_t i = 1; i < args_.active[step]; ++i)
      if (token(i, step) != token(0, step) + i) return false;
    return true;
  }

  // The inputs of the `count` rows of a chunk's steps, in their order.
  void gather(std::int64_t count) {
    const Range steps = chunk_;
    x_ = direction_.x;
    x_stride_ = args_.work_x_stride;
    if (args_.batch == 1 || (steps.end == steps.begin + 1 && is_in_order(steps.begin))) {
      x_ = args_.x + token(0, steps.begin) * args_.x_stride;
      x_stride_ = args_.batch == 1 && direction_.reverse ? -args_.x_stride : args_.x_stride;
      return;
    }
    const Range rows = own(count);
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
      float* to = last ? h(step + 1) : direction_.intermediate;
      const std::int64_t active = args_.active[step], parts = ceil_div(active, kRowsAtOnce);
      for (std::int64_t part = 0; part < parts; ++part) {
        const Rows rows{step, first_row, part_begin(active, parts, part),
                        part_begin(active, parts, part + 1)};
        multiply_and_finish(phase, rows, from, to);
      }
      if (last)
        write_out(step, {blocks_.begin * kPanel, min_int(blocks_.end * kPanel, args_.hidden_size)});
      team_.wait(member_);
    }
    if (!projected) return;
    project_state(step);
    team_.wait(member_);
  }

  // Of a step, whose first row is the chunk's first_row-th.
  struct Rows {
    std::int64_t step, first_row;
    std::int64_t begin, end;

    std::int64_t count() const { return end - begin; }
  };

  void multiply_and_finish(const Phase& phase, const Rows& rows, const float* from, float* to) {
    const Range states = shares(rows, phase) ? runs(rows) : Range{rows.begin, rows.end};
    const Operand x{.a = from + states.begin * args_.state_stride,
                    .stride = args_.state_stride,
                    .rows = states.end - states.begin,
                    .depth = args_.output_size};
#if defined(SOFTGATE_ISA_AVX512)
    if (args_.splits_steps && args_.active[rows.step] >= kMinSplitStepRows)
      return run_phase(phase, rows, SplitProduct(x), to);
#endif
    if (args_.dtype == DType::int8) return run_phase(phase, rows, Int8Product(x), to);
    if (args_.dtype == DType::bfloat16)
      return run_phase(phase, rows, FloatProduct<BFloat16>(x), to);
    run_phase(phase, rows, FloatProduct<Float32>(x), to);
  }

  template <class Product>
  void run_phase(const Phase& phase, const Rows& rows, const Product& product, float* to) {
    const std::int64_t at_once = rows.count() <= kFewRows ? kPanelsAtOnce / phase.gates : 1;
    // Steps sweep up and down in turn: what one leaves in cache the next one finds.
    const std::int64_t groups = ceil_div(blocks_.end - blocks_.begin, at_once);
    for (std::int64_t i = 0; i < groups; ++i) {
      const std::int64_t group = rows.step % 2 == 0 ? i : groups - 1 - i;
      const std::int64_t begin = blocks_.begin + group * at_once;
      const std::int64_t end = min_int(begin + at_once, blocks_.end);
      Target targets[kPanelsAtOnce];
      int count = 0;
      first_late_ = cell_.phases == 1 ? begin : blocks_.begin;
      for (std::int64_t block = begin; block < end; ++block) {
        if (projects_late_ && phase.first_gate == 0)
          project({block, block + 1}, {rows.begin, rows.end});
        if (direction_.weights.bias_hn) start_recurrent_sums(block, {rows.begin, rows.end});
        for (int gate = 0; gate < phase.gates; ++gate)
          targets[count++] = target(phase, block, rows, gate);
      }
      if (shares(rows, phase)) {
        add_shared(product, rows, targets, count);
      } else {
        product.add(targets, count);
      }
      const std::int32_t* states = shares(rows.step) ? args_.runs + rows.begin : nullptr;
      const std::int64_t first_state = states ? 0 : rows.begin;
      for (std::int64_t block = begin; block < end; ++block)
        phase.finish({.rows = rows.count(),
                      .sums = sums(block, rows.first_row + rows.begin),
                      .sums_stride = sums_stride(),
                      .h = h(rows.step) + first_state * args_.state_stride + block * kPanel,
                      .states = states,
                      .c = c(block) + rows.begin * kPanel,
                      .next = to + rows.begin * args_.state_stride + block * kPanel,
                      .state_stride = args_.state_stride});
    }
  }

  // Does a phase multiply the states before the step, and does each run of rows have one?
  bool shares(const Rows& rows, const Phase& phase) const {
    return shares(rows.step) && phase.first_gate == 0;
  }
  Range runs(const Rows& rows) const {
    return {args_.runs[rows.begin], args_.runs[rows.end - 1] + 1};
  }

  // Each run's product, then that to the sums of the run's rows.
  template <class Product>
  void add_shared(const Product& product, const Rows& rows, const Target* targets, int count) {
    const Range states = runs(rows);
    const std::int64_t stride = count * kPanel;
    float* products =
        direction_.products + blocks_.begin * args_.batch * gates_of(args_.kind) * kPanel;
    clear(products, (states.end - states.begin) * stride);
    Target once[kPanelsAtOnce];
    for (int i = 0; i < count; ++i)
      once[i] = {targets[i].panel, targets[i].scales, products + i * kPanel, stride};
    product.add(once, count);
    for (std::int64_t row = 0; row < rows.count(); ++row) {
      const float* from = products + (args_.runs[rows.begin + row] - states.begin) * stride;
      for (int i = 0; i < count; ++i) {
        float* sums = targets[i].sums + row * targets[i].stride;
        for (int j = 0; j < kPanel; j += kLanes)
          store(sums + j, add(load(sums + j), load(from + i * kPanel + j)));
      }
    }
  }

  Target target(const Phase& phase, std::int64_t block, const Rows& rows, int i) const {
    const std::int64_t panel = block * gates_of(args_.kind) + phase.first_gate + i;
    const auto* weights = static_cast<const char*>(direction_.weights.weight_hh);
    const float* scales = direction_.weights.scales;
    const int place = phase.first_sum + i;
    const bool apart = place == gates_of(args_.kind);
    return {.panel = weights + panel * panel_bytes_,
            .scales = scales ? scales + panel * kPanel : nullptr,
            .sums = apart ? c(block) + rows.begin * kPanel
                          : sums(block, rows.first_row + rows.begin) + place * kPanel,
            .stride = apart ? kPanel : sums_stride()};
  }

  void project_state(std::int64_t step) {
    const Range panels = own(ceil_div(args_.output_size, kPanel));
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
        targets[count] = {weight, nullptr, to, args_.state_stride};
      }
      product.add(targets, count);
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
  // Of the chunk at hand.
  Range chunk_ = {0, 0};
  const float* x_ = nullptr;
  std::int64_t x_stride_ = 0;
  bool projects_late_ = false;
  std::int64_t first_late_ = 0;  // block of the group at hand
};

}  // namespace

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
