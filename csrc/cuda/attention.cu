// attention as FlashAttention-2 does it (Dao 2023): a block of threads owns a tile of query rows
// and walks over blocks of keys with an online softmax, scores and output in registers.
//
// A row is a query of one of the heads that share a key-value head; heads run fastest, so grouped
// heads read their keys once. Tiles are numbered over the packed batch (first_part), so that no
// launch depends on a length that only the device knows. Sequences of few rows have their keys
// split over blocks, whatever else is in the batch: decoding, where keys lie in a cache, too.
#include "cuda/attention.cuh"

#include <type_traits>

#include "core/check.h"
#include "cuda/attention_float.cuh"
#include "cuda/attention_tensor_cores.cuh"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"

namespace softgate::cuda {
namespace attention_detail {

// Joins the partial results of a query and head, a warp for each.
template <class T, class Shape>
__global__ void __launch_bounds__(kRowThreads)
    combine_kernel(const AttentionArgs<T> args, const Partials<Shape> partials) {
  const int query = static_cast<int>(blockIdx.x) * (kRowThreads / kWarp) + warp();
  if (query >= args.total_q) return;
  const int index = find_sequence(static_cast<int>(args.batch), [&](int sequence) {
    return args.cu_seqlens_q[sequence + 1] > query;
  });
  const int head = static_cast<int>(blockIdx.y);
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const Sequence sequence(args, index, head / group);
  if (sequence.rows() > kSplitRows) return;
  const int row = (query - sequence.first_query) * group + head % group;

  const std::int64_t part = first_part_of_keys(args, index);
  const int count = (sequence.len_k + kSplitKeys - 1) / kSplitKeys * Shape::kPartials;
  const auto place = [&](int i) {
    return partials.index(part + i / Shape::kPartials, i % Shape::kPartials, sequence.kv_head, row);
  };

  float top = kLowest;
  for (int i = lane(); i < count; i += kWarp) top = fmaxf(top, partials.lse[place(i)]);
  top = warp_reduce<Larger>(top);
  float sum = 0.0f;
  float out[(Shape::kHeadDim + kWarp - 1) / kWarp] = {};
  for (int i = 0; i < count; ++i) {
    const float weight = ptx::ex2_approx_ftz((partials.lse[place(i)] - top) * kLog2E);
    sum += weight;
#pragma unroll
    for (int d = 0; d < Shape::kHeadDim; d += kWarp)
      if (d + lane() < Shape::kHeadDim)
        out[d / kWarp] += weight * partials.out[place(i) * Shape::kHeadDim + d + lane()];
  }
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int d = 0; d < Shape::kHeadDim; d += kWarp)
    if (d + lane() < args.head_dim)
      sequence.out_of(args, row)[d + lane()] = static_cast<T>(out[d / kWarp] * inverse);
  if (args.lse && lane() == 0) *sequence.lse_of(args, row) = sum == 0.0f ? -kInf : top + logf(sum);
}

// Writes args.weights, a warp per query and head, in the place of the scores. To look at, not fast.
template <class T>
__global__ void __launch_bounds__(kRowThreads) weights_kernel(const AttentionArgs<T> args) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kWarp) + warp();
  if (place >= args.batch * args.num_heads * args.max_q) return;
  const int query = static_cast<int>(place % args.max_q);
  const int head = static_cast<int>(place / args.max_q % args.num_heads);
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const Sequence sequence(args, static_cast<int>(place / args.max_q / args.num_heads),
                          head / group);
  float* const weights = args.weights + place * args.max_k;
  const Range seen = query < sequence.len_q ? sequence.keys_of(query) : Range{0, 0};
  const int row = query * group + head % group;

  float top = kLowest;
  for (int key = lane(); key < args.max_k; key += kWarp) {
    float score = -kInf;
    if (key >= seen.begin && key < seen.end) {
      const T* q = sequence.q_of(args, row);
      const T* k = sequence.k_of(args) + key * args.k_stride;
      float product = 0.0f;
      for (int d = 0; d < args.head_dim; ++d)
        product = fmaf(static_cast<float>(q[d]), static_cast<float>(k[d]), product);
      score = final_score(args, sequence, row, key, product);
    }
    weights[key] = score;
    top = fmaxf(top, score);
  }
  top = warp_reduce<Larger>(top);
  float sum = 0.0f;
  for (int key = lane(); key < args.max_k; key += kWarp) {
    weights[key] = ptx::ex2_approx_ftz((weights[key] - top) * kLog2E);
    sum += weights[key];
  }
  sum = warp_reduce<Sum>(sum);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int key = lane(); key < args.max_k; key += kWarp) weights[key] *= inverse;
}

std::int64_t rows(std::int64_t tokens, const auto& args) {
  return tokens * (args.num_heads / args.num_kv_heads);
}

dim3 row_grid(std::int64_t count, std::int64_t heads) {
  constexpr int kRowsPerBlock = kRowThreads / kWarp;
  return {static_cast<unsigned>((count + kRowsPerBlock - 1) / kRowsPerBlock),
          static_cast<unsigned>(heads)};
}

