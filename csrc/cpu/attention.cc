// attention in tiles. A task is a chunk of the rows of one key-value head. Blocks of keys and
// values are packed in panels as they come, so that both products run on the register tile
// (tile.h); the softmax is online: the accumulated output shrinks when a row's maximum grows.
#include "cpu/attention.h"

namespace softgate::cpu::SOFTGATE_ISA {

void attention(const AttentionArgs<float>& args);

namespace {

// Fixed, so that a query's result depends on its own sequence alone. The pieces of a task fit L2.
constexpr std::int64_t kBlockKeys = 128;
constexpr std::int64_t kBlockElements = 8192;   // of a packed block of keys, for large heads
constexpr std::int64_t kChunkElements = 32768;  // of a chunk's accumulators
// A head's rows lie pages apart, where the hardware does not prefetch.
constexpr std::int64_t kRowsAhead = 8;
static_assert(kTileRows <= kLanes);

// The rows of one register tile, and the keys that bounds leave to at least one and to all of them.
struct Strip {
  std::int64_t row;  // within the chunk
  int rows;
  Range keys, common;
};

SG_INLINE void prefetch_row(const float* row, std::int64_t floats) {
  for (std::int64_t i = 0; i < floats; i += kLineFloats) __builtin_prefetch(row + i, 0, 3);
}

struct Sizes {
  std::int64_t group;  // query heads that read one key-value head
  std::int64_t chunk_rows, block_keys;
  std::int64_t padded_dim;  // a multiple of kPanel

  explicit Sizes(const AttentionArgs<float>& args)
      : group(args.num_heads / args.num_kv_heads),
        chunk_rows(clamp(kChunkElements / args.head_dim, 64, 512)),
        block_keys(clamp(kBlockElements / args.head_dim / kPanel * kPanel, 64, kBlockKeys)),
        padded_dim(round_up(args.head_dim, kPanel)) {}
};

// A row is a query of one of the heads that share the key-value head; heads run fastest.
class Chunk {
 public:
  Chunk(const AttentionArgs<float>& args, const Sizes& sizes, std::int64_t sequence,
        std::int64_t kv_head, std::int64_t chunk)
      : args_(args), sizes_(sizes), sequence_(sequence), kv_head_(kv_head) {
    first_query_ = args.cu_seqlens_q[sequence];
    len_q_ = args.cu_seqlens_q[sequence + 1] - first_query_;
    const Keys keys = keys_of_sequence(args, sequence);
    len_k_ = keys.length;
    k_ = keys.k + kv_head * args.k_head_stride;
    v_ = keys.v + kv_head * args.v_head_stride;
    first_row_ = chunk * sizes.chunk_rows;
    rows_ = min_int(len_q_ * sizes.group - first_row_, sizes.chunk_rows);
  }

  void run() {
    if (rows_ <= 0) return;
    take_scratch();
    make_strips();
    load_queries();
    for (Range block = first_block(); block.begin < block.end; block = block_after(block)) {
      load_keys(block);
      load_values(block);
      for (std::int64_t i = 0; i < strip_count_; ++i) attend(strips_[i], block);
    }
    write_out();
    if (!args_.weights) return;
    for (Range block = first_block(); block.begin < block.end; block = block_after(block)) {
      load_keys(block);
      for (std::int64_t i = 0; i < strip_count_; ++i) write_weights(strips_[i], block);
    }
  }

 private:
  std::int64_t query_of(std::int64_t row) const { return (first_row_ + row) / sizes_.group; }

  // body(row, query, head)
  template <class Body>
  void for_each_row(std::int64_t begin, std::int64_t end, Body body) const {
    const std::int64_t first_head = kv_head_ * sizes_.group;
    std::int64_t query = query_of(begin);
    std::int64_t head = (first_row_ + begin) % sizes_.group;
    for (std::int64_t row = begin; row < end; ++row) {
      body(row, query, first_head + head);
      if (++head == sizes_.group) {
        head = 0;
        ++query;
      }
    }
  }

