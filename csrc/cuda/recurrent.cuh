// Recurrent layers, step by step, from the inputs' part of all sums on. A layer's own file gives
// its phases: products of a state with some gates' weights, each with a pointwise part.
//
// Where the weights fit on chip one kernel runs all steps: a block owns some hidden units for the
// whole sequence and keeps their weights in registers and shared memory; blocks exchange states
// through `out` and meet at a barrier of the grid. Elsewhere each phase of each step is a launch.
//
// A warp forms the sums of a unit, its lanes over the depth, for a tile of up to kTileRows
// sequences. A sum's order is the same in every form, for every batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/kernel.cuh"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "cuda/vec.cuh"
#include "ops/recurrent.h"

namespace softgate::cuda {

inline constexpr int kTileRows = 8;
inline constexpr int kStepWarps = 8;  // of a block
inline constexpr int kStepThreads = kStepWarps * kWarp;

// A chunk is as much of a row as a warp loads at once; a lane's registers hold up to kHeldChunks of
// each gate.
template <class T>
inline constexpr int kChunk = kWarp * kVec<T>;
template <class T>
inline constexpr int kHeldChunks = 32 / kVec<T>;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// A barrier needs whole warps, and PTX promises no reconvergence after a branch.
__device__ __forceinline__ void sync_block() {
  __syncwarp();
  __syncthreads();
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- What a phase sees ----

// A unit of a sequence at a step.
template <class T>
struct Place {
  const RecurrentStepsArgs<T>& args;
  const RecurrentStepsDirection<T> direction;
  const std::int32_t *first, *length;  // those of args or a copy
  int step, row, unit;

  __device__ std::int64_t token(int at_step) const {
    const int from_start = direction.reverse ? length[row] - 1 - at_step : at_step;
    return first[row] + from_start;
  }
  // The state before the step; null stands for zeros.
  __device__ const T* state() const {
    if (step > 0) return direction.out + token(step - 1) * args.out_stride;
    return direction.h0 ? direction.h0 + args.order[row] * direction.h0_stride : nullptr;
  }
  __device__ T* intermediate() const { return direction.intermediate + row * args.hidden_size; }
  __device__ T* out() const { return direction.out + token(step) * args.out_stride; }

  // This unit's values.
  __device__ float gate(int gate) const {
    const std::int64_t column = gate * args.hidden_size + unit;
    return static_cast<float>(direction.gates[token(step) * args.gates_stride + column]);
  }
  __device__ float h() const {
    const T* row_of_h = state();
    return row_of_h ? static_cast<float>(row_of_h[unit]) : 0.0f;
  }
  __device__ float& carry() const { return direction.carry[row * args.hidden_size + unit]; }
  __device__ float c() const {
    if (step > 0) return carry();
    const T* c0 = direction.c0;
    return c0 ? static_cast<float>(c0[args.order[row] * direction.c0_stride + unit]) : 0.0f;
  }
};

// By selection: a parameter that is indexed would be copied to the stack.
template <class T>
__device__ __forceinline__ RecurrentStepsDirection<T> direction_of(
    const RecurrentStepsArgs<T>& args, unsigned index) {
  return index == 0 ? args.direction[0] : args.direction[1];
}

// What the pointwise part needs besides the sums, loaded before them, and what it gives.
struct Before {
  float h, carry;
};
struct After {
  float value, carry;
};

// A phase has
//   kGates products, which start at row kFirstGate * hidden_size of weight_hh, for `units` units;
//   kSlots values that its pointwise part takes, a power of two: the sums and, where a product is
//     missing, only what it would start from;
//   kInRegisters: may weights lie there, or in shared memory alone?
//   kCarries: does it give a new carry?
//   start(place, slot), before(place), finish(values, before): the pointwise part;
//   from(place), to(place): the rows that it reads and writes.
template <int kFirstGate_, int kGates_, int kSlots_>
struct GatePhase {
  static constexpr int kGates = kGates_, kSlots = kSlots_;
  static constexpr bool kInRegisters = true, kCarries = false;

  template <class T>
  static __host__ __device__ int units(const RecurrentStepsArgs<T>& args) {
    return static_cast<int>(args.hidden_size);
  }
  template <class T>
  static __host__ __device__ int depth(const RecurrentStepsArgs<T>& args) {
    return static_cast<int>(args.output_size);
  }
  template <class T>
  static __device__ const T* weight(const Place<T>& place, int gate) {
    const std::int64_t row = (kFirstGate_ + gate) * place.args.hidden_size + place.unit;
    return place.direction.weights.weight_hh + row * place.args.output_size;
  }
  template <class T>
  static __device__ float start(const Place<T>& place, int slot) {
    return place.gate(kFirstGate_ + slot);
  }
  template <class T>
  static __device__ Before before(const Place<T>&) {
    return {};
  }
  template <class T>
  static __device__ const T* from(const Place<T>& place) {
    return place.state();
  }
  template <class T>
  static __device__ T* to(const Place<T>& place) {
    return place.out();
  }
};

// ---- Weights of a unit, by chunks ----

// 128 bits of elements. Zeros beyond the end.
template <class T>
__device__ __forceinline__ uint4 load_padded(const T* row, int column, int columns) {
  if (column + kVec<T> <= columns && reinterpret_cast<std::uintptr_t>(row + column) % 16 == 0)
    return *reinterpret_cast<const uint4*>(row + column);
  Vec<T, kVec<T>> vec;
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) vec[i] = column + i < columns ? row[column + i] : T(0.0f);
  uint4 words;
  __builtin_memcpy(&words, &vec, sizeof(words));
  return words;
}

// By shifts, so that elements in registers stay as they are packed.
template <class T>
__device__ __forceinline__ void unpack(const uint4& words, float (&elements)[kVec<T>]) {
  const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      elements[i] = __uint_as_float(word[i]);
    } else {
      elements[2 * i] = static_cast<float>(T::from_bits(static_cast<std::uint16_t>(word[i])));
      elements[2 * i + 1] =
          static_cast<float>(T::from_bits(static_cast<std::uint16_t>(word[i] >> 16)));
    }
  }
}

