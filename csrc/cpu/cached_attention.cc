// Attention of a few queries to a cache, which is read once, in its order. A task is one split of a
// sequence's keys, with all heads. A group of kLanes keys is scored and, after the block's softmax
// (as in attention.cc), a group of values is added up, for all queries that share them.
#include "cpu/attention.h"
#include "cpu/kernels.h"

namespace softgate::cpu::SOFTGATE_ISA {

void cached_attention(const CachedAttentionArgs<float>& args);

namespace {

constexpr std::int64_t kBlockKeys = 64;
static_assert(kBlockKeys % (2 * kPanel) == 0);

// The queries of one sequence, one row for each of their heads. Those of one key-value head lie
// together, its query heads fastest.
struct Rows {
  std::int64_t first_query, queries, group;

  Rows(const AttentionArgs<float>& args, std::int64_t sequence)
      : first_query(args.cu_seqlens_q[sequence]),
        queries(args.cu_seqlens_q[sequence + 1] - first_query),
        group(args.num_heads / args.num_kv_heads) {}

  std::int64_t per_kv_head() const { return queries * group; }
  std::int64_t query(std::int64_t row) const { return row % per_kv_head() / group; }
  std::int64_t head(std::int64_t row) const { return row / per_kv_head() * group + row % group; }
};

// What a row found in one split.
struct Partial {
  float* sums;  // [head_dim], of weighted values
  float *largest, *total;
};

Partial partial_of(const CachedAttentionArgs<float>& args, std::int64_t partial,
                   std::int64_t head) {
  const std::int64_t dim = args.attention.head_dim;
  float* sums = args.partials + (partial * args.attention.num_heads + head) * (dim + 2);
  return {sums, sums + dim, sums + dim + 1};
}

void write_out(const AttentionArgs<float>& args, std::int64_t token, std::int64_t head,
               const float* sums, float total) {
  float* out = args.out + token * args.out_stride + head * args.out_head_stride;
  const vf scale = set1(total == 0.0f ? 0.0f : 1.0f / total);
  for_each_vector(args.head_dim, [=](std::int64_t d, auto lanes) {
    store(out + d, mul(load(sums + d, lanes), scale), lanes);
  });
}

// Scores of R rows with kLanes / R keys or less, a loaded key serving all rows. The sum of a row
// and key is the same for any R. With kAhead, keys kLanes further on are fetched.
template <int R, bool kAhead>
SG_INLINE void score_keys(const float* q, std::int64_t q_stride, const float* k,
                          std::int64_t k_stride, std::int64_t dim, std::int64_t keys,
                          float* scores) {
  constexpr int kKeys = kLanes / R;
  vf products[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) products[i] = zero();
  for_each_vector(dim, [&](std::int64_t d, auto lanes) __attribute__((always_inline)) {
    vf x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = load(q + r * q_stride + d);
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      if (i >= keys) break;
      const vf key = load(k + i * k_stride + d, lanes);
      if constexpr (kAhead) {
        if (d % kLineFloats == 0) __builtin_prefetch(k + (i + kLanes) * k_stride + d, 0, 3);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) products[r * kKeys + i] = fma(x[r], key, products[r * kKeys + i]);
    }
  });
  if constexpr (R == 1) {
    store(scores, row_sums(products));
  } else {
    alignas(64) float sums[kLanes];
    store(sums, row_sums(products));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      __builtin_memcpy(scores + r * kBlockKeys, sums + r * kKeys, kKeys * sizeof(float));
  }
}

template <int R, bool kAhead>
SG_INLINE void score_group(const float* q, std::int64_t q_stride, const float* k,
                           std::int64_t k_stride, std::int64_t dim, std::int64_t keys,
                           float* scores) {
  constexpr int kKeys = kLanes / R;
  for (std::int64_t i = 0; i < keys; i += kKeys, k += kKeys * k_stride, scores += kKeys) {
    if (keys - i >= kKeys)  // a constant for score_keys
      score_keys<R, kAhead>(q, q_stride, k, k_stride, dim, kKeys, scores);
    else
      score_keys<R, kAhead>(q, q_stride, k, k_stride, dim, keys - i, scores);
  }
}

class Split {
 public:
  // split: counted from the first one in which a query sees a key.
  Split(const CachedAttentionArgs<float>& args, std::int64_t sequence, std::int64_t split)
      : args_(args.attention),
        rows_(args_, sequence),
        count_(rows_.queries * args_.num_heads),
        keys_(keys_of_sequence(args_, sequence)),
        padded_dim_(round_up(args_.head_dim, kPanel)),
        first_key_((sight_of(0).begin / args.split_keys + split) * args.split_keys) {
    const std::int64_t end = min_int(first_key_ + args.split_keys, keys_.length);
    range_ = {max_int(first_key_, sight_of(0).begin),
              min_int(end, sight_of(rows_.queries - 1).end)};
    take_scratch();
  }