  Range keys_of(std::int64_t query) const {
    return keys_in_sight(args_, query + len_k_ - len_q_, len_k_);
  }

  void take_scratch() {
    const std::int64_t rows = round_up(rows_, kLanes);
    strip_count_ = ceil_div(rows_, kTileRows);
    const struct {
      float** place;
      std::int64_t floats;
    } pieces[] = {
        {&queries_, rows * args_.head_dim},
        {&accumulators_, rows * sizes_.padded_dim},
        {&keys_, sizes_.block_keys * args_.head_dim},
        {&values_, sizes_.block_keys * sizes_.padded_dim},
        {&scores_, kTileRows * kBlockKeys},
        {&maxima_, rows},
        {&sums_, rows},
        {&rescale_, kLanes},
    };
    std::int64_t bytes = strip_count_ * static_cast<std::int64_t>(sizeof(Strip));
    for (const auto& piece : pieces) bytes += round_up(piece.floats, kLineFloats) * kFloat;
    auto* block = static_cast<char*>(scratch(static_cast<std::size_t>(bytes)));
    for (const auto& piece : pieces) {
      *piece.place = reinterpret_cast<float*>(block);
      block += round_up(piece.floats, kLineFloats) * kFloat;
    }
    strips_ = reinterpret_cast<Strip*>(block);
  }

  void make_strips() {
    for (std::int64_t i = 0; i < strip_count_; ++i) {
      const std::int64_t begin = rows_ * i / strip_count_;
      const std::int64_t end = rows_ * (i + 1) / strip_count_;
      const Range first = keys_of(query_of(begin)), last = keys_of(query_of(end - 1));
      strips_[i] = {.row = begin,
                    .rows = static_cast<int>(end - begin),
                    .keys = {first.begin, last.end},
                    .common = {last.begin, first.end}};
    }
    for (std::int64_t row = 0; row < rows_; ++row) {
      maxima_[row] = -kInf;
      sums_[row] = 0.0f;
    }
  }

  Range block_at(std::int64_t key) const {
    const std::int64_t last = keys_of(query_of(rows_ - 1)).end;
    return {key, min_int(key + sizes_.block_keys, last)};
  }
  Range first_block() const {
    return block_at(keys_of(query_of(0)).begin / sizes_.block_keys * sizes_.block_keys);
  }
  Range block_after(Range block) const { return block_at(block.begin + sizes_.block_keys); }

  void load_queries() {
    const std::int64_t dim = args_.head_dim;
    const vf scale = set1(query_scale(args_));
    for_each_row(0, rows_, [&](std::int64_t row, std::int64_t query, std::int64_t head) {
      const float* from =
          args_.q + (first_query_ + query) * args_.q_stride + head * args_.q_head_stride;
      if (query + kRowsAhead < len_q_) prefetch_row(from + kRowsAhead * args_.q_stride, dim);
      float* to = queries_ + row * dim;
      for_each_vector(dim, [=](std::int64_t d, auto lanes) {
        store(to + d, mul(load(from + d, lanes), scale), lanes);
      });
    });
  }

  // Panels [head_dim, kPanel] of kPanel keys each, the last filled up with zeros.
  void load_keys(Range block) {
    const float* k = k_ + block.begin * args_.k_stride;
    const std::int64_t count = block.end - block.begin, dim = args_.head_dim;
    const std::int64_t stride = args_.k_stride;
    for (std::int64_t j = 0; j < round_up(count, kPanel); j += kLanes, k += kLanes * stride) {
      for (std::int64_t i = kRowsAhead; i < min_int(kRowsAhead + kLanes, count - j); ++i)
        prefetch_row(k + i * stride, dim);
      float* panel = keys_ + j / kPanel * kPanel * dim + j % kPanel;
      const int rows = static_cast<int>(clamp(count - j, 0, kLanes));
      for (std::int64_t d = 0; d < dim; d += kLanes)
        pack_transposed(k + d, stride, rows, static_cast<int>(min_int(dim - d, kLanes)),
                        panel + d * kPanel);
    }
  }

