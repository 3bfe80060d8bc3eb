#include "simt/executor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/inject.h"
#include "simt/memory.h"
#include "simt/shadow.h"

namespace softgate::simt {

uint3 thread_index{}, block_index{};
dim3 block_size, grid_size;

namespace {

// NaN as a float and as either half, and unlike any NaN that arithmetic makes.
constexpr std::uint32_t kUnwritten = 0xffe7ffc7;

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 128 << 10;
#endif
constexpr std::uint64_t kStackEnd = 0x57ac4e4d57ac4e4d;  // a value that nobody else writes there

enum class State { ready, at_barrier, at_collective, at_grid_sync, done };

constexpr std::ptrdiff_t kShift = 16;             // bytes by which an injected fault moves a copy
constexpr unsigned kFlipped = 1u << (kWarp - 1);  // the bit that one flips in a mask

struct Copy {
  unsigned char* shared;
  const void* global;
  unsigned bytes, source_bytes;
};

struct Thread {
  Fiber fiber;
  std::byte* stack;
  uint3 index;
  int warp, lane;
  State state;
  const char* waits_at;
  Where where;                            // of a barrier
  std::vector<std::vector<Copy>> groups;  // of copies in flight, the last one not committed
  PointCounts passed;                     // points of each kind
};

// Lanes that wait for the others of their mask.
struct Meeting {
  const char* name;
  unsigned mask, arrived = 0;
  const void* inputs[kWarp] = {};
  void* outputs[kWarp] = {};
};

struct Warp {
  std::vector<Meeting> meetings;
  std::uint32_t barriers = 1;
};

struct Block {
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> warp_order, lane_order;
  SharedMemory shared;
  std::uint32_t barriers = 1;
  int done = 0, at_barrier = 0, at_grid_sync = 0;
  Where barrier_site;
};

std::string to_string(const uint3& i) {
  std::ostringstream out;
  out << '(' << i.x << ", " << i.y << ", " << i.z << ')';
  return out.str();
}

std::string to_string(const Where& where) {
  const char* file = where.file_name();
  const char* slash = std::strrchr(file, '/');
  return std::string(slash == nullptr ? file : slash + 1) + ":" + std::to_string(where.line());
}

uint3 to_index(std::uint64_t i, const dim3& size) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

// The order in which blocks, warps and lanes run.
class Order {
 public:
  Order() {
    const char* text = std::getenv("SOFTGATE_SIMT_ORDER");
    const std::string name = text == nullptr || *text == '\0' ? "forward" : text;
    if (name == "forward" || name == "reverse") {
      reverse_ = name == "reverse";
      return;
    }
    char* end = nullptr;
    random_.seed(std::strtoul(name.c_str(), &end, 10));
    shuffled_ = true;
    if (*end != '\0') {
      throw std::invalid_argument("SOFTGATE_SIMT_ORDER is \"" + name +
                                  "\", expected forward, reverse or a number");
    }
  }

  std::vector<int> of(int count) {
    std::vector<int> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    if (reverse_) std::reverse(order.begin(), order.end());
    if (shuffled_) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

 private:
  bool reverse_ = false, shuffled_ = false;
  std::mt19937 random_;
};

// Stacks, kept between launches; the system gives a page when it is first touched.
class Stacks {
 public:
  std::byte* at(std::size_t i) {
    while (chunks_.size() <= i / kPerChunk) {
      void* chunk = mmap(nullptr, kPerChunk * kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (chunk == MAP_FAILED) throw std::bad_alloc();
      chunks_.push_back(static_cast<std::byte*>(chunk));
    }
    return chunks_[i / kPerChunk] + i % kPerChunk * kStackBytes;
  }

 private:
  static constexpr std::size_t kPerChunk = 256;
  std::vector<std::byte*> chunks_;
};

class Executor {
 public:
  Executor(const Launch& launch, void (*call)(void*), void* context)
      : launch_(launch), call_(call), context_(context) {
    check_shape();
    block_size = launch.block;
    grid_size = launch.grid;
    for (std::size_t i = 0; i < kPoints; ++i)
      failing_[i] = injected(launch.kernel, static_cast<Point>(i));
  }
  ~Executor() { record_launch(launch_.kernel, points_, launch_.shared_bytes); }

  void run_grid();

