// How many CPUs this process may keep busy.
#pragma once

#include <string>

namespace softgate {

// The smaller of the scheduler's affinity mask and the cgroup's quota; at least 1.
int available_cpus();

// CPUs that the quotas of this process's cgroup and its ancestors allow, rounded up; 0 without one.
// Reads ROOT/proc/self/cgroup, and under ROOT/sys/fs/cgroup cpu.max (v2) or cpu.cfs_quota_us (v1).
int cgroup_cpus(const std::string& root = "");

}  // namespace softgate