  // [rows, columns] to [columns, kPanel], with zeros in place of missing rows.
  static void pack_transposed(const float* from, std::int64_t stride, int rows, int columns,
                              float* to) {
    vf square[kLanes];
    if (rows == kLanes && columns == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + i * stride);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kPanel, square[i]);
    } else {
      for (int i = 0; i < kLanes; ++i)
        square[i] = i < rows ? load_n(from + i * stride, columns) : zero();
      transpose(square);
      for (int i = 0; i < columns; ++i) store(to + i * kPanel, square[i]);
    }
  }

  // Panels [keys, kPanel] of kPanel columns each, the last filled up with zeros.
  void load_values(Range block) {
    const float* v = v_ + block.begin * args_.v_stride;
    const std::int64_t count = block.end - block.begin, dim = args_.head_dim;
    const std::int64_t stride = args_.v_stride, panel = sizes_.block_keys * kPanel;
    for (std::int64_t j = 0; j < count; ++j, v += stride) {
      if (j + kRowsAhead < count) prefetch_row(v + kRowsAhead * stride, dim);
      float* to = values_ + j * kPanel;
      std::int64_t d = 0;
      for (; d + kPanel <= dim; d += kPanel, to += panel) {
        store(to, load(v + d));
        store(to + kLanes, load(v + d + kLanes));
      }
      if (d == dim) continue;
      store(to, load_n(v + d, static_cast<int>(min_int(dim - d, kLanes))));
      store(to + kLanes, load_n(v + d + kLanes, static_cast<int>(max_int(dim - d - kLanes, 0))));
    }
  }

  // Columns of the block to compute for a strip: from a panel's edge to the last key kept.
  Range columns_of(const Strip& strip, Range block) const {
    const Range keys{max_int(strip.keys.begin, block.begin), min_int(strip.keys.end, block.end)};
    if (keys.begin >= keys.end) return {0, 0};
    if (args_.bool_mask && strip.keys.begin < block.begin && !mask_keeps_any(strip, keys))
      return {0, 0};
    return {(keys.begin - block.begin) / kPanel * kPanel, keys.end - block.begin};
  }

  std::int64_t mask_offset(std::int64_t query, std::int64_t head) const {
    return sequence_ * args_.mask_batch_stride + head * args_.mask_head_stride +
           query * args_.mask_row_stride;
  }

  bool mask_keeps_any(const Strip& strip, Range keys) const {
    bool any = false;
    for_each_row(strip.row, strip.row + strip.rows,
                 [&](auto, std::int64_t query, std::int64_t head) {
                   const std::uint8_t* mask = args_.bool_mask + mask_offset(query, head);
                   for (std::int64_t key = keys.begin; key < keys.end; ++key) any |= mask[key] != 0;
                 });
    return any;
  }

  void score(const Strip& strip, Range columns, Range block) {
    const std::int64_t dim = args_.head_dim;
    with_rows(strip.rows, [&](auto tile) {
      Prefetch none{nullptr, 0};
      for (std::int64_t j = columns.begin; j < columns.end; j += kPanel) {
        clear(tile);
        multiply(tile, queries_ + strip.row * dim, dim, keys_ + j * dim, dim, none);
        store(tile, scores_ + j, kBlockKeys);
      }
    });
    adjust(strip, columns, block);
  }

  // Soft cap, bias and masks.
  void adjust(const Strip& strip, Range columns, Range block) const {
    const Range whole{columns.begin, round_up(columns.end, kPanel)};
    const bool bounded = strip.common.begin > block.begin + whole.begin ||
                         strip.common.end < block.begin + whole.end;
    const bool masked = args_.bool_mask || args_.add_mask;
    if (!bounded && !masked && args_.softcap == 0.0f && !args_.relative_bias) return;
    const auto body = [&](std::int64_t row, std::int64_t query, std::int64_t head) {
      float* s = scores_ + (row - strip.row) * kBlockKeys;
      if (args_.softcap > 0.0f) cap(s, whole, args_.softcap);
      if (args_.relative_bias)
        add_relative_bias(args_, s, whole, head, block.begin - (query + len_k_ - len_q_));
      if (masked) mask(s, mask_offset(query, head) + block.begin, whole, block.end - block.begin);
      if (bounded) bound(s, keys_of(query), whole, block.begin);
    };
    for_each_row(strip.row, strip.row + strip.rows, body);
  }