  // From inside a thread.
  void run_thread() { call_(context_); }
  void barrier(const Where& where);
  void warp_barrier(unsigned mask);
  void grid_sync(const Where& where);
  void meet(const char* name, unsigned mask, const void* in, void* out,
            void (*run)(void*, const void* const*, void* const*), void* meaning);
  [[noreturn]] void fail(const std::string& kind, const std::string& detail);
  void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes);
  void async_commit() { thread_->groups.emplace_back(); }
  unsigned given_mask(unsigned mask) { return fails(Point::mask) ? mask ^ kFlipped : mask; }
  void async_wait(int groups_left);
  Access access() const {
    return {static_cast<std::uint16_t>(thread_ - block_->threads.data()),
            static_cast<std::uint16_t>(thread_->warp), block_->barriers,
            block_->warps[static_cast<std::size_t>(thread_->warp)].barriers};
  }
  SharedMemory& shared() { return block_->shared; }
  int lane() const { return thread_->lane; }
  bool in_thread() const { return thread_ != nullptr; }

 private:
  void check_shape() const;
  void start(Block& block, uint3 index, std::size_t first_stack);
  bool run_block(Block& block);  // until no thread can go on; true when all are done
  bool run_warp(Block& block, int warp);
  void step(Block& block, Thread& thread);
  void open_barrier(Block& block);
  bool fails(Point point);
  bool fails(Point point, std::size_t number, std::size_t count);
  void wait(State state, const char* at, const Where& where = {});
  void land(const std::vector<Copy>& group);
  [[noreturn]] void report_stuck(Block& block);
  std::string error(const std::string& kind, const Block& block, const Thread& thread,
                    const std::string& detail) const;

