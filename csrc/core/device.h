// Where a Tensor's memory lives.
#pragma once

#include <cstdint>
#include <string>

namespace softgate {

enum class DeviceKind : std::uint8_t { cpu };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

inline std::string name(Device device) {
  switch (device.kind) {
    case DeviceKind::cpu: return "cpu";
  }
  return "unknown";
}

}  // namespace softgate
