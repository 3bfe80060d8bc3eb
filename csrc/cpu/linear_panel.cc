// Packed weights to and from plain ones, and rows of them.
#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/linear_format.h"
#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

std::int64_t panel_bytes(const PanelFormat& format, std::int64_t in_features);
void pack(const PackArgs& args);
void unpack(const PackArgs& args);
void gather(const GatherArgs<float>& args);

namespace {

// Element k of a column, in elements from the panel's start.
struct Plain {
  SG_INLINE std::int64_t index(std::int64_t k, int column) { return k * kPanel + column; }
};
struct Paired {
  SG_INLINE std::int64_t index(std::int64_t k, int column) {
    return (k * kLanes + column % kLanes) * 2 + column / kLanes;
  }
};

// Integers of one panel.
class Integers {
 public:
  Integers(void* panel, const PanelFormat& format)
      : bytes_(static_cast<std::uint8_t*>(panel)), format_(format), geometry_(geometry(format)) {}

  std::int8_t get(std::int64_t k, int column) const {
    const std::uint8_t byte = *place(k, column);
    if (format_.type == WeightType::int4)
      return static_cast<std::int8_t>(column < kLanes ? byte & 15 : byte >> 4);
    return static_cast<std::int8_t>(byte - kDotOffset);
  }
  void set(std::int64_t k, int column, std::int8_t value) const {
    std::uint8_t* byte = place(k, column);
    if (format_.type == WeightType::int4)
      *byte = static_cast<std::uint8_t>(*byte | (column < kLanes ? value : value << 4));
    else
      *byte = static_cast<std::uint8_t>(value + kDotOffset);
  }

  float* row_scales() const { return reinterpret_cast<float*>(bytes_); }
  std::int32_t* row_totals() const {
    return reinterpret_cast<std::int32_t*>(row_scales() + kPanel);
  }
  std::uint16_t* scales(std::int64_t group) const {
    return reinterpret_cast<std::uint16_t*>(bytes_ + group * geometry_.unit_bytes);
  }
  std::uint16_t* minimums(std::int64_t group) const { return scales(group) + kPanel; }

 private:
  std::uint8_t* place(std::int64_t k, int column) const {
    const std::int64_t unit = k / geometry_.unit_depth, inner = k % geometry_.unit_depth;
    const bool paired = format_.type == WeightType::int4;
    const std::int64_t scales = format_.grouped ? kPanel * 2 * (format_.minimums ? 2 : 1) : 0;
    const std::int64_t columns = paired ? kLanes : kPanel;
    return bytes_ + geometry_.head_bytes + unit * geometry_.unit_bytes + scales +
           (inner / kDotDepth * columns + column % columns) * kDotDepth + inner % kDotDepth;
  }

  std::uint8_t* bytes_;
  PanelFormat format_;
  Geometry geometry_;
};

// body(panel's number, its first byte), over threads.
template <class Body>
void for_each_panel(const PackArgs& args, const Body& body) {
  const std::int64_t bytes = panel_bytes(args.format, args.in_features);
  parallel_for(panels_of(args.format, args.out_features), 4,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t p = begin; p < end; ++p)
                   body(p, static_cast<char*>(args.packed) + p * bytes);
               });
}

// body(column, its output feature, or -1)
template <class Body>
void for_each_column(const PackArgs& args, std::int64_t panel, const Body& body) {
  for (int column = 0; column < kPanel; ++column)
    body(column, feature_of(args.format, args.out_features, panel, column));
}

template <class Element, class Order>
void pack_elements(const PackArgs& args) {
  for_each_panel(args, [&](std::int64_t p, char* bytes) {
    auto* panel = reinterpret_cast<Element*>(bytes);
    for_each_column(args, p, [&](int column, std::int64_t feature) {
      const Element* weight =
          static_cast<const Element*>(args.weight) + max_int(feature, 0) * args.weight_stride;
      for (std::int64_t k = 0; k < args.in_features; ++k)
        panel[Order::index(k, column)] = feature >= 0 ? weight[k] : Element{};
    });
  });
}