template <class T>
__host__ __device__ int chunks_of(int depth) {
  return (depth + kChunk<T> - 1) / kChunk<T>;
}

// for_each(chunks, body) calls body(chunk, load), where load(gate, w) gives this lane's elements.

template <class T, int kGates>
class RegisterWeights {
 public:
  template <class Load>
  __device__ void fill(const Load& load) {
#pragma unroll
    for (int chunk = 0; chunk < kHeldChunks<T>; ++chunk) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        unpack<T>(load(chunk, gate), held_[chunk][gate]);
      }
    }
  }
  template <class Body>
  __device__ void for_each(int chunks, const Body& body) const {
#pragma unroll
    for (int chunk = 0; chunk < kHeldChunks<T>; ++chunk) {
      if (chunk >= chunks) break;
      body(chunk, [&](int gate, float(&w)[kVec<T>]) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) w[i] = held_[chunk][gate][i];
      });
    }
  }

 private:
  float held_[kHeldChunks<T>][kGates][kVec<T>];
};

template <class T, int kGates>
struct SharedWeights {
  const T* weights;  // [kGates, chunks, kChunk]

  template <class Body>
  __device__ void for_each(int chunks, const Body& body) const {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      body(chunk, [&](int gate, float(&w)[kVec<T>]) {
        const int place = (gate * chunks + chunk) * kChunk<T> + lane_index() * kVec<T>;
        unpack<T>(ptx::ld_shared_v4_u32(weights + place), w);
      });
    }
  }
};

template <class T, int kGates>
struct GlobalWeights {
  const T* rows[kGates];
  int depth, first_chunk;

  template <class Body>
  __device__ void for_each(int chunks, const Body& body) const {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      body(chunk, [&](int gate, float(&w)[kVec<T>]) {
        const int column = (first_chunk + chunk) * kChunk<T> + lane_index() * kVec<T>;
        unpack<T>(load_padded(rows[gate], column, depth), w);
      });
    }
  }
};