  void run() {
    load_queries();
    for (std::int64_t row = 0; row < count_; ++row) {
      maxima_[row] = -kInf;
      totals_[row] = 0.0f;
    }
    __builtin_memset(sums_, 0, static_cast<std::size_t>(count_ * padded_dim_ * kFloat));
    // Blocks begin at multiples of their size, so that no query's bounds move another's.
    for (std::int64_t key = range_.begin / kBlockKeys * kBlockKeys; key < range_.end;
         key += kBlockKeys) {
      const Range block{max_int(key, range_.begin / kLanes * kLanes),
                        min_int(key + kBlockKeys, range_.end)};
      score(key, block);
      exponentiate(key, block);
      add_values(key, block);
    }
  }

  void write(const CachedAttentionArgs<float>& args, std::int64_t partial) const {
    for (std::int64_t row = 0; row < count_; ++row) {
      const Partial to = partial_of(args, partial + rows_.query(row), rows_.head(row));
      const float* sums = sums_ + row * padded_dim_;
      for_each_vector(args_.head_dim, [=](std::int64_t d, auto lanes) {
        store(to.sums + d, load(sums + d), lanes);
      });
      *to.largest = maxima_[row];
      *to.total = totals_[row];
    }
  }

  void write_out() const {
    for (std::int64_t row = 0; row < count_; ++row) {
      SOFTGATE_ISA::write_out(args_, rows_.first_query + rows_.query(row), rows_.head(row),
                              sums_ + row * padded_dim_, totals_[row]);
    }
  }

 private:
  Range sight_of(std::int64_t query) const {
    return keys_in_sight(args_, query + keys_.length - rows_.queries, keys_.length);
  }

  void take_scratch() {
    const std::int64_t padded_rows = round_up(count_, kLineFloats);
    float* block = static_cast<float*>(scratch(static_cast<std::size_t>(
        (count_ * (2 * padded_dim_ + kBlockKeys) + 2 * padded_rows) * kFloat)));
    queries_ = block;
    sums_ = queries_ + count_ * padded_dim_;
    scores_ = sums_ + count_ * padded_dim_;
    maxima_ = scores_ + count_ * kBlockKeys;
    totals_ = maxima_ + padded_rows;
  }

  void load_queries() {
    const vf scale = set1(query_scale(args_));
    for (std::int64_t row = 0; row < count_; ++row) {
      const float* from = args_.q + (rows_.first_query + rows_.query(row)) * args_.q_stride +
                          rows_.head(row) * args_.q_head_stride;
      float* to = queries_ + row * padded_dim_;
      for_each_vector(args_.head_dim, [=](std::int64_t d, auto lanes) {
        store(to + d, mul(load(from + d, lanes), scale));
      });
    }
  }

  // body(group of kLanes keys or less, kv_head, number of keys)
  template <class Body>
  void for_each_group(Range block, Body body) const {
    for (std::int64_t key = block.begin; key < block.end; key += kLanes)
      for (std::int64_t kv_head = 0; kv_head < args_.num_kv_heads; ++kv_head)
        body(key, kv_head, min_int(kLanes, block.end - key));
  }

  // Scores of R rows of one key-value head with a group of keys.
  template <int R>
  void score_rows(std::int64_t row, const float* k, std::int64_t keys, bool fetch_next,
                  float* scores) const {
    const float* q = queries_ + row * padded_dim_;
    if (fetch_next)
      score_group<R, true>(q, padded_dim_, k, args_.k_stride, args_.head_dim, keys, scores);
    else
      score_group<R, false>(q, padded_dim_, k, args_.k_stride, args_.head_dim, keys, scores);
  }

  void score(std::int64_t first_key, Range block) {
    const std::int64_t rows = rows_.per_kv_head();
    for_each_group(block, [&](std::int64_t key, std::int64_t kv_head, std::int64_t keys) {
      const float* k = keys_.k + key * args_.k_stride + kv_head * args_.k_head_stride;
      std::int64_t row = kv_head * rows;
      const std::int64_t end = row + rows;
      bool fetch_next = key + kLanes < range_.end;
      while (row < end) {
        float* scores = scores_ + row * kBlockKeys + key - first_key;
        const std::int64_t left = end - row;
        if (left >= 4)
          score_rows<4>(row, k, keys, fetch_next, scores);
        else if (left >= 2)
          score_rows<2>(row, k, keys, fetch_next, scores);
        else
          score_rows<1>(row, k, keys, fetch_next, scores);
        row += left >= 4 ? 4 : left >= 2 ? 2 : 1;
        fetch_next = false;
      }
    });
  }