template <class Element, class Order>
void unpack_elements(const PackArgs& args) {
  for_each_panel(args, [&](std::int64_t p, char* bytes) {
    const auto* panel = reinterpret_cast<const Element*>(bytes);
    for_each_column(args, p, [&](int column, std::int64_t feature) {
      if (feature < 0) return;
      Element* weight = static_cast<Element*>(args.weight) + feature * args.weight_stride;
      for (std::int64_t k = 0; k < args.in_features; ++k)
        weight[k] = panel[Order::index(k, column)];
    });
  });
}

void clear(const PackArgs& args, char* panel) {
  const Geometry g = geometry(args.format);
  const std::int64_t bytes = bytes_of_panel(g, args.in_features);
  const bool offset = args.format.type == WeightType::int8;
  __builtin_memset(panel, offset ? kDotOffset : 0, static_cast<std::size_t>(bytes));
  const Integers integers(panel, args.format);
  if (!args.format.grouped) {
    __builtin_memset(panel, 0, static_cast<std::size_t>(g.head_bytes));
    return;
  }
  const std::int64_t scales = kPanel * 2 * (args.format.minimums ? 2 : 1);
  for (std::int64_t group = 0; group < args.in_features / kGroupSize; ++group)
    __builtin_memset(integers.scales(group), 0, static_cast<std::size_t>(scales));
}

void pack_integers(const PackArgs& args) {
  const std::int64_t groups = args.in_features / kGroupSize;
  for_each_panel(args, [&](std::int64_t p, char* bytes) {
    clear(args, bytes);
    const Integers panel(bytes, args.format);
    for_each_column(args, p, [&](int column, std::int64_t feature) {
      if (feature < 0) return;
      const auto* values =
          static_cast<const std::int8_t*>(args.weight) + feature * args.weight_stride;
      for (std::int64_t k = 0; k < args.in_features; ++k) panel.set(k, column, values[k]);
      if (args.row_scales) {
        panel.row_scales()[column] = args.row_scales[feature];
        std::int32_t total = 0;
        for (std::int64_t k = 0; k < args.in_features; ++k) total += values[k];
        panel.row_totals()[column] = total;
      }
      for (std::int64_t g = 0; args.scales && g < groups; ++g) {
        panel.scales(g)[column] = args.scales[feature * groups + g];
        if (args.minimums) panel.minimums(g)[column] = args.minimums[feature * groups + g];
      }
    });
  });
}

void unpack_integers(const PackArgs& args) {
  const std::int64_t groups = args.in_features / kGroupSize;
  for_each_panel(args, [&](std::int64_t p, char* bytes) {
    const Integers panel(bytes, args.format);
    for_each_column(args, p, [&](int column, std::int64_t feature) {
      if (feature < 0) return;
      auto* values = static_cast<std::int8_t*>(args.weight) + feature * args.weight_stride;
      for (std::int64_t k = 0; k < args.in_features; ++k) values[k] = panel.get(k, column);
      if (args.row_scales) args.row_scales[feature] = panel.row_scales()[column];
      for (std::int64_t g = 0; args.scales && g < groups; ++g) {
        args.scales[feature * groups + g] = panel.scales(g)[column];
        if (args.minimums) args.minimums[feature * groups + g] = panel.minimums(g)[column];
      }
    });
  });
}

float half_to_float(std::uint16_t bits) {
  std::uint16_t halves[kLanes] = {bits};
  float values[kLanes];
  store(values, load_half(halves));
  return values[0];
}