// ---- A tile: some rows, one unit ----

// Copies `rows` rows that row_of gives, from chunk `first` on, to shared memory.
template <class T, class RowOf>
__device__ __forceinline__ void stage(T* tile, int rows, int first, int chunks, int depth,
                                      const RowOf& row_of) {
  for (int i = warp_index(); i < rows * chunks; i += kStepWarps) {
    const T* row = row_of(i / chunks);
    const int column = (first + i % chunks) * kChunk<T> + lane_index() * kVec<T>;
    *reinterpret_cast<uint4*>(tile + i * kChunk<T> + lane_index() * kVec<T>) =
        load_padded(row, column, row == nullptr ? 0 : depth);
  }
}

// Calls body with a constant of at least `rows`, in [1, kTileRows].
template <class Body>
__device__ __forceinline__ void with_rows(int rows, const Body& body) {
  if (rows == 1)
    body(std::integral_constant<int, 1>{});
  else if (rows <= kTileRows / 2)
    body(std::integral_constant<int, kTileRows / 2>{});
  else
    body(std::integral_constant<int, kTileRows>{});
}

// Adds this lane's part of the products of a tile's rows and a unit's weights.
template <class T, class Phase, int kRows, class Weights>
__device__ __forceinline__ void multiply(float (&sums)[kRows * Phase::kSlots],
                                         const Weights& weights, const T* tile, int rows,
                                         int chunks) {
  const T* x[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // Past the last row the last one again: those sums are dropped.
    x[r] = tile + (r < rows ? r : rows - 1) * chunks * kChunk<T> + lane_index() * kVec<T>;
  }
  weights.for_each(chunks, [&](int chunk, const auto& load) {
    float w[Phase::kGates][kVec<T>];
#pragma unroll
    for (int gate = 0; gate < Phase::kGates; ++gate) load(gate, w[gate]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float values[kVec<T>];
      unpack<T>(*reinterpret_cast<const uint4*>(x[r] + chunk * kChunk<T>), values);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) {
#pragma unroll
        for (int gate = 0; gate < Phase::kGates; ++gate) {
          float& sum = sums[r * Phase::kSlots + gate];
          sum = fmaf(w[gate][i], values[i], sum);
        }
      }
    }
  });
}

// Of N sums over kLanes neighbouring lanes, powers of two, a lane gets sum lane / (kLanes / N).
// Each adds lanes in the same order for every N.
template <int N, int kLanes = kWarp>
__device__ __forceinline__ float reduce_scatter(const float (&values)[N]) {
  constexpr int kStep = kLanes / 2, kLeft = N > 1 ? N / 2 : 1;
  if constexpr (kLanes == 1) {
    return values[0];
  } else {
    const bool upper = N > 1 && (lane_index() & kStep) != 0;
    float sums[kLeft];
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const float kept = upper ? values[N - kLeft + i] : values[i];
      const float given = upper ? values[i] : values[N - kLeft + i];
      sums[i] = kept + __shfl_xor_sync(kFullMask, given, kStep);
    }
    return reduce_scatter<kLeft, kStep>(sums);
  }
}

// A warp's work on a tile that starts at `place`; product(sums) adds this lane's part.
template <class T, class Phase, int kRows, class Product>
__device__ __forceinline__ void run_tile(Place<T> place, int rows, bool stores,
                                         const Product& product) {
  constexpr int kSlots = Phase::kSlots, kSums = kRows * kSlots;
  constexpr int kCopies = kWarp / kSums;  // lanes that get the same sum
  const int sum_index = lane_index() / kCopies;
  const int row = sum_index / kSlots;
  place.row += row < rows ? row : rows - 1;
  const float start = Phase::start(place, sum_index % kSlots);
  const Before before = Phase::before(place);
  float sums[kSums] = {};
  product(sums);
  const float sum = start + reduce_scatter(sums);
  float values[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot)
    values[slot] = __shfl_sync(kFullMask, sum, (row * kSlots + slot) * kCopies);
  const After after = Phase::finish(place.args.kind, values, before);
  if (stores && row < rows && lane_index() == row * kSlots * kCopies) {
    Phase::to(place)[place.unit] = static_cast<T>(after.value);
    if constexpr (Phase::kCarries) place.carry() = after.carry;
  }
}

