// Devices, streams, events and graphs; softgate.cuda documents them.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/backend.h"
#include "core/check.h"

namespace softgate::bindings {
namespace {

Device to_card(const char* op, const std::string& text) {
  const Device device = to_device(op, text);
  check(device.kind != DeviceKind::cpu, op, ": device is the CPU, expected another");
  return device;
}

class PyEvent {
 public:
  explicit PyEvent(Device device)
      : device_(device), event_(backend(device).create_event(device.index)) {}
  ~PyEvent() { backend(device_).destroy_event(event_); }
  PyEvent(const PyEvent&) = delete;
  PyEvent& operator=(const PyEvent&) = delete;

  void record(Stream stream) { backend(device_).record(device_.index, event_, stream); }
  void synchronize() const { backend(device_).synchronize_event(event_); }
  float milliseconds_to(const PyEvent& later) const {
    return backend(device_).milliseconds(event_, later.event_);
  }
  Event handle() const { return event_; }

 private:
  Device device_;
  Event event_;
};

class PyGraph {
 public:
  PyGraph(Device device, Graph graph) : device_(device), graph_(graph) {}
  ~PyGraph() { backend(device_).destroy_graph(device_.index, graph_); }
  PyGraph(const PyGraph&) = delete;
  PyGraph& operator=(const PyGraph&) = delete;

  void launch() const {
    backend(device_).launch_graph(device_.index, graph_, current_stream(device_));
  }

 private:
  Device device_;
  Graph graph_;
};

class PyStream {
 public:
  explicit PyStream(Device device)
      : device_(device), stream_(backend(device).create_stream(device.index)) {}
  ~PyStream() { backend(device_).release_stream(device_.index, stream_); }
  PyStream(const PyStream&) = delete;
  PyStream& operator=(const PyStream&) = delete;

  void enter() {
    outer_.push_back(current_stream(device_));
    set_current_stream(device_, stream_);
  }
  void exit() {
    set_current_stream(device_, outer_.back());
    outer_.pop_back();
  }
  void synchronize() const { backend(device_).synchronize(device_.index, stream_); }
  void wait(const PyEvent& event) const {
    backend(device_).wait(device_.index, stream_, event.handle());
  }
  std::unique_ptr<PyEvent> record() const {
    auto event = std::make_unique<PyEvent>(device_);
    event->record(stream_);
    return event;
  }
  void begin_capture() const { backend(device_).begin_capture(device_.index, stream_); }
  std::unique_ptr<PyGraph> end_capture() const {
    return std::make_unique<PyGraph>(device_, backend(device_).end_capture(device_.index, stream_));
  }
  std::string device() const { return name(device_); }
  std::uintptr_t handle() const { return reinterpret_cast<std::uintptr_t>(stream_); }

 private:
  Device device_;
  Stream stream_;
  std::vector<Stream> outer_;
};

py::dict device_info(const std::string& text) {
  const Device device = to_card("device_info", text);
  const DeviceInfo info = backend(device).device_info(device.index);
  py::dict result;
  result["name"] = info.name;
  result["capability"] = py::make_tuple(info.major, info.minor);
  result["multiprocessors"] = info.multiprocessors;
  result["memory"] = info.memory;
  return result;
}

py::dict transfers() {
  const Transfers counts = softgate::transfers();
  py::dict result;
  result["uploads"] = counts.uploads;
  result["uploaded_bytes"] = counts.uploaded_bytes;
  result["downloads"] = counts.downloads;
  result["downloaded_bytes"] = counts.downloaded_bytes;
  return result;
}

}  // namespace

void register_device(py::module_& m) {
  using py::arg;
  const py::call_guard<ReleasedGil> released;
  py::class_<PyEvent>(m, "Event", py::is_final())
      .def("synchronize", &PyEvent::synchronize, released)
      .def("milliseconds_to", &PyEvent::milliseconds_to, arg("later"));
  py::class_<PyGraph>(m, "Graph", py::is_final()).def("launch", &PyGraph::launch, released);
  py::class_<PyStream>(m, "Stream", py::is_final())
      .def(py::init([](const std::string& device) {
             return std::make_unique<PyStream>(to_card("Stream", device));
           }),
           arg("device") = "cuda")
      .def_property_readonly("device", &PyStream::device)
      .def_property_readonly("handle", &PyStream::handle)
      .def("synchronize", &PyStream::synchronize, released)
      .def("wait", &PyStream::wait, arg("event"))
      .def("record", &PyStream::record)
      .def("begin_capture", &PyStream::begin_capture)
      .def("end_capture", &PyStream::end_capture)
      .def("__enter__",
           [](const py::object& self) {
             self.cast<PyStream&>().enter();
             return self;
           })
      .def("__exit__", [](PyStream& self, const py::args&) { self.exit(); });

  m.def(
      "device_count",
      [](const std::string& kind) {
        const Device device = to_card("device_count", kind);
        return backend(device).device_count();
      },
      arg("kind") = "cuda");
  m.def("device_info", &device_info, arg("device") = "cuda");
  m.def("transfers", &transfers);
  m.def(
      "synchronize",
      [](const std::string& text) {
        const Device device = to_card("synchronize", text);
        backend(device).synchronize(device.index, current_stream(device));
      },
      arg("device") = "cuda", released);
  m.def(
      "device_cached_bytes",
      [](const std::string& text) {
        const Device device = to_card("cached_bytes", text);
        return backend(device).cached_bytes(device.index);
      },
      arg("device") = "cuda");
  m.def(
      "device_release_cached",
      [](const std::string& text) {
        const Device device = to_card("release_cached", text);
        backend(device).release_cached(device.index);
      },
      arg("device") = "cuda", released);
}

}  // namespace softgate::bindings
