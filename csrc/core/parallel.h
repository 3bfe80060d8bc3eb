// One thread pool for all CPU kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softgate {

// Threads a parallel_for may use, the caller's among them: SOFTGATE_NUM_THREADS if set, else the
// smallest of the CPUs this process may run on and the cgroup's CPU quota.
int num_threads();

// Throws std::invalid_argument unless 1 <= count <= 1024.
void set_num_threads(int count);

// Runs body(context, begin, end) over disjoint ranges that cover [0, count), each at most `grain`
// long, on whichever thread is free. Returns when all are done; the first exception is rethrown.
// A call from inside a body, or while another thread's call holds the pool, runs inline.
void parallel_run(std::int64_t count, std::int64_t grain,
                  void (*body)(void* context, std::int64_t begin, std::int64_t end), void* context);

// Threads that work through steps together.
class Team {
 public:
  int size() const { return size_; }
  // Returns when every member has called it; what they wrote before is visible after. Spins before
  // it parks. Throws when another member has thrown.
  void wait(int member);

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

 protected:
  explicit Team(int size) : size_(size) {}
  ~Team() = default;

 private:
  const int size_;
};

// Runs body(context, team, index, member) on each member of `teams` teams, indexed from 0, of equal
// size and at most `members` each: side by side where there is a thread for every team, else one
// after the other. Members run at once, so that they may wait for each other. Returns when all are
// done; the first exception is rethrown. Where parallel_run would run inline, teams have one
// member.
void run_teams(int teams, int members, void (*body)(void* context, Team&, int index, int member),
               void* context);

// Per-thread working memory, 64-byte aligned, kept between calls; contents are undefined. One block
// per thread: a second call in the same body invalidates the first.
void* scratch(std::size_t bytes);

namespace {  // internal linkage: per-ISA objects must not share an instance (see cpu/isa.h)

template <class Body>
inline void parallel_for(std::int64_t count, std::int64_t grain, const Body& body) {
  parallel_run(
      count, grain,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <class Body>
inline void parallel_teams(int teams, int members, const Body& body) {
  run_teams(
      teams, members,
      [](void* context, Team& team, int index, int member) {
        (*static_cast<const Body*>(context))(team, index, member);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace

}  // namespace softgate
