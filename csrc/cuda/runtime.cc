#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "core/check.h"
#include "cuda/allocator.h"
#include "cuda/error.h"
#include "cuda/staging.h"

namespace softgate::cuda {
namespace {

constexpr int kOldest = 75;  // compute capability, times ten

cudaStream_t as_stream(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t as_event(Event event) { return static_cast<cudaEvent_t>(event); }

std::string version(int number) { return concat(number / 1000, ".", number % 1000 / 10); }

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) throw std::runtime_error("device cuda: this machine has no NVIDIA driver");
  if (error == cudaErrorInsufficientDriver) {
    throw std::runtime_error(concat("device cuda: the NVIDIA driver serves CUDA ", version(driver),
                                    ", this build needs ", version(CUDART_VERSION)));
  }
  throw std::runtime_error(concat("device cuda: ", cudaGetErrorString(error)));
}

int attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "device properties");
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          properties.totalGlobalMem};
}

// A card is looked at once; kernels run on none that is too old.
void use(int device) {
  static std::mutex mutex;
  static std::vector<bool> seen;
  {
    const std::lock_guard lock(mutex);
    const auto i = static_cast<std::size_t>(device);
    if (i >= seen.size()) seen.resize(i + 1);
    if (!seen[i]) {
      const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
      const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
      if (10 * major + minor < kOldest) {
        throw std::runtime_error(concat("device cuda:", device, ": its compute capability is ",
                                        major, ".", minor, ", expected 7.5 or newer"));
      }
      seen[i] = true;
    }
  }
  check_cuda(cudaSetDevice(device), "set device");
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  return device;
}

int device_of(const void* pointer) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, pointer), "pointer");
  check(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged,
        "cuda: an address is not in a card's memory");
  return attributes.device;
}

// Streams that nobody uses now, by device.
struct Streams {
  std::mutex mutex;
  std::vector<std::vector<Stream>> idle;
};

Streams& streams() {
  static auto* instance = new Streams;  // never destroyed, as the allocator
  return *instance;
}

Stream create_stream(int device) {
  use(device);
  {
    const std::lock_guard lock(streams().mutex);
    auto& idle = streams().idle;
    idle.resize(std::max(idle.size(), static_cast<std::size_t>(device) + 1));
    auto& here = idle[static_cast<std::size_t>(device)];
    if (!here.empty()) {
      Stream stream = here.back();
      here.pop_back();
      return stream;
    }
  }
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create stream");
  return stream;
}

void release_stream(int device, Stream stream) noexcept {
  const std::lock_guard lock(streams().mutex);
  streams().idle[static_cast<std::size_t>(device)].push_back(stream);
}

Event create_event(int device) {
  use(device);
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "create event");
  return event;
}

float milliseconds(Event from, Event to) {
  float elapsed = 0.0f;
  check_cuda(cudaEventElapsedTime(&elapsed, as_event(from), as_event(to)), "elapsed time");
  return elapsed;
}

// What a Graph handle points to; it owns the memory that its kernels use.
struct CapturedGraph {
  cudaGraphExec_t executable = nullptr;
  std::vector<Constant> constants;
};

struct Capture {
  int device;
  Stream stream;
  CapturedGraph* graph;
};

thread_local std::vector<Capture> captures;

void begin_capture(int device, Stream stream) {
  use(device);
  check_cuda(cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeThreadLocal),
             "begin capture");
  captures.push_back({device, stream, new CapturedGraph});
  begin_private(device, stream, captures.back().graph);
}

// Null where the stream is not captured.
CapturedGraph* captured_graph(int device, Stream stream) {
  for (const Capture& capture : captures) {
    if (capture.device == device && capture.stream == stream) return capture.graph;
  }
  return nullptr;
}

void upload_or_record(int device, const Copy& copy, Stream stream) {
  use(device);
  if (CapturedGraph* graph = captured_graph(device, stream)) {
    graph->constants.emplace_back(copy, stream);
  } else {
    upload(device, copy, stream);
  }
}