// ---- All steps in one kernel ----

// How a phase is spread over the blocks of a grid.
template <class Phase>
struct Share {
  // Of a block's units, those whose weights lie in registers.
  static constexpr int kHeldUnits = Phase::kInRegisters ? kStepWarps : 0;

  int units;  // of a block
  // Warps beside each other have different units, the others the same ones for other tiles.
  int across;

  __host__ __device__ Share(int all_units, int blocks)
      : units((all_units + blocks - 1) / blocks), across(1) {
    while (across < units && across < kStepWarps) across *= 2;
  }
  __host__ __device__ int shared_units() const {
    return units > kHeldUnits ? units - kHeldUnits : 0;
  }
  __host__ __device__ int rows() const { return kStepWarps / across * kTileRows; }
};

// Elements of shared memory: of a tile of a phase's operand, and of weights.
template <class T, class Phase>
__host__ __device__ int tile_elements(const RecurrentStepsArgs<T>& args, int blocks) {
  const int chunks = chunks_of<T>(Phase::depth(args));
  return Share<Phase>(Phase::units(args), blocks).rows() * chunks * kChunk<T>;
}
template <class T, class Phase>
__host__ __device__ int weight_elements(const RecurrentStepsArgs<T>& args, int blocks) {
  const int chunks = chunks_of<T>(Phase::depth(args));
  return Share<Phase>(Phase::units(args), blocks).shared_units() * Phase::kGates * chunks *
         kChunk<T>;
}

// One phase's weights of this block's units, for the whole sequence.
template <class T, class Phase>
class Resident {
 public:
  // `shared` is for those that do not lie in registers.
  __device__ void load(const Place<T>& place, T* shared) {
    const int all = Phase::units(place.args);
    depth_ = Phase::depth(place.args);
    chunks_ = chunks_of<T>(depth_);
    const Share<Phase> share(all, static_cast<int>(gridDim.x));
    first_unit_ = static_cast<int>(blockIdx.x) * share.units;
    units_ = min(share.units, all - first_unit_);
    slot_ = warp_index() % share.across;
    tile_row_ = warp_index() / share.across * kTileRows;
    rows_ = share.rows();
    shared_ = shared;
    if constexpr (Phase::kInRegisters) {
      held_.fill([&](int chunk, int gate) {
        return load_chunk(place, slot_, gate, chunk, slot_ < units_ ? depth_ : 0);
      });
    }
    const int pieces = Phase::kGates * chunks_;
    for (int i = warp_index(); i < (units_ - kHeldUnits) * pieces; i += kStepWarps) {
      const int index = kHeldUnits + i / pieces, gate = i % pieces / chunks_;
      *reinterpret_cast<uint4*>(shared + i * kChunk<T> + lane_index() * kVec<T>) =
          load_chunk(place, index, gate, i % chunks_, depth_);
    }
  }

  // One step of the first `active` sequences.
  __device__ void run(Place<T> place, int active, T* tile) const {
    for (int first = 0; first < active; first += rows_) {
      if (first > 0) sync_block();
      stage(tile, min(rows_, active - first), 0, chunks_, depth_, [&](int row) {
        place.row = first + row;
        return Phase::from(place);
      });
      sync_block();
      place.row = first + tile_row_;
      const int rows = min(kTileRows, active - place.row);
      if (rows <= 0 || slot_ >= units_) continue;
      const T* x = tile + tile_row_ * chunks_ * kChunk<T>;
      with_rows(rows, [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        if constexpr (Phase::kInRegisters) {
          place.unit = first_unit_ + slot_;
          run_tile<T, Phase, kRows>(place, rows, true, [&](auto& sums) {
            multiply<T, Phase, kRows>(sums, held_, x, rows, chunks_);
          });
        }
        for (int i = slot_ + kHeldUnits; i < units_; i += kStepWarps) {
          place.unit = first_unit_ + i;
          const int from = (i - kHeldUnits) * Phase::kGates * chunks_ * kChunk<T>;
          run_tile<T, Phase, kRows>(place, rows, true, [&](auto& sums) {
            const SharedWeights<T, Phase::kGates> weights{shared_ + from};
            multiply<T, Phase, kRows>(sums, weights, x, rows, chunks_);
          });
        }
      });
    }
  }