  const Launch& launch_;
  void (*call_)(void*);
  void* context_;
  Order order_;
  Block* block_ = nullptr;
  Thread* thread_ = nullptr;
  std::string error_;
  PointCounts points_{}, failing_;  // how many there are, and which of them fail
};

Executor* executor = nullptr;

void Executor::check_shape() const {
  const auto count = [](const dim3& d) { return std::uint64_t{d.x} * d.y * d.z; };
  const dim3 &grid = launch_.grid, &block = launch_.block;
  if (count(grid) == 0 || count(block) == 0 || count(block) > kMaxThreads || block.z > 64 ||
      grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff ||
      launch_.shared_bytes > kMaxSharedBytes) {
    throw std::invalid_argument("no card takes this grid, block or amount of shared memory");
  }
}

void Executor::start(Block& block, uint3 index, std::size_t first_stack) {
  static Stacks stacks;
  const std::size_t count = std::size_t{block_size.x} * block_size.y * block_size.z;
  const std::size_t warps = (count + kWarp - 1) / kWarp;
  block.index = index;
  block.threads.resize(count);
  block.warps.assign(warps, {});
  block.done = block.at_barrier = block.at_grid_sync = 0;
  block.warp_order = order_.of(static_cast<int>(warps));
  block.lane_order = order_.of(kWarp);
  block.shared.reset(launch_.shared_bytes, kUnwritten);
  for (std::size_t i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.stack = stacks.at(first_stack + i);
    thread.fiber.start(thread.stack, kStackBytes, [] { executor->run_thread(); });
    std::memcpy(thread.stack, &kStackEnd, sizeof kStackEnd);
    thread.index = to_index(fails(Point::thread, i, count) ? (i + 1) % count : i, block_size);
    thread.warp = static_cast<int>(i / kWarp);
    thread.lane = static_cast<int>(i % kWarp);
    thread.state = State::ready;
    thread.groups.assign(1, {});
    thread.passed = {};
  }
}

void Executor::run_grid() {
  const std::size_t threads = std::size_t{block_size.x} * block_size.y * block_size.z;
  const auto blocks = std::uint64_t{grid_size.x} * grid_size.y * grid_size.z;
  const std::vector<int> sequence = order_.of(static_cast<int>(blocks));
  const auto place = [&](int i) {
    const auto block = static_cast<std::uint64_t>(i);
    return to_index(fails(Point::block, block, blocks) ? (block + 1) % blocks : block, grid_size);
  };
  if (!launch_.cooperative) {
    Block block;
    for (const int i : sequence) {
      start(block, place(i), 0);
      if (!run_block(block)) report_stuck(block);
    }
    return;
  }
  std::vector<Block> resident(sequence.size());
  for (std::size_t i = 0; i < resident.size(); ++i)
    start(resident[i], place(sequence[i]), i * threads);
  for (bool all_done = false; !all_done;) {
    all_done = true;
    for (Block& block : resident) all_done &= run_block(block);
    if (all_done) return;
    for (Block& block : resident)
      if (static_cast<std::size_t>(block.at_grid_sync) != threads) report_stuck(block);
    for (Block& block : resident) {
      block.at_grid_sync = 0;
      open_barrier(block);
    }
  }
}

bool Executor::run_block(Block& block) {
  for (bool progress = true; progress;) {
    progress = false;
    for (const int warp : block.warp_order) progress |= run_warp(block, warp);
  }
  return static_cast<std::size_t>(block.done) == block.threads.size();
}

bool Executor::run_warp(Block& block, int warp) {
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (const int lane : block.lane_order) {
      const auto i = static_cast<std::size_t>(warp * kWarp + lane);
      if (i >= block.threads.size() || block.threads[i].state != State::ready) continue;
      step(block, block.threads[i]);
      progress = any = true;
    }
  }
  return any;
}

void Executor::step(Block& block, Thread& thread) {
  block_ = &block;
  thread_ = &thread;
  block_index = block.index;
  thread_index = thread.index;
  std::uint64_t left = 0;
  thread.state = State::done;  // when it comes back, unless it waits for something
  thread.fiber.enter();
  thread_ = nullptr;
  if (!error_.empty()) throw std::runtime_error(error_);
  std::memcpy(&left, thread.stack, sizeof left);
  if (left != kStackEnd) throw std::runtime_error(error("stack overflow", block, thread, "simt"));
  if (thread.state == State::done) ++block.done;
}

void Executor::open_barrier(Block& block) {
  block.at_barrier = 0;
  ++block.barriers;
  for (Thread& thread : block.threads) {
    if (thread.state != State::done) thread.state = State::ready;
  }
}

void Executor::wait(State state, const char* at, const Where& where) {
  thread_->state = state;
  thread_->waits_at = at;
  thread_->where = where;
  thread_->fiber.leave();
}

// Is this thread's next point of this kind the one to fail?
bool Executor::fails(Point point) {
  const auto kind = static_cast<std::size_t>(point);
  const int number = thread_->passed[kind]++;
  points_[kind] = std::max(points_[kind], thread_->passed[kind]);
  return number == failing_[kind];
}

bool Executor::fails(Point point, std::size_t number, std::size_t count) {
  const auto kind = static_cast<std::size_t>(point);
  points_[kind] = static_cast<int>(count);
  return static_cast<int>(number) == failing_[kind];
}

void Executor::barrier(const Where& where) {
  if (fails(Point::barrier)) return;
  Block& block = *block_;
  if (block.at_barrier == 0) {
    block.barrier_site = where;
  } else if (block.barrier_site.line() != where.line() ||
             std::strcmp(block.barrier_site.file_name(), where.file_name()) != 0) {
    fail("divergent barrier",
         "is at " + to_string(where) + " while others wait at " + to_string(block.barrier_site));
  }
  if (static_cast<std::size_t>(++block.at_barrier) < block.threads.size())
    return wait(State::at_barrier, "__syncthreads", where);
  open_barrier(block);
}

void Executor::grid_sync(const Where& where) {
  if (!launch_.cooperative) fail("grid barrier", "the launch is not cooperative");
  if (fails(Point::grid_barrier)) return;
  ++block_->at_grid_sync;
  wait(State::at_grid_sync, "grid_sync", where);
}

void Executor::warp_barrier(unsigned mask) {
  const char none = 0;
  char unused = 0;
  if (fails(Point::warp_barrier)) return;
  meet(
      "__syncwarp", given_mask(mask), &none, &unused,
      [](void*, const void* const*, void* const*) {}, nullptr);
}

void Executor::meet(const char* name, unsigned mask, const void* in, void* out,
                    void (*run)(void*, const void* const*, void* const*), void* meaning) {
  const int lane = thread_->lane;
  const unsigned bit = 1u << lane;
  Warp& warp = block_->warps[static_cast<std::size_t>(thread_->warp)];
  if ((mask & bit) == 0)
    fail("incomplete collective", std::string(name) + ": its mask lacks its lane");
  std::size_t i = 0;
  while (i < warp.meetings.size() && (warp.meetings[i].mask & bit) == 0) ++i;
  if (i == warp.meetings.size()) warp.meetings.push_back({name, mask});
  Meeting& meeting = warp.meetings[i];
  if (meeting.mask != mask || std::strcmp(meeting.name, name) != 0) {
    fail("incomplete collective",
         std::string("is at ") + name + " while lanes of its warp wait at " + meeting.name);
  }
  meeting.arrived |= bit;
  meeting.inputs[lane] = in;
  meeting.outputs[lane] = out;
  if (meeting.arrived != mask) return wait(State::at_collective, name);

  run(meaning, meeting.inputs, meeting.outputs);
  // Only __syncwarp orders memory among lanes.
  if (std::strcmp(name, "__syncwarp") == 0) ++warp.barriers;
  for (int other = 0; other < kWarp; ++other) {
    if (other != lane && (mask >> other & 1) != 0) {
      block_->threads[static_cast<std::size_t>(thread_->warp * kWarp + other)].state = State::ready;
    }
  }
  warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(i));
}

void Executor::async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes) {
  const auto misaligned = [bytes](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % bytes != 0;
  };
  if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes > bytes)
    fail("asynchronous copy", "copies " + std::to_string(bytes) + " bytes");
  if (misaligned(shared) || (source_bytes > 0 && misaligned(global)))
    fail("asynchronous copy", "is not aligned to its " + std::to_string(bytes) + " bytes");
  if (fails(Point::copy)) shared = static_cast<unsigned char*>(shared) + kShift;
  if (const char* wrong = block_->shared.start_copy(shared, bytes, access()))
    fail("asynchronous copy", wrong);
  thread_->groups.back().push_back(
      {static_cast<unsigned char*>(shared), global, bytes, source_bytes});
}