void download_outside_captures(int device, const Copy& copy, Stream stream) {
  use(device);
  if (captured_graph(device, stream) != nullptr)
    throw std::runtime_error("cuda: a graph that is being captured cannot copy to the host");
  download(device, copy, stream);
}

void copy_on_device(int device, const Copy& copy, Stream stream) {
  use(device);
  start_copy(copy, stream);
}

void destroy_graph(int device, Graph graph) noexcept {
  const RelaxedCapture relaxed;  // of another graph
  auto* captured = static_cast<CapturedGraph*>(graph);
  if (!captured->constants.empty() && cudaSetDevice(device) == cudaSuccess)
    cudaDeviceSynchronize();  // a launch may still read them
  if (captured->executable != nullptr) cudaGraphExecDestroy(captured->executable);
  release_private(captured);
  delete captured;
}

Graph end_capture(int device, Stream stream) {
  use(device);
  const Capture capture = captures.back();
  captures.pop_back();
  end_private(device, stream);
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(as_stream(stream), &graph);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&capture.graph->executable, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (error != cudaSuccess) destroy_graph(device, capture.graph);
  check_cuda(error, "end capture");
  return capture.graph;
}

void launch_graph(int device, Graph graph, Stream stream) {
  use(device);
  check_cuda(cudaGraphLaunch(static_cast<CapturedGraph*>(graph)->executable, as_stream(stream)),
             "launch graph");
}

}  // namespace

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount, current_device()); }

bool has_bfloat16_products() {
  return attribute(cudaDevAttrComputeCapabilityMajor, current_device()) >= 8;
}

std::size_t max_shared_bytes() {
  return static_cast<std::size_t>(
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device()));
}

int resident_blocks(const void* kernel, int threads, std::size_t shared_bytes) {
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
             "occupancy");
  return blocks;
}

Scratch::Scratch(std::size_t bytes, Stream stream)
    : block_(allocate(current_device(), bytes, stream)), stream_(stream) {}
Scratch::~Scratch() { deallocate(0, block_, stream_); }

void fill_zero(void* block, std::size_t bytes, Stream stream) {
  check_cuda(cudaMemsetAsync(block, 0, bytes, as_stream(stream)), "fill");
}

Backend runtime() {
  return {
      .device_count = device_count,
      .device_info = device_info,
      .use = use,
      .allocate =
          [](int device, std::size_t bytes, Stream stream) {
            use(device);
            return allocate(device, bytes, stream);
          },
      .deallocate = deallocate,
      .cached_bytes = cached_bytes,
      .release_cached =
          [](int device) {
            use(device);
            release_cached(device);
          },
      .upload = upload_or_record,
      .download = download_outside_captures,
      .copy = copy_on_device,
      .device_of = device_of,
      .create_stream = create_stream,
      .release_stream = release_stream,
      .synchronize =
          [](int device, Stream stream) {
            use(device);
            check_cuda(cudaStreamSynchronize(as_stream(stream)), "synchronize");
          },
      .create_event = create_event,
      .destroy_event = [](Event event) noexcept { cudaEventDestroy(as_event(event)); },
      .record =
          [](int device, Event event, Stream stream) {
            use(device);
            check_cuda(cudaEventRecord(as_event(event), as_stream(stream)), "record event");
          },
      .wait =
          [](int device, Stream stream, Event event) {
            use(device);
            check_cuda(cudaStreamWaitEvent(as_stream(stream), as_event(event), 0), "wait");
          },
      .synchronize_event =
          [](Event event) { check_cuda(cudaEventSynchronize(as_event(event)), "synchronize"); },
      .milliseconds = milliseconds,
      .begin_capture = begin_capture,
      .end_capture = end_capture,
      .launch_graph = launch_graph,
      .destroy_graph = destroy_graph,
      .kernels = nullptr,
  };
}

}  // namespace softgate::cuda
