// Exercises the thread pool from many threads at once; meant for ThreadSanitizer. Returns nonzero
// on a wrong result. Usage: parallel_stress [seconds]
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu_count.h"
#include "core/parallel.h"

namespace {

using softgate::parallel_for;
using softgate::parallel_teams;
using softgate::Team;
using Random = std::minstd_rand;

std::atomic<bool> stop{false};
std::atomic<int> failures{0};
std::atomic<std::int64_t> calls{0};

void expect(bool ok, const char* what) {
  if (!ok && failures.fetch_add(1) < 10) std::fprintf(stderr, "failed: %s\n", what);
}

std::int64_t below(Random& random, std::int64_t limit) {
  return std::uniform_int_distribution<std::int64_t>(0, limit - 1)(random);
}

void nap(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

bool all_once(const std::vector<int>& visits) {
  for (const int count : visits)
    if (count != 1) return false;
  return true;
}

// The visits are plain memory: a missing happens-before between bodies and caller is a race.
void covers_range(Random& random) {
  const std::int64_t count = below(random, 200), grain = 1 + below(random, 40);
  std::vector<int> visits(static_cast<std::size_t>(count));
  parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
    expect(0 <= begin && begin < end && end <= count && end - begin <= grain, "chunk bounds");
    for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
  });
  expect(all_once(visits), "every index once");
}

void covers_nested_range(Random& random) {
  const std::int64_t rows = 1 + below(random, 8), columns = 1 + below(random, 30);
  std::vector<int> visits(static_cast<std::size_t>(rows * columns));
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      parallel_for(columns, 7, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i)
          ++visits[static_cast<std::size_t>(row * columns + i)];
      });
  });
  expect(all_once(visits), "every nested index once");
}

void rethrows(Random& random) {
  const std::int64_t count = 1 + below(random, 50), bad = below(random, count);
  bool caught = false;
  try {
    parallel_for(count, 3, [&](std::int64_t begin, std::int64_t end) {
      if (begin <= bad && bad < end) throw std::runtime_error("planned");
    });
  } catch (const std::runtime_error& error) {
    caught = std::strcmp(error.what(), "planned") == 0;
  }
  expect(caught, "exception reaches the caller");
}

// A body slower than the spinning makes the caller park; the nap afterwards parks the workers.
void parks(Random& random) {
  std::vector<int> visits(6);
  parallel_for(6, 1, [&](std::int64_t begin, std::int64_t) {
    if (begin % 2 != 0) nap(150);
    ++visits[static_cast<std::size_t>(begin)];
  });
  expect(all_once(visits), "every slow index once");
  nap(static_cast<int>(below(random, 300)));
}

void keeps_scratch_apart(Random& random) {
  const auto bytes = static_cast<std::size_t>(1 + below(random, 5000));
  parallel_for(16, 1, [&](std::int64_t begin, std::int64_t) {
    auto* block = static_cast<unsigned char*>(softgate::scratch(bytes));
    std::memset(block, static_cast<int>(begin), bytes);
    expect(reinterpret_cast<std::uintptr_t>(block) % 64 == 0, "scratch is aligned");
    expect(block[0] == begin && block[bytes - 1] == begin, "scratch is the thread's own");
  });
}

// Each member reads what another wrote in the step before: plain memory, so a barrier that lets one
// through early is a race.
void teams_step_together(Random& random) {
  constexpr int kTeams = 2, kMembers = 4;
  const auto steps = below(random, 20);
  std::vector<std::int64_t> values(kTeams * kMembers, 0);
  std::vector<int> sizes(kTeams, 0);
  parallel_teams(kTeams, kMembers, [&](Team& team, int index, int member) {
    expect(0 <= member && member < team.size() && team.size() <= kMembers, "member of a team");
    std::int64_t* mine = values.data() + index * kMembers;
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::int64_t seen = mine[(member + 1) % team.size()];
      expect(seen == step, "every member's step before");
      team.wait(member);
      mine[member] = step + 1;
      if (step % 5 == 4 && member == 0) nap(150);
      team.wait(member);
    }
    if (member == 0) sizes[static_cast<std::size_t>(index)] = team.size();
  });
  expect(sizes[0] >= 1 && sizes[0] == sizes[1], "every team ran, of equal size");
  for (std::size_t i = 0; i < values.size(); ++i)
    expect(values[i] == (static_cast<int>(i) % kMembers < sizes[0] ? steps : 0), "every step");
}

void teams_rethrow(Random& random) {
  const auto bad_step = below(random, 10), bad_member = below(random, 3);
  bool caught = false;
  try {
    parallel_teams(2, 3, [&](Team& team, int index, int member) {
      for (int step = 0; step < 10; ++step) {
        if (index == 1 && step == bad_step && member == bad_member % team.size())
          throw std::runtime_error("planned");
        team.wait(member);
      }
    });
  } catch (const std::runtime_error& error) {
    caught = std::strcmp(error.what(), "planned") == 0;
  }
  expect(caught, "a member's exception reaches the caller");
}

void call_at_random(unsigned seed) {
  constexpr void (*cases[])(Random&) = {
      covers_range, covers_range,        covers_nested_range, rethrows,
      parks,        keeps_scratch_apart, teams_step_together, teams_rethrow,
  };
  Random random(seed);
  while (!stop.load()) {
    cases[below(random, std::size(cases))](random);
    calls.fetch_add(1);
  }
}

void resize_at_random(unsigned seed) {
  Random random(seed);
  while (!stop.load()) {
    softgate::set_num_threads(static_cast<int>(1 + below(random, 5)));
    nap(2000);
  }
}

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

void reads_cgroup_quotas() {
  std::string name = (std::filesystem::temp_directory_path() / "softgate-XXXXXX").string();
  if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
  const std::filesystem::path root = name;
  const auto cpus = [&] { return softgate::cgroup_cpus(root.string()); };
  expect(cpus() == 0, "no cgroups");

  write(root / "proc/self/cgroup", "0::/outer/inner\n");
  write(root / "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  expect(cpus() == 0, "v2 without a quota");
  write(root / "sys/fs/cgroup/outer/inner/cpu.max", "350000 100000\n");
  expect(cpus() == 4, "v2 quota, rounded up");
  write(root / "sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
  expect(cpus() == 2, "v2 quota of a parent");

  write(root / "proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/job\n");
  write(root / "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  write(root / "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  expect(cpus() == 0, "v1 without a quota");
  write(root / "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
  expect(cpus() == 1, "v1 quota, rounded up");
  std::filesystem::remove_all(root);
}

}  // namespace

int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::atoi(argv[1]) : 3;
  reads_cgroup_quotas();
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(call_at_random, seed);
  threads.emplace_back(resize_at_random, 99u);
  std::this_thread::sleep_for(std::chrono::seconds(seconds));
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  std::printf("%lld calls, %d failures\n", static_cast<long long>(calls.load()), failures.load());
  return failures.load() == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