void Executor::async_wait(int groups_left) {
  if (fails(Point::wait)) return;
  auto& groups = thread_->groups;
  while (groups.size() > static_cast<std::size_t>(groups_left) + 1) {
    land(groups.front());
    groups.erase(groups.begin());
  }
}

void Executor::land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    block_->shared.land_copy(copy.shared, copy.bytes, access());
    if (copy.source_bytes > 0) std::memcpy(copy.shared, copy.global, copy.source_bytes);
    std::memset(copy.shared + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  }
}

std::string Executor::error(const std::string& kind, const Block& block, const Thread& thread,
                            const std::string& detail) const {
  return "simt: " + kind + " in " + launch_.kernel + ", block " + to_string(block.index) +
         ", thread " + to_string(thread.index) + ": " + detail;
}

void Executor::fail(const std::string& kind, const std::string& detail) {
  error_ = error(kind, *block_, *thread_, detail);
  thread_->fiber.leave(true);
  std::abort();
}

void Executor::report_stuck(Block& block) {
  const auto describe = [](const Thread& thread) -> std::string {
    if (thread.state == State::done) return "has returned";
    const std::string at = std::string("waits at ") + thread.waits_at;
    return thread.state == State::at_collective ? at : at + ", " + to_string(thread.where);
  };
  for (const Thread& thread : block.threads) {
    if (thread.state != State::at_collective) continue;
    for (const Meeting& meeting : block.warps[static_cast<std::size_t>(thread.warp)].meetings) {
      const unsigned missing = meeting.mask & ~meeting.arrived;
      if ((meeting.arrived >> thread.lane & 1) == 0) continue;
      const auto absent = static_cast<std::size_t>(thread.warp * kWarp + std::countr_zero(missing));
      throw std::runtime_error(
          error("incomplete collective", block, thread,
                std::string("waits at ") + meeting.name + " for lane " +
                    std::to_string(absent % kWarp) + ", which " +
                    (absent < block.threads.size() ? describe(block.threads[absent])
                                                   : "does not exist")));
    }
  }
  for (const Thread& thread : block.threads) {
    if (thread.state == State::done) continue;
    for (const Thread& other : block.threads) {
      if (other.state == thread.state) continue;
      throw std::runtime_error(error(
          "divergent barrier", block, thread,
          describe(thread) + " while thread " + to_string(other.index) + " " + describe(other)));
    }
  }
  throw std::runtime_error(error("divergent barrier", block, block.threads[0],
                                 describe(block.threads[0]) + " while another block differs"));
}

}  // namespace

void run(const Launch& launch, void (*call)(void* context), void* context) {
  static std::mutex mutex;  // the indices are one set of variables
  const std::lock_guard lock(mutex);
  Executor instance(launch, call, context);
  struct Current {
    explicit Current(Executor* e) { executor = e; }
    ~Current() { executor = nullptr; }
  } const current(&instance);
  instance.run_grid();
}

unsigned char* shared_memory() { return executor->shared().data(); }
int lane() { return executor->lane(); }
unsigned given_mask(unsigned mask) { return executor->given_mask(mask); }
void barrier(Where where) { executor->barrier(where); }
void warp_barrier(unsigned mask) { executor->warp_barrier(mask); }
void grid_sync(Where where) { executor->grid_sync(where); }
void fail(const char* kind, const char* detail) { executor->fail(kind, detail); }
void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes) {
  executor->async_copy(shared, global, bytes, source_bytes);
}
void async_commit() { executor->async_commit(); }
void async_wait(int groups_left) { executor->async_wait(groups_left); }
void meet(const char* name, unsigned mask, const void* in, void* out,
          void (*run)(void*, const void* const*, void* const*), void* meaning) {
  executor->meet(name, mask, in, out, run, meaning);
}

void note_update(const void* p, std::size_t bytes) { note_access(p, bytes, AccessKind::update); }

void note_access(const void* p, std::size_t bytes, AccessKind kind) {
  if (executor == nullptr || !executor->in_thread()) return;
  if (const char* wrong = executor->shared().note(p, bytes, kind, executor->access()))
    executor->fail("shared memory", wrong);
}

}  // namespace softgate::simt