float bfloat16_to_float(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

// One column of a panel, as float32.
void restore_column(const GatherArgs<float>& args, char* panel, int column, float* to) {
  const std::int64_t depth = args.in_features;
  const auto* words = reinterpret_cast<const std::uint16_t*>(panel);
  switch (args.format.type) {
    case WeightType::float32:
      for (std::int64_t k = 0; k < depth; ++k)
        to[k] = reinterpret_cast<const float*>(panel)[Plain::index(k, column)];
      return;
    case WeightType::float16:
      for (std::int64_t k = 0; k < depth; ++k)
        to[k] = half_to_float(words[Plain::index(k, column)]);
      return;
    case WeightType::bfloat16:
      for (std::int64_t k = 0; k < depth; ++k)
        to[k] = bfloat16_to_float(words[Paired::index(k, column)]);
      return;
    case WeightType::int8:
    case WeightType::int4: break;
  }
  const Integers integers(panel, args.format);
  if (!args.format.grouped) {
    const float scale = integers.row_scales()[column];
    for (std::int64_t k = 0; k < depth; ++k)
      to[k] = scale * static_cast<float>(integers.get(k, column));
    return;
  }
  for (std::int64_t k = 0; k < depth; k += kGroupSize) {
    const std::int64_t group = k / kGroupSize;
    const float scale = half_to_float(integers.scales(group)[column]);
    const float minimum =
        args.format.minimums ? half_to_float(integers.minimums(group)[column]) : 0.0f;
    for (std::int64_t i = k; i < k + kGroupSize; ++i)  // the product is exact
      to[i] = scale * static_cast<float>(integers.get(i, column)) + minimum;
  }
}

std::int64_t id_at(const GatherArgs<float>& args, std::int64_t token) {
  if (!args.ids) return token;
  return args.ids_are_int64 ? static_cast<const std::int64_t*>(args.ids)[token]
                            : static_cast<const std::int32_t*>(args.ids)[token];
}

}  // namespace

std::int64_t panel_bytes(const PanelFormat& format, std::int64_t in_features) {
  return bytes_of_panel(geometry(format), in_features);
}

void pack(const PackArgs& args) {
  switch (args.format.type) {
    case WeightType::float32: return pack_elements<std::uint32_t, Plain>(args);
    case WeightType::float16: return pack_elements<std::uint16_t, Plain>(args);
    case WeightType::bfloat16: return pack_elements<std::uint16_t, Paired>(args);
    case WeightType::int8:
    case WeightType::int4: return pack_integers(args);
  }
}

void unpack(const PackArgs& args) {
  switch (args.format.type) {
    case WeightType::float32: return unpack_elements<std::uint32_t, Plain>(args);
    case WeightType::float16: return unpack_elements<std::uint16_t, Plain>(args);
    case WeightType::bfloat16: return unpack_elements<std::uint16_t, Paired>(args);
    case WeightType::int8:
    case WeightType::int4: return unpack_integers(args);
  }
}

void gather(const GatherArgs<float>& args) {
  const std::int64_t bytes = panel_bytes(args.format, args.in_features);
  for_each_row_range(
      args.tokens, kLanes * kFloat * args.in_features, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin; token < end; ++token) {
          const Place place = place_of(args.format, args.out_features, id_at(args, token));
          float* out = args.out + token * args.out_stride;
          const float* residual =
              args.residual ? args.residual + token * args.residual_stride : nullptr;
          char* panel = static_cast<char*>(const_cast<void*>(args.packed)) + place.panel * bytes;
          if (!residual && args.scale == 1.0f) {  // bit for bit
            restore_column(args, panel, place.column, out);
            continue;
          }
          auto* row =
              static_cast<float*>(scratch(static_cast<std::size_t>(args.in_features * kFloat)));
          restore_column(args, panel, place.column, row);
          for_each_vector(args.in_features, [&](std::int64_t i, auto lanes) {
            vf value = mul(load(row + i, lanes), set1(args.scale));
            if (residual) value = add(value, load(residual + i, lanes));
            store(out + i, value, lanes);
          });
        }
      });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
