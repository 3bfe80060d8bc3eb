#include "core/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

namespace softgate {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// "max 100000" or "150000 100000".
double quota_v2(const std::string& directory) {
  std::ifstream file(directory + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// The quota is -1 where there is none.
double quota_v1(const std::string& directory) {
  std::ifstream quota_file(directory + "/cpu.cfs_quota_us");
  std::ifstream period_file(directory + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period && quota > 0 && period > 0 ? quota / period
                                                                                 : kUnlimited;
}

// The tightest of a group's quota and those of the groups above it.
double tightest(const std::string& mount, std::string group, double (*quota)(const std::string&)) {
  double cpus = quota(mount);
  while (!group.empty()) {
    cpus = std::min(cpus, quota(mount + group));
    group.resize(group.find_last_of('/') == std::string::npos ? 0 : group.find_last_of('/'));
  }
  return cpus;
}

int affinity_cpus() {
  // The kernel wants a mask as large as its own, which may exceed cpu_set_t.
  for (std::size_t sets = 1; sets <= 64; sets *= 2) {
    std::vector<cpu_set_t> mask(sets);
    const std::size_t bytes = sets * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
    if (errno != EINVAL) break;
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int cgroup_cpus(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  double cpus = kUnlimited;
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:/group
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = ",";
    controllers.append(line, first + 1, second - first - 1).append(",");
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") cpus = std::min(cpus, tightest(mount, group, quota_v2));
    if (controllers.find(",cpu,") != std::string::npos)
      cpus = std::min(cpus, tightest(mount + "/cpu", group, quota_v1));
  }
  return cpus < std::numeric_limits<int>::max() ? static_cast<int>(std::ceil(cpus)) : 0;
}

int available_cpus() {
  const int allowed = std::max(affinity_cpus(), 1);
  const int quota = cgroup_cpus();
  return quota > 0 ? std::min(allowed, quota) : allowed;
}

}  // namespace softgate
