#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "core/check.h"
#include "core/cpu_count.h"

namespace softgate {
namespace {

using Body = void (*)(void*, std::int64_t, std::int64_t);

constexpr int kMaxThreads = 1024;
constexpr std::size_t kCacheLine = 64;
constexpr auto kSpinTime = std::chrono::microseconds(100);
// A member of a team that has parked holds up the others by what waking it takes, which is a few
// hundred microseconds on a virtual CPU that has been halted.
constexpr auto kTeamSpinTime = std::chrono::microseconds(500);
constexpr auto kCrowdedSpinTime = std::chrono::microseconds(5);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins for a time; reads the clock rarely, for it costs more than a turn.
class Spinner {
 public:
  explicit Spinner(std::chrono::microseconds time = kSpinTime) : time_(time) {}

  bool again() {
    relax();
    if (++turns_ % 32 != 0) return true;
    const auto now = std::chrono::steady_clock::now();
    if (turns_ == 32) end_ = now + time_;
    return now < end_;
  }

 private:
  std::chrono::microseconds time_;
  std::chrono::steady_clock::time_point end_;
  unsigned turns_ = 0;
};

#if defined(__linux__)
int current_cpu() { return sched_getcpu(); }

// May this thread, and those it has started, run on so many CPUs?
bool has_cpus(int count) {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) >= count;
}

// Moves this thread to another CPU. In a virtual machine, whose idle CPUs look taken, a thread that
// is woken may be put on the CPU of the one who wakes it, and the two take turns for tens of
// milliseconds before the scheduler parts them.
void leave_cpu(int cpu) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(cpu, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0)
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int current_cpu() { return -1; }
bool has_cpus(int) { return false; }
void leave_cpu(int) {}
#endif

// The state of a pool in one word: which job, how many more workers may join it, and how many are
// in it. The caller never waits for a worker that has not joined, such as one still waking up.
constexpr std::uint32_t kActive = 1, kActiveMask = 0x3ff;
constexpr std::uint32_t kSlot = 1u << 10, kSlotMask = 0x3ffu << 10;
constexpr std::uint32_t kJob = 1u << 20, kJobMask = ~(kSlotMask | kActiveMask);
static_assert(kMaxThreads - 1 <= kActiveMask);

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads), shares_(static_cast<std::size_t>(threads)) {
    // Signals are for the threads the program knows.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int member = 1; member < threads; ++member)
        workers_.emplace_back([this, member] { work(member); });
    } catch (const std::system_error&) {
      // Out of threads: go on with those there are.
    }
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }

  ~Pool() {
    stopping_.store(true, std::memory_order_relaxed);
    state_.fetch_add(kJob);
    state_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  // Threads there really are, the caller's among them.
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t chunks, std::int64_t count, std::int64_t grain, Body body, void* context) {
    const std::int64_t shares = std::min<std::int64_t>(chunks, threads_);
    job_ = {body, context, count, grain, shares, current_cpu()};
    for (std::int64_t i = 0; i < shares; ++i) {
      share(i).next.store(chunks * i / shares, std::memory_order_relaxed);
      share(i).end = chunks * (i + 1) / shares;
    }
    const auto slots = static_cast<std::uint32_t>(
        std::min(chunks - 1, static_cast<std::int64_t>(workers_.size())));
    state_.store(((state_.load(std::memory_order_relaxed) & kJobMask) + kJob) | slots * kSlot);
    wake(slots);
    take_chunks(0);
    close();
    if (failed_.load(std::memory_order_relaxed)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

 private:
  struct Job {
    Body body;
    void* context;
    std::int64_t count, grain;
    std::int64_t shares;
    int caller_cpu;
  };

  // Chunks [next, end) of a job. A member takes its own share first, then what is left of others':
  // calls over the same rows find them in the same core's cache.
  struct alignas(kCacheLine) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  Share& share(std::int64_t i) { return shares_[static_cast<std::size_t>(i)]; }

  void work(int member) {
    std::uint32_t seen = 0;
    while (join(seen)) {
      if (const int cpu = current_cpu(); cpu == job_.caller_cpu && has_cpus(threads_))
        leave_cpu(cpu);
      take_chunks(member);
      if (state_.fetch_sub(kActive) & kSlotMask) continue;
      if (caller_waits_.load() && caller_waits_.exchange(false)) caller_waits_.notify_one();
    }
  }

  // Waits for a job after `seen` and takes one of its slots; false when the pool shuts down.
  bool join(std::uint32_t& seen) {
    for (;;) {
      Spinner spinner;
      std::uint32_t state = state_.load(std::memory_order_acquire);
      while ((state & kJobMask) == seen) {
        if (!spinner.again()) park(state);
        state = state_.load(std::memory_order_acquire);
      }
      if (stopping_.load(std::memory_order_relaxed)) return false;
      seen = state & kJobMask;
      while ((state & kJobMask) == seen && (state & kSlotMask) != 0)
        if (state_.compare_exchange_weak(state, state - kSlot + kActive)) return true;
    }
  }

  void park(std::uint32_t state) {
    sleepers_.fetch_add(1);
    state_.wait(state);
    sleepers_.fetch_sub(1);
  }

  // As many of the parked workers as those awake cannot stand in for.
  void wake(std::uint32_t slots) {
    const auto awake = static_cast<std::uint32_t>(workers_.size()) - sleepers_.load();
    for (std::uint32_t i = awake; i < slots; ++i) state_.notify_one();
  }

  void take_chunks(int member) noexcept {
    const Job job = job_;
    try {
      for (std::int64_t i = 0; i < job.shares; ++i) {
        Share& from = share((member + i) % job.shares);
        for (;;) {
          const std::int64_t chunk = from.next.fetch_add(1, std::memory_order_relaxed);
          if (chunk >= from.end) break;
          const std::int64_t begin = chunk * job.grain;
          job.body(job.context, begin, begin + std::min(job.grain, job.count - begin));
        }
      }
    } catch (...) {
      for (std::int64_t i = 0; i < job.shares; ++i)
        share(i).next.store(share(i).end, std::memory_order_relaxed);
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }

  // Lets no more workers in and waits for those who are.
  void close() {
    if ((state_.fetch_and(~kSlotMask) & kActiveMask) == 0) return;
    Spinner spinner;
    while (state_.load(std::memory_order_acquire) & kActiveMask) {
      if (spinner.again()) continue;
      caller_waits_.store(true);
      if (state_.load() & kActiveMask) caller_waits_.wait(true);
    }
    caller_waits_.store(false, std::memory_order_relaxed);
  }

  alignas(kCacheLine) std::atomic<std::uint32_t> state_{0};
  Job job_{};
  std::atomic<bool> failed_{false};
  alignas(kCacheLine) std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> caller_waits_{false};
  std::atomic<bool> stopping_{false};
  std::exception_ptr error_;
  const int threads_;
  std::vector<Share> shares_;
  std::vector<std::thread> workers_;
};

std::atomic<int> requested{0};  // by set_num_threads; 0: none
std::atomic<int> detected{0};   // 0: not yet
std::atomic<bool> pool_taken{false};
// Guarded by pool_taken. Never destroyed at exit, when workers may still be looking at it.
Pool* pool = nullptr;

// A forked child has only the thread that called fork, and may have been given other CPUs.
void after_fork_in_child() {
  detected.store(0);
  pool_taken.store(false);
  pool = nullptr;  // leaked: its workers do not exist here
}
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);

class PoolLease {
 public:
  PoolLease() : held_(!pool_taken.exchange(true, std::memory_order_acquire)) {}
  ~PoolLease() {
    if (held_) pool_taken.store(false, std::memory_order_release);
  }
  PoolLease(const PoolLease&) = delete;
  PoolLease& operator=(const PoolLease&) = delete;

  explicit operator bool() const { return held_; }

  void drop_other_than(int threads) {
    if (pool && pool->threads() != threads) delete std::exchange(pool, nullptr);
  }
  Pool& get(int threads) {
    drop_other_than(threads);
    if (!pool) pool = new Pool(threads);
    return *pool;
  }

 private:
  const bool held_;
};

using TeamBody = void (*)(void*, Team&, int, int);

struct TeamBroken {};  // ends the members of teams in which another one threw

// A barrier in which each member says on a cache line of its own how often it has arrived and looks
// at those of the others.
class Barrier : public Team {
 public:
  explicit Barrier(int size) : Team(size), arrivals_(static_cast<std::size_t>(size)) {}

  void arrive(int member) {
    std::atomic<std::uint32_t>& mine = arrivals_[static_cast<std::size_t>(member)].count;
    const std::uint32_t count = mine.load(std::memory_order_relaxed) + 1;
    Arrivals& me = arrivals_[static_cast<std::size_t>(member)];
    me.cpu.store(current_cpu(), std::memory_order_relaxed);
    mine.store(count);
    mine.notify_all();
    for (const Arrivals& other : arrivals_) await(other, count, me);
    if (broken_.load()) throw TeamBroken();
  }

  void break_up() { broken_.store(true); }

  // For a member that has thrown: nobody waits for it any more.
  void leave(int member) {
    std::atomic<std::uint32_t>& mine = arrivals_[static_cast<std::size_t>(member)].count;
    mine.fetch_add(1);
    mine.notify_all();
  }

 private:
  struct alignas(kCacheLine) Arrivals {
    std::atomic<std::uint32_t> count{0};
    std::atomic<int> cpu{-1};  // where the member is
    bool crowded = false;      // the member's own
  };

  // No member is more than one arrival ahead of another.
  void await(const Arrivals& other, std::uint32_t count, Arrivals& me) const {
    const auto arrived = [&](std::uint32_t seen) { return seen == count || seen == count + 1; };
    std::uint32_t seen = other.count.load(std::memory_order_acquire);
    if (arrived(seen)) return;
    Spinner spinner(spin_time(me));
    me.crowded = false;
    do {
      if (!spinner.again()) {
        me.crowded = !has_cpus_;
        if (!part_from(other, me)) {
          other.count.wait(seen, std::memory_order_acquire);
          part_from(other, me);
        }
        spinner = Spinner(spin_time(me));
      }
      seen = other.count.load(std::memory_order_acquire);
    } while (!arrived(seen));
  }

  // Where spinning was in vain the last time for lack of CPUs, who is late may be waiting for this
  // very one: then it gets it soon.
  std::chrono::microseconds spin_time(const Arrivals& me) const {
    if (has_cpus_) return kTeamSpinTime;
    return me.crowded ? kCrowdedSpinTime : kSpinTime;
  }

  // Moves to another CPU if the other member is on this one.
  bool part_from(const Arrivals& other, Arrivals& me) const {
    if (!has_cpus_) return false;
    const int cpu = current_cpu();
    const bool together = cpu == other.cpu.load(std::memory_order_relaxed);
    if (together) leave_cpu(cpu);
    me.cpu.store(current_cpu(), std::memory_order_relaxed);
    return together;
  }

  const bool has_cpus_ = has_cpus(size());  // one for each member
  std::vector<Arrivals> arrivals_;
  std::atomic<bool> broken_{false};
};

// The teams of one call on a pool.
class Teams {
 public:
  Teams(int teams, int members, int threads, TeamBody body, void* context)
      : teams_(teams),
        groups_(threads >= teams ? teams : 1),
        members_(std::min(members, threads / groups_)),
        body_(body),
        context_(context) {
    for (int i = 0; i < groups_; ++i) barriers_.emplace_back(members_);
  }

  void run(Pool& leased) {
    const std::int64_t threads = groups_ * members_;
    const auto chunk = [](void* self, std::int64_t begin, std::int64_t) {
      static_cast<Teams*>(self)->run_member(static_cast<int>(begin));
    };
    // A thread that waits takes no further chunk, so each member gets a thread of its own.
    leased.run(threads, threads, 1, chunk, this);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void run_member(int thread) noexcept {
    const int group = thread / members_, member = thread % members_;
    Team& team = barriers_[static_cast<std::size_t>(group)];
    try {
      if (groups_ == teams_) {
        body_(context_, team, group, member);
      } else {
        for (int i = 0; i < teams_; ++i) body_(context_, team, i, member);
      }
      return;
    } catch (const TeamBroken&) {
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
      for (Barrier& barrier : barriers_) barrier.break_up();
    }
    barriers_[static_cast<std::size_t>(group)].leave(member);
  }

  const int teams_, groups_, members_;
  const TeamBody body_;
  void* const context_;
  std::deque<Barrier> barriers_;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

int detect_threads() {
  const char* variable = std::getenv("SOFTGATE_NUM_THREADS");
  if (!variable || !*variable) return std::min(available_cpus(), kMaxThreads);
  const std::string_view text = variable;
  int count = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), count);
  check(error == std::errc() && end == text.end() && count >= 1 && count <= kMaxThreads,
        "SOFTGATE_NUM_THREADS is \"", text, "\", expected an integer from 1 to ", kMaxThreads);
  return count;
}

struct Scratch {
  void* block = nullptr;
  std::size_t bytes = 0;

  ~Scratch() { reset(); }
  void reset() {
    if (block) deallocate(std::exchange(block, nullptr), std::exchange(bytes, 0));
  }
};
thread_local Scratch thread_scratch;

}  // namespace

