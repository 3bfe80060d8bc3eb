#include "core/backend.h"

#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "core/check.h"

namespace softgate {
namespace {

// Beside this library.
std::string library_path(DeviceKind kind) {
  Dl_info here;
  check(dladdr(reinterpret_cast<const void*>(&library_path), &here) != 0, "device ", name(kind),
        ": the folder of this extension is unknown");
  const std::string path = here.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + "_" + name(kind) + ".so";
}

const Backend& load(DeviceKind kind) {
  const std::string path = library_path(kind);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw std::runtime_error(concat("device ", name(kind), ": this build of softgate has no ",
                                    name(kind), " backend (", dlerror(), ")"));
  }
  const auto function = reinterpret_cast<const Backend* (*)()>(dlsym(library, "softgate_backend"));
  if (function == nullptr) throw std::runtime_error(concat(path, ": ", dlerror()));
  return *function();
}

struct Loaded {
  const Backend* backend = nullptr;
  int device_count = 0;
};

thread_local std::map<std::pair<DeviceKind, int>, Stream> streams;

}  // namespace

const Backend& backend(Device device) {
  static std::mutex mutex;
  static std::array<Loaded, 3> all;
  const std::lock_guard lock(mutex);
  check(device.kind != DeviceKind::cpu, "the CPU has no backend");
  Loaded& loaded = all[static_cast<std::size_t>(device.kind)];
  if (loaded.backend == nullptr) {
    const Backend& found = load(device.kind);
    loaded.device_count = found.device_count();
    loaded.backend = &found;
  }
  check(device.index < loaded.device_count, "device ", device, ": there are ", loaded.device_count,
        " ", name(device.kind), " devices");
  return *loaded.backend;
}

Stream current_stream(Device device) {
  const auto found = streams.find({device.kind, device.index});
  return found == streams.end() ? nullptr : found->second;
}

void set_current_stream(Device device, Stream stream) {
  streams[{device.kind, device.index}] = stream;
}

}  // namespace softgate