  // Scores become weights relative to the row's maximum so far; the sums shrink as it grows.
  void exponentiate(std::int64_t first_key, Range block) {
    const Range columns{(block.begin - first_key) / kPanel * kPanel,
                        round_up(block.end - first_key, kPanel)};
    for (std::int64_t row = 0; row < count_; ++row) {
      float* s = scores_ + row * kBlockKeys;
      if (args_.softcap > 0.0f) cap(s, columns, args_.softcap);
      const std::int64_t position = rows_.query(row) + keys_.length - rows_.queries;
      if (args_.relative_bias)
        add_relative_bias(args_, s, columns, rows_.head(row), first_key - position);
      const Range sight = sight_of(rows_.query(row));
      const Range seen{max_int(sight.begin, block.begin), min_int(sight.end, block.end)};
      if (seen.begin > first_key + columns.begin || seen.end < first_key + columns.end)
        bound(s, seen, columns, first_key);
      vf largest = set1(-kInf);
      for (std::int64_t j = columns.begin; j < columns.end; j += kLanes)
        largest = max(largest, load(s + j));
      const vf before = set1(maxima_[row]), after = max(before, set1(hmax(largest)));
      const vf shift = shift_of(after);
      const vf rescale = exp_nonpositive(sub(before, shift));
      const float total = exponentiate_row(s, columns.begin, columns.end, shift);
      maxima_[row] = hmax(after);
      totals_[row] = hmax(fma(set1(totals_[row]), rescale, set1(total)));
      float* sums = sums_ + row * padded_dim_;
      for (std::int64_t d = 0; d < padded_dim_; d += kLanes)
        store(sums + d, mul(load(sums + d), rescale));
    }
  }

  // sums[rows, kPanel] += weights[rows, keys] @ v[keys, kPanel]
  void add_panel(const float* weights, std::int64_t rows, const float* v, std::int64_t stride,
                 std::int64_t keys, float* sums) const {
    Prefetch none{nullptr, 0};
    for (std::int64_t r = 0; r < rows; r += kTileRows) {
      with_rows(min_int(kTileRows, rows - r), [&](auto tile) {
        load(tile, sums + r * padded_dim_, padded_dim_);
        multiply(tile, weights + r * kBlockKeys, kBlockKeys, v, keys, none, stride);
        store(tile, sums + r * padded_dim_, padded_dim_);
      });
    }
  }

  void add_values(std::int64_t first_key, Range block) {
    const std::int64_t rows = rows_.per_kv_head(), dim = args_.head_dim, stride = args_.v_stride;
    for_each_group(block, [&](std::int64_t key, std::int64_t kv_head, std::int64_t keys) {
      const std::int64_t ahead = min_int(kLanes, range_.end - key - kLanes);
      const std::int64_t unseen = max_int(0, range_.begin - key);
      key += unseen;
      keys -= unseen;
      const float* v = keys_.v + key * stride + kv_head * args_.v_head_stride;
      const float* weights = scores_ + kv_head * rows * kBlockKeys + key - first_key;
      float* sums = sums_ + kv_head * rows * padded_dim_;
      std::int64_t d = 0;
      for (; d + kPanel <= dim; d += kPanel) {
        for (std::int64_t i = 0; i < ahead; ++i)
          for (int line = 0; line < kPanel; line += kLineFloats)
            __builtin_prefetch(v + (i + kLanes) * stride + d + line, 0, 3);
        add_panel(weights, rows, v + d, stride, keys, sums + d);
      }
      if (d == dim) return;
      alignas(64) float panel[kLanes * kPanel];  // the last columns, filled up with zeros
      for (std::int64_t i = 0; i < keys; ++i) {
        const float* from = v + i * stride + d;
        float* to = panel + i * kPanel;
        store(to, load_n(from, static_cast<int>(min_int(kLanes, dim - d))));
        store(to + kLanes, load_n(from + kLanes, static_cast<int>(max_int(0, dim - d - kLanes))));
      }
      add_panel(weights, rows, panel, kPanel, keys, sums + d);
    });
  }