  // count: keys in the block; the mask may end there.
  void mask(float* s, std::int64_t offset, Range columns, std::int64_t count) const {
    for (std::int64_t j = columns.begin; j < columns.end; j += kLanes) {
      const int n = static_cast<int>(clamp(count - j, 0, kLanes));
      const vf x = load(s + j);
      store(s + j, args_.bool_mask
                       ? select(nonzero_bytes(args_.bool_mask + offset + j, n), x, set1(-kInf))
                       : add(x, load_n(args_.add_mask + offset + j, n)));
    }
  }

  // Scores become weights relative to the row's maximum so far.
  void exponentiate(const Strip& strip, Range columns) {
    const std::int64_t end = round_up(columns.end, kPanel);
    alignas(64) float fresh[kLanes] = {};
    for (int r = 0; r < strip.rows; ++r) {
      const float* s = scores_ + r * kBlockKeys;
      vf m[2] = {set1(-kInf), set1(-kInf)};
      for (std::int64_t j = columns.begin; j < end; j += kPanel) {
        m[0] = max(m[0], load(s + j));
        m[1] = max(m[1], load(s + j + kLanes));
      }
      fresh[r] = hmax(max(m[0], m[1]));
    }
    const vf before = load_n(maxima_ + strip.row, strip.rows);
    const vf maxima = max(before, load(fresh));
    const vf shift = shift_of(maxima);
    const vf rescale = exp_nonpositive(sub(before, shift));
    store_n(maxima_ + strip.row, maxima, strip.rows);
    store(rescale_, rescale);
    store(fresh, shift);
    for (int r = 0; r < strip.rows; ++r)
      fresh[r] = exponentiate_row(scores_ + r * kBlockKeys, columns.begin, end, set1(fresh[r]));
    const vf sums = fma(load_n(sums_ + strip.row, strip.rows), rescale, load(fresh));
    store_n(sums_ + strip.row, sums, strip.rows);
  }

  void attend(const Strip& strip, Range block) {
    const Range columns = columns_of(strip, block);
    if (columns.begin == columns.end) return;
    score(strip, columns, block);
    exponentiate(strip, columns);
    const bool first = strip.keys.begin >= block.begin;
    const std::int64_t stride = sizes_.padded_dim;
    with_rows(strip.rows, [&](auto tile) {
      Prefetch none{nullptr, 0};
      for (std::int64_t d = 0; d < stride; d += kPanel) {
        float* sums = accumulators_ + strip.row * stride + d;
        if (first)
          clear(tile);
        else
          load_scaled(tile, sums, stride, rescale_);
        multiply(tile, scores_ + columns.begin, kBlockKeys,
                 values_ + d * sizes_.block_keys + columns.begin * kPanel,
                 columns.end - columns.begin, none);
        store(tile, sums, stride);
      }
    });
  }

  void write_out() const {
    const std::int64_t dim = args_.head_dim;
    for_each_row(0, rows_, [&](std::int64_t row, std::int64_t query, std::int64_t head) {
      const std::int64_t token = first_query_ + query;
      float* out = args_.out + token * args_.out_stride + head * args_.out_head_stride;
      const float* from = accumulators_ + row * sizes_.padded_dim;
      const float total = sums_[row];
      const vf scale = set1(1.0f / total);
      if (total == 0.0f)
        for_each_vector(dim, [=](std::int64_t d, auto lanes) { store(out + d, zero(), lanes); });
      else
        for_each_vector(dim, [=](std::int64_t d, auto lanes) {
          store(out + d, mul(load(from + d), scale), lanes);
        });
      if (args_.lse)
        args_.lse[head * args_.lse_stride + token] = maxima_[row] + __builtin_logf(total);
    });
  }