int num_threads() {
  if (const int count = requested.load(std::memory_order_relaxed)) return count;
  if (const int count = detected.load(std::memory_order_relaxed)) return count;
  const int count = detect_threads();
  detected.store(count, std::memory_order_relaxed);
  return count;
}

void set_num_threads(int count) {
  check(count >= 1 && count <= kMaxThreads, "set_num_threads: count is ", count, ", expected 1 to ",
        kMaxThreads);
  requested.store(count, std::memory_order_relaxed);
  // A pool in use is replaced by the next call that takes it.
  if (PoolLease lease; lease) lease.drop_other_than(count);
}

void parallel_run(std::int64_t count, std::int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t chunks = (count - 1) / grain + 1;
  const int threads = num_threads();
  if (threads > 1 && chunks > 1) {
    if (PoolLease lease; lease) {
      lease.get(threads).run(chunks, count, grain, body, context);
      return;
    }
  }
  for (std::int64_t begin = 0; begin < count; begin += std::min(grain, count - begin))
    body(context, begin, begin + std::min(grain, count - begin));
}

void Team::wait(int member) {
  if (size_ > 1) static_cast<Barrier*>(this)->arrive(member);
}

void run_teams(int teams, int members, TeamBody body, void* context) {
  const int threads = num_threads();
  if (threads > 1 && (teams > 1 || members > 1)) {
    if (PoolLease lease; lease) {
      Pool& leased = lease.get(threads);
      Teams(teams, members, leased.size(), body, context).run(leased);
      return;
    }
  }
  Barrier alone(1);
  for (int i = 0; i < teams; ++i) body(context, alone, i, 0);
}

void* scratch(std::size_t bytes) {
  Scratch& mine = thread_scratch;
  if (mine.bytes < bytes) {
    mine.reset();
    mine.block = allocate(bytes);
    mine.bytes = bytes;
  }
  return mine.block;
}

}  // namespace softgate