  const AttentionArgs<float>& args_;
  const Rows rows_;
  const std::int64_t count_;
  const Keys keys_;
  const std::int64_t padded_dim_, first_key_;
  Range range_{0, 0};                            // keys of the split that any query sees
  float *queries_ = nullptr, *sums_ = nullptr;   // [rows, padded_dim]
  float* scores_ = nullptr;                      // [rows, kBlockKeys]
  float *maxima_ = nullptr, *totals_ = nullptr;  // [rows]
};

void run_split(const CachedAttentionArgs<float>& args, std::int64_t task) {
  std::int64_t sequence = 0;
  for (std::int64_t end = args.attention.batch; end - sequence > 1;) {
    const std::int64_t middle = (sequence + end) / 2;
    (args.first_split[middle] <= task ? sequence : end) = middle;
  }
  const std::int64_t first = args.first_split[sequence];
  const std::int32_t* offsets = args.attention.cu_seqlens_q;
  const std::int64_t queries = offsets[sequence + 1] - offsets[sequence];
  if (queries == 0) return;
  Split split(args, sequence, task - first);
  split.run();
  if (args.first_split[sequence + 1] - first == 1)
    split.write_out();
  else
    split.write(args, args.first_partial[sequence] + (task - first) * queries);
}

// A head of one query from what its splits found.
void merge(const CachedAttentionArgs<float>& args, std::int64_t sequence, std::int64_t query,
           std::int64_t head) {
  const AttentionArgs<float>& attention = args.attention;
  const std::int64_t token = attention.cu_seqlens_q[sequence] + query, dim = attention.head_dim;
  const std::int64_t queries =
      attention.cu_seqlens_q[sequence + 1] - attention.cu_seqlens_q[sequence];
  const std::int64_t splits = args.first_split[sequence + 1] - args.first_split[sequence];
  const std::int64_t first = args.first_partial[sequence] + query;
  vf largest = set1(-kInf);
  for (std::int64_t s = 0; s < splits; ++s)
    largest = max(largest, set1(*partial_of(args, first + s * queries, head).largest));
  const vf shift = shift_of(largest);
  vf sums[kMaxHeadDim / kLanes];
  const std::int64_t vectors = ceil_div(dim, kLanes);
  for (std::int64_t i = 0; i < vectors; ++i) sums[i] = zero();
  vf total = zero();
  for (std::int64_t s = 0; s < splits; ++s) {
    const Partial partial = partial_of(args, first + s * queries, head);
    const vf weight = exp_nonpositive(sub(set1(*partial.largest), shift));
    total = fma(weight, set1(*partial.total), total);
    for_each_vector(dim, [&](std::int64_t d, auto lanes) {
      sums[d / kLanes] = fma(weight, load(partial.sums + d, lanes), sums[d / kLanes]);
    });
  }
  alignas(64) float row[kMaxHeadDim];
  for (std::int64_t i = 0; i < vectors; ++i) store(row + i * kLanes, sums[i]);
  write_out(attention, token, head, row, hmax(total));
}

// Decoded tokens with several splits get them merged, those without keys zeros.
void finish(const CachedAttentionArgs<float>& args, std::int64_t sequence) {
  const AttentionArgs<float>& attention = args.attention;
  const std::int64_t first = attention.cu_seqlens_q[sequence];
  const std::int64_t queries = attention.cu_seqlens_q[sequence + 1] - first;
  const std::int64_t splits = args.first_split[sequence + 1] - args.first_split[sequence];
  if (queries > kDecodeQueries || splits == 1) return;
  alignas(64) static constexpr float kZeros[kMaxHeadDim] = {};
  for (std::int64_t query = 0; query < queries; ++query) {
    for (std::int64_t head = 0; head < attention.num_heads; ++head) {
      if (splits == 0)
        write_out(attention, first + query, head, kZeros, 0.0f);
      else
        merge(args, sequence, query, head);
    }
  }
}

}  // namespace

void cached_attention(const CachedAttentionArgs<float>& args) {
  const std::int64_t batch = args.attention.batch;
  const std::int32_t* offsets = args.attention.cu_seqlens_q;
  parallel_for(args.first_split[batch], 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) run_split(args, task);
  });
  bool chunks = false;
  for (std::int64_t b = 0; b < batch; ++b) chunks |= offsets[b + 1] - offsets[b] > kDecodeQueries;
  if (chunks) attend_in_tiles(args.attention, kDecodeQueries + 1);
  parallel_for(batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) finish(args, b);
  });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
