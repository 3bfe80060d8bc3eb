// Element types of a Tensor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softgate {

enum class DType : std::uint8_t { float32, float16, bfloat16, int8, int32, int64, boolean };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32: return 4;
    case DType::float16:
    case DType::bfloat16: return 2;
    case DType::int8:
    case DType::boolean: return 1;
    case DType::int64: return 8;
  }
  return 0;
}

constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    case DType::int8: return "int8";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::boolean: return "bool";
  }
  return "unknown";
}

}  // namespace softgate
