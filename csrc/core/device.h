// Where a Tensor's memory lives.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

namespace softgate {

// simt is the CUDA backend run on the CPU, for tests (csrc/simt).
enum class DeviceKind : std::uint8_t { cpu, cuda, simt };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

constexpr const char* name(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu: return "cpu";
    case DeviceKind::cuda: return "cuda";
    case DeviceKind::simt: return "simt";
  }
  return "unknown";
}

// "cuda" is the first card, "cuda:1" the second.
inline std::string name(Device device) {
  const std::string kind = name(device.kind);
  return device.index == 0 ? kind : kind + ":" + std::to_string(device.index);
}

// Messages are written only when they are needed.
inline std::ostream& operator<<(std::ostream& out, Device device) { return out << name(device); }

}  // namespace softgate
