// The DLPack 1.0 ABI (https://dmlc.github.io/dlpack/latest/c_api.html), as far as it is used.
#pragma once

#include <cstdint>

namespace softgate::dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;
inline constexpr std::uint32_t kMinorVersion = 0;

inline constexpr std::int32_t kCPU = 1;
inline constexpr std::int32_t kCUDA = 2;
inline constexpr std::int32_t kCUDAHost = 3;
inline constexpr std::int32_t kExtension = 12;
inline constexpr std::int32_t kCUDAManaged = 13;

enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6
};

inline constexpr std::uint64_t kReadOnly = 1;
inline constexpr std::uint64_t kIsCopied = 2;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct View {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: compact, row-major
  std::uint64_t byte_offset;
};

// In capsules named "dltensor".
struct Managed {
  View view;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

// In capsules named "dltensor_versioned".
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  View view;
};

}  // namespace softgate::dlpack