 private:
  __device__ uint4 load_chunk(Place<T> place, int index, int gate, int chunk, int depth) const {
    place.unit = first_unit_ + index;
    const int column = chunk * kChunk<T> + lane_index() * kVec<T>;
    return load_padded(Phase::weight(place, gate), column, depth);
  }

  static constexpr int kHeldUnits = Share<Phase>::kHeldUnits;

  RegisterWeights<T, Phase::kGates> held_;  // of this warp's first unit, if kInRegisters
  const T* shared_;                         // of the others
  int depth_, chunks_;
  int first_unit_, units_;  // of this block
  int slot_;                // of this warp among them
  int tile_row_, rows_;     // of this warp's tile among those of the block
};

template <class T, class... Phases>
struct Residents : Resident<T, Phases>... {};

template <class T>
struct SequenceArgs {
  RecurrentStepsArgs<T> steps;
  unsigned* arrivals;  // at the grid's barrier, zero before the launch
};

template <class T, class... Phases>
__global__ void __launch_bounds__(kStepThreads, 1) sequence_kernel(const SequenceArgs<T> all) {
  const RecurrentStepsArgs<T>& args = all.steps;
  // In shared memory: a tile, weights, how sequences lie.
  const int blocks = static_cast<int>(gridDim.x), batch = static_cast<int>(args.batch);
  auto* tile = reinterpret_cast<T*>(shared_memory());
  int used = 0;
  ((used = max(used, tile_elements<T, Phases>(args, blocks))), ...);
  const int weights = used;
  ((used += weight_elements<T, Phases>(args, blocks)), ...);
  auto* first = reinterpret_cast<std::int32_t*>(tile + used);
  std::int32_t* length = first + batch;
  for (int i = static_cast<int>(threadIdx.x); i < batch; i += kStepThreads) {
    first[i] = args.first[i];
    length[i] = args.length[i];
  }
  Place<T> place{args, direction_of(args, blockIdx.y), first, length, 0, 0, 0};
  Residents<T, Phases...> residents;
  used = weights;
  ((residents.Resident<T, Phases>::load(place, tile + used),
    used += weight_elements<T, Phases>(args, blocks)),
   ...);
  sync_block();

  int active = batch;
  for (int step = 0;; ++step) {
    while (active > 0 && length[active - 1] <= step) --active;
    if (active == 0) break;
    place.step = step;
    ((residents.Resident<T, Phases>::run(place, active, tile), grid_sync(all.arrivals)), ...);
  }
}

// ---- One phase of one step ----

template <class T>
struct StepArgs {
  RecurrentStepsArgs<T> steps;
  int step, active;  // sequences that reach it
};