  void write_weights(const Strip& strip, Range block) {
    const Range columns = columns_of(strip, block);
    if (columns.begin == columns.end) return;
    score(strip, columns, block);
    const auto body = [&](std::int64_t row, std::int64_t query, std::int64_t head) {
      const float* s = scores_ + (row - strip.row) * kBlockKeys;
      const std::int64_t matrix = sequence_ * args_.num_heads + head;
      float* to = args_.weights + (matrix * args_.max_q + query) * args_.max_k + block.begin;
      const vf shift = shift_of(set1(maxima_[row]));
      const vf scale = set1(sums_[row] == 0.0f ? 0.0f : 1.0f / sums_[row]);
      for (std::int64_t j = columns.begin; j < columns.end; j += kLanes) {
        const vf e = exp_nonpositive(sub(load(s + j), shift));
        store_n(to + j, mul(e, scale), static_cast<int>(min_int(kLanes, columns.end - j)));
      }
    };
    for_each_row(strip.row, strip.row + strip.rows, body);
  }

  const AttentionArgs<float>& args_;
  const Sizes& sizes_;
  std::int64_t sequence_, kv_head_;
  const float *k_, *v_;  // of the key-value head
  std::int64_t first_query_, len_q_, len_k_;
  std::int64_t first_row_, rows_;
  std::int64_t strip_count_ = 0;
  Strip* strips_ = nullptr;
  float *queries_ = nullptr, *accumulators_ = nullptr;  // [rows, head_dim], [rows, padded_dim]
  float *keys_ = nullptr, *values_ = nullptr;           // panels of one block
  float* scores_ = nullptr;                             // [rows of a strip, kBlockKeys]
  float *maxima_ = nullptr, *sums_ = nullptr;           // [rows]
  float* rescale_ = nullptr;                            // [rows of a strip]
};

// A sequence has ceil(rows / chunk_rows) chunks. Its slots begin at its first row / chunk_rows +
// sequence, which leaves room for them without a list of offsets, and at most one slot unused.
std::int64_t first_slot(const AttentionArgs<float>& args, const Sizes& sizes,
                        std::int64_t sequence) {
  return args.cu_seqlens_q[sequence] * sizes.group / sizes.chunk_rows + sequence;
}

void run_task(const AttentionArgs<float>& args, const Sizes& sizes, std::int64_t min_queries,
              std::int64_t task) {
  std::int64_t sequence = 0;
  for (std::int64_t end = args.batch; end - sequence > 1;) {
    const std::int64_t middle = (sequence + end) / 2;
    (first_slot(args, sizes, middle) * args.num_kv_heads <= task ? sequence : end) = middle;
  }
  if (args.cu_seqlens_q[sequence + 1] - args.cu_seqlens_q[sequence] < min_queries) return;
  const std::int64_t first = first_slot(args, sizes, sequence);
  const std::int64_t slots = first_slot(args, sizes, sequence + 1) - first;
  const std::int64_t local = task - first * args.num_kv_heads;
  // A head's chunks follow each other, for they read the same keys; the last one, under a causal
  // mask the longest, goes first.
  Chunk(args, sizes, sequence, local / slots, slots - 1 - local % slots).run();
}

void clear_weights(const AttentionArgs<float>& args) {
  const std::int64_t floats = args.max_q * args.max_k;
  parallel_for(args.batch * args.num_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    __builtin_memset(args.weights + begin * floats, 0,
                     static_cast<std::size_t>((end - begin) * floats * kFloat));
  });
}

}  // namespace

void attend_in_tiles(const AttentionArgs<float>& args, std::int64_t min_queries) {
  const Sizes sizes(args);
  const std::int64_t tasks = first_slot(args, sizes, args.batch) * args.num_kv_heads;
  parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) run_task(args, sizes, min_queries, task);
  });
}

void attention(const AttentionArgs<float>& args) {
  if (args.weights) clear_weights(args);
  attend_in_tiles(args, 0);
}

}  // namespace softgate::cpu::SOFTGATE_ISA
