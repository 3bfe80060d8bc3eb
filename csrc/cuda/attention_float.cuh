// attention of float32, multiplied and added in float32.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/ptx.cuh"

namespace softgate::cuda {
namespace attention_detail {  // not without a name, so that simt finds its kernels' names

// A warp owns rows; its lanes are keys for the scores and columns for the output. Any head size up
// to kPaddedDim, any strides.
template <int kPaddedDim_, bool kSplit_>
struct FloatShape {
  static constexpr int kPaddedDim = kPaddedDim_, kHeadDim = kPaddedDim;
  static constexpr bool kSplit = kSplit_;
  static constexpr int kPartials = 1;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kWarpRows = kSplit || kPaddedDim > 128 ? 4 : 8;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kWarp;
  static constexpr int kKeyPitch = kPaddedDim + 4;  // lanes read keys without bank conflicts
  static constexpr int kSharedBytes =
      4 * (kRows * kPaddedDim + kKeys * kKeyPitch + kWarps * kWarpRows * kKeys);
};

// Rows [first, first + kCount) below `end` of a tensor, zeros for the others and beyond head_dim.
// row_of(row) is where a row lies.
template <class Shape, int kCount, int kPitch, class RowOf>
__device__ __forceinline__ void load_floats(float* to, int first, int end, int head_dim,
                                            RowOf row_of) {
  for (int i = warp(); i < kCount; i += Shape::kWarps) {
    const float* row = row_of(min(first + i, end - 1));
    for (int d = lane(); d < Shape::kPaddedDim; d += kWarp) {
      const float value = row[min(d, head_dim - 1)];  // without a branch: lanes stay together
      to[i * kPitch + d] = first + i < end && d < head_dim ? value : 0.0f;
    }
  }
}

template <class Shape, bool kGeneral>
__global__ void __launch_bounds__(Shape::kThreads)
    attention_float_kernel(const AttentionArgs<float> args, const Partials<Shape> partials) {
  constexpr int kWarpRows = Shape::kWarpRows, kPaddedDim = Shape::kPaddedDim;
  const int part = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int items = Shape::kSplit ? 1 : static_cast<int>(args.num_heads / args.num_kv_heads);
  constexpr int kPartSize = Shape::kSplit ? kSplitKeys : Shape::kRows;
  const auto part_of = [&](int sequence) {
    if constexpr (Shape::kSplit) return first_part_of_keys(args, sequence);
    return first_part(std::int64_t{args.cu_seqlens_q[sequence]} * items, sequence, kPartSize);
  };
  const int index = find_sequence(static_cast<int>(args.batch),
                                  [&](int sequence) { return part_of(sequence + 1) > part; });
  const Sequence sequence(args, index, static_cast<int>(blockIdx.y));
  if ((sequence.rows() <= kSplitRows) != Shape::kSplit) return;
  const int first_item = static_cast<int>(part - part_of(index)) * kPartSize;
  const int first_row = Shape::kSplit ? 0 : first_item;
  const int rows = min(sequence.rows() - first_row, Shape::kRows);
  if (rows <= 0 || (Shape::kSplit && first_item >= sequence.len_k)) return;
  const Range limits =
      Shape::kSplit ? Range{first_item, first_item + kSplitKeys} : Range{0, sequence.len_k};
  const int head_dim = static_cast<int>(args.head_dim);

  float* const shared_q = reinterpret_cast<float*>(shared_memory());
  float* const shared_kv = shared_q + Shape::kRows * kPaddedDim;
  float* const weights = shared_kv + Shape::kKeys * Shape::kKeyPitch + warp() * kWarpRows * kWarp;
  const float* const warp_q = shared_q + warp() * kWarpRows * kPaddedDim;
  load_floats<Shape, Shape::kRows, kPaddedDim>(shared_q, first_row, sequence.rows(), head_dim,
                                               [&](int row) { return sequence.q_of(args, row); });

  float out[kWarpRows][kPaddedDim / kWarp] = {};
  float maxima[kWarpRows], sums[kWarpRows] = {};
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) maxima[r] = kLowest;

  const KeyBlocks blocks(sequence, {first_row, first_row + rows}, limits, kWarp);
  for (int i = 0; i < blocks.count; ++i) {
    const int first_key = blocks[i] * kWarp, key = first_key + lane();
    __syncthreads();
    load_floats<Shape, kWarp, Shape::kKeyPitch>(
        shared_kv, first_key, sequence.len_k, head_dim,
        [keys = sequence.k_of(args), &args](int k) { return keys + k * args.k_stride; });
    __syncthreads();

    float scores[kWarpRows] = {};
    for (int d = 0; d < kPaddedDim; d += 4) {
      const float4 k = *reinterpret_cast<const float4*>(shared_kv + lane() * Shape::kKeyPitch + d);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(warp_q + r * kPaddedDim + d);
        scores[r] = fmaf(q.w, k.w, fmaf(q.z, k.z, fmaf(q.y, k.y, fmaf(q.x, k.x, scores[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = min(first_row + warp() * kWarpRows + r, sequence.rows() - 1);
      const Range seen = sequence.keys_of(sequence.query_of(row));
      float score = -kInf;
      if (key >= seen.begin && key < seen.end) {
        if constexpr (kGeneral)
          score = final_score(args, sequence, row, key, scores[r]);
        else
          score = scores[r] * args.scale;
      }
      const float top = fmaxf(maxima[r], warp_reduce<Larger>(score));
      const float shrink = ptx::ex2_approx_ftz((maxima[r] - top) * kLog2E);
      const float weight = ptx::ex2_approx_ftz((score - top) * kLog2E);
      maxima[r] = top;
      sums[r] = sums[r] * shrink + weight;
      weights[r * kWarp + lane()] = weight;
#pragma unroll
      for (float& x : out[r]) x *= shrink;
    }
    __syncthreads();
    load_floats<Shape, kWarp, Shape::kKeyPitch>(
        shared_kv, first_key, sequence.len_k, head_dim,
        [values = sequence.v_of(args), &args](int k) { return values + k * args.v_stride; });
    __syncthreads();
    for (int k = 0; k < kWarp; ++k) {
      float values[kPaddedDim / kWarp];
#pragma unroll
      for (int d = 0; d < kPaddedDim / kWarp; ++d)
        values[d] = shared_kv[k * Shape::kKeyPitch + d * kWarp + lane()];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r)
#pragma unroll
        for (int d = 0; d < kPaddedDim / kWarp; ++d)
          out[r][d] = fmaf(weights[r * kWarp + k], values[d], out[r][d]);
    }
  }

#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = first_row + warp() * kWarpRows + r;
    const float sum = warp_reduce<Sum>(sums[r]);
    if (row >= sequence.rows()) continue;
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const float lse = sum == 0.0f ? -kInf : maxima[r] + logf(sum);
    const std::int64_t place = partials.index(part, 0, sequence.kv_head, row);
    float* to = Shape::kSplit ? partials.out + place * kPaddedDim : sequence.out_of(args, row);
#pragma unroll
    for (int d = 0; d < kPaddedDim / kWarp; ++d)
      if (Shape::kSplit || d * kWarp + lane() < head_dim)
        to[d * kWarp + lane()] = out[r][d] * inverse;
    if (lane() == 0 && (Shape::kSplit || args.lse))
      *(Shape::kSplit ? partials.lse + place : sequence.lse_of(args, row)) = lse;
  }
}

}  // namespace attention_detail
}  // namespace softgate::cuda