template <class T, class Phase>
__global__ void __launch_bounds__(kStepThreads, 2) step_kernel(const StepArgs<T> one) {
  const RecurrentStepsArgs<T>& args = one.steps;
  auto* tile = reinterpret_cast<T*>(shared_memory());
  const int unit = static_cast<int>(blockIdx.x) * kStepWarps + warp_index();
  const int units = Phase::units(args), depth = Phase::depth(args), all = chunks_of<T>(depth);
  const int first = static_cast<int>(blockIdx.y) * kTileRows;
  const int rows = min(kTileRows, one.active - first);
  // A warp without a unit works on the last one and drops its results.
  Place<T> place{args,
                 direction_of(args, blockIdx.z),
                 args.first,
                 args.length,
                 one.step,
                 first,
                 min(unit, units - 1)};
  GlobalWeights<T, Phase::kGates> weights{{}, depth, 0};
#pragma unroll
  for (int gate = 0; gate < Phase::kGates; ++gate) weights.rows[gate] = Phase::weight(place, gate);
  with_rows(rows, [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    run_tile<T, Phase, kRows>(place, rows, unit < units, [&](auto& sums) {
      for (int chunk = 0; chunk < all; chunk += kHeldChunks<T>) {
        const int chunks = min(kHeldChunks<T>, all - chunk);
        if (chunk > 0) sync_block();
        stage(tile, rows, chunk, chunks, depth, [&](int row) {
          Place<T> other = place;
          other.row = first + row;
          return Phase::from(other);
        });
        sync_block();
        weights.first_chunk = chunk;
        multiply<T, Phase, kRows>(sums, weights, tile, rows, chunks);
      }
    });
  });
}

// ---- Launches ----

// What is left after the last step: h_n and c_n.
template <class T>
void last_states(const RecurrentStepsArgs<T>& args, Stream stream);

// Bytes of shared memory, or 0 where rows are too long for the registers.
template <class T, class... Phases>
std::size_t sequence_shared_bytes(const RecurrentStepsArgs<T>& args, int blocks) {
  if (std::max({chunks_of<T>(Phases::depth(args))...}) > kHeldChunks<T>) return 0;
  const std::int64_t elements = std::max({tile_elements<T, Phases>(args, blocks)...}) +
                                (weight_elements<T, Phases>(args, blocks) + ...);
  return elements * sizeof(T) + 2 * args.batch * sizeof(std::int32_t);
}

template <class T, class... Phases>
void run_steps(const RecurrentStepsArgs<T>& args, Stream stream) {
  // Enough blocks that no warp has more than one unit and tile, as far as there are processors.
  const std::int64_t tiles = (args.batch + kTileRows - 1) / kTileRows;
  const std::int64_t units = std::max({Phases::units(args)...});
  const auto blocks = static_cast<int>(
      std::min<std::int64_t>((units * tiles + kStepWarps - 1) / kStepWarps,
                             std::min<std::int64_t>(units, multiprocessors() / args.directions)));
  const auto directions = static_cast<unsigned>(args.directions);
  const std::size_t bytes = blocks > 0 ? sequence_shared_bytes<T, Phases...>(args, blocks) : 0;
  if (args.steps > 1 && bytes > 0 && bytes <= max_shared_bytes()) {
    const Scratch arrivals(sizeof(unsigned), stream);
    fill_zero(arrivals.data<unsigned>(), sizeof(unsigned), stream);
    launch(sequence_kernel<T, Phases...>,
           {.grid = dim3(static_cast<unsigned>(blocks), directions),
            .block = kStepThreads,
            .shared_bytes = bytes,
            .stream = stream,
            .cooperative = true},
           SequenceArgs<T>{args, arrivals.data<unsigned>()});
  } else {
    for (int step = 0; step < args.steps; ++step) {
      const int active = args.active[step];
      const auto step_tiles = static_cast<unsigned>((active + kTileRows - 1) / kTileRows);
      const auto run_phase = [&](auto kernel, int phase_units, int depth) {
        const auto groups = static_cast<unsigned>((phase_units + kStepWarps - 1) / kStepWarps);
        const int chunks = std::min(kHeldChunks<T>, chunks_of<T>(depth));
        launch(kernel,
               {.grid = dim3(groups, step_tiles, directions),
                .block = kStepThreads,
                .shared_bytes = std::min(kTileRows, active) * chunks * kChunk<T> * sizeof(T),
                .stream = stream},
               StepArgs<T>{args, step, active});
      };
      (run_phase(step_kernel<T, Phases>, Phases::units(args), Phases::depth(args)), ...);
    }
  }
  last_states(args, stream);
}

}  // namespace softgate::cuda