template <class T, class Shape>
void launch_tiles(const AttentionArgs<T>& args, std::int64_t parts, const Partials<Shape>& partials,
                  Stream stream) {
  const auto start = [&](auto kernel, int shared_bytes) {
    launch(kernel,
           {.grid = dim3(static_cast<unsigned>(parts), static_cast<unsigned>(args.num_kv_heads)),
            .block = Shape::kThreads,
            .shared_bytes = static_cast<std::size_t>(shared_bytes),
            .stream = stream},
           args, partials);
  };
  const bool general = args.bool_mask || args.add_mask || args.relative_bias ||
                       args.softcap > 0.0f || !(args.scale > 0.0f);
  if constexpr (std::is_same_v<T, float>)
    start(general ? attention_float_kernel<Shape, true> : attention_float_kernel<Shape, false>,
          Shape::kSharedBytes);
  else if (general)
    start(attention_kernel<T, Shape, true>, TileShape<Shape, true>::kSharedBytes);
  else
    start(attention_kernel<T, Shape, false>, TileShape<Shape, false>::kSharedBytes);
}

// Of, say, Shape<64, split>: the sequences of few rows and the others, as far as there are any.
template <class Whole, class Split, class T>
void launch_both(const AttentionArgs<T>& args, Stream stream) {
  if (rows(args.max_q, args) > kSplitRows)
    launch_tiles(args, part_count(rows(args.total_q, args), args.batch, Whole::kRows),
                 Partials<Whole>{}, stream);
  if (rows(args.min_q, args) > kSplitRows) return;
  const std::int64_t parts = part_count_of_keys(args);
  const std::int64_t count = parts * Split::kPartials * args.num_kv_heads * kSplitRows;
  const Scratch scratch(count * (Split::kHeadDim + 1) * sizeof(float), stream);
  const Partials<Split> partials{
      scratch.data<float>(), scratch.data<float>() + count * Split::kHeadDim, args.num_kv_heads};
  launch_tiles(args, parts, partials, stream);
  launch(combine_kernel<T, Split>,
         {.grid = row_grid(args.total_q, args.num_heads), .block = kRowThreads, .stream = stream},
         args, partials);
}

template <class T, int kHeadDim>
void launch_head_dim(const AttentionArgs<T>& args, Stream stream) {
  launch_both<Shape<kHeadDim, false>, Shape<kHeadDim, true>>(args, stream);
}

template <int kPaddedDim>
void launch_float(const AttentionArgs<float>& args, Stream stream) {
  launch_both<FloatShape<kPaddedDim, false>, FloatShape<kPaddedDim, true>>(args, stream);
}

// Rows of 16-bit types are copied in chunks.
template <class T>
void check_chunks(const char* op, const char* argument, const T* data, std::int64_t stride,
                  std::int64_t head_stride, std::int64_t row_stride = 0) {
  check(reinterpret_cast<std::uintptr_t>(data) % kChunkBytes == 0 && stride % kChunkElements == 0 &&
            head_stride % kChunkElements == 0 && row_stride % kChunkElements == 0,
        op, ": rows of ", argument, " begin anywhere, expected at multiples of ", kChunkBytes,
        " bytes");
  check(stride >= 0 && stride * std::int64_t{sizeof(T)} <= 0x7fffffff, op, ": tokens of ", argument,
        " are ", stride, " elements apart, expected less than 2^31 bytes");
}

}  // namespace attention_detail

template <class T>
void attention(const AttentionArgs<T>& args, Stream stream) {
  using namespace attention_detail;
  if (args.weights && args.batch * args.max_q * args.max_k > 0)
    launch(weights_kernel<T>,
           {.grid = row_grid(args.batch * args.num_heads * args.max_q, 1),
            .block = kRowThreads,
            .stream = stream},
           args);
  if (args.total_q == 0) return;
  if constexpr (std::is_same_v<T, float>) {
    if (args.head_dim <= 32) return launch_float<32>(args, stream);
    if (args.head_dim <= 64) return launch_float<64>(args, stream);
    if (args.head_dim <= 96) return launch_float<96>(args, stream);
    if (args.head_dim <= 128) return launch_float<128>(args, stream);
    return launch_float<256>(args, stream);
  } else {
    const bool cached = args.lengths_k != nullptr;
    const char* op = cached ? "cached_attention" : "attention";
    check_chunks(op, "q", args.q, args.q_stride, args.q_head_stride);
    check_chunks(op, cached ? "k_cache" : "k", args.k, args.k_stride, args.k_head_stride,
                 args.k_row_stride);
    check_chunks(op, cached ? "v_cache" : "v", args.v, args.v_stride, args.v_head_stride,
                 args.v_row_stride);
    check_chunks(op, "out", args.out, args.out_stride, args.out_head_stride);
    switch (args.head_dim) {
      case 32: return launch_head_dim<T, 32>(args, stream);
      case 64: return launch_head_dim<T, 64>(args, stream);
      case 80: return launch_head_dim<T, 80>(args, stream);
      case 96: return launch_head_dim<T, 96>(args, stream);
      case 128: return launch_head_dim<T, 128>(args, stream);
      case 256: return launch_head_dim<T, 256>(args, stream);
      default:
        check(false, op, ": q has head_dim ", args.head_dim,
              ", expected 32, 64, 80, 96, 128 or 256 for 16-bit types");
    }
  }
}

template void attention(const AttentionArgs<float>&, Stream);
template void attention(const AttentionArgs<half>&, Stream);
template void attention(const AttentionArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
