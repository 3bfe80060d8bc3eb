#include "simt/inject.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <string>

namespace softgate::simt {
namespace {

// In the order of Point.
constexpr std::array<const char*, kPoints> kNames{
    "barrier", "grid_barrier", "warp_barrier", "wait", "copy", "mask", "thread", "block"};

struct Injection {
  std::string kernel, point;
  int number = -1;
};

struct Record {
  PointCounts points{};
  std::size_t shared_bytes = 0;
};

Injection injection;
std::map<std::string, Record> recorded;

}  // namespace

int injected(const char* kernel, Point point) {
  const bool is_here =
      injection.kernel == kernel && injection.point == kNames[static_cast<std::size_t>(point)];
  return is_here ? injection.number : -1;
}

void record_launch(const char* kernel, const PointCounts& points, std::size_t shared_bytes) {
  Record& largest = recorded[kernel];
  for (std::size_t i = 0; i < kPoints; ++i)
    largest.points[i] = std::max(largest.points[i], points[i]);
  largest.shared_bytes = std::max(largest.shared_bytes, shared_bytes);
}

}  // namespace softgate::simt

// From here on point `number` of a kind fails in launches of `kernel`; none where it is negative.
extern "C" __attribute__((visibility("default"))) void simt_inject(const char* kernel,
                                                                   const char* point, int number) {
  softgate::simt::injection = {kernel, point, number};
}

// The kernels launched since the last call: lines of a name and, after tabs, what it had most of.
extern "C" __attribute__((visibility("default"))) const char* simt_launches() {
  using namespace softgate::simt;
  static std::string text;
  std::ostringstream out;
  for (const auto& [kernel, record] : recorded) {
    out << kernel << "\tshared_bytes " << record.shared_bytes;
    for (std::size_t i = 0; i < kPoints; ++i) out << '\t' << kNames[i] << ' ' << record.points[i];
    out << '\n';
  }
  recorded.clear();
  text = out.str();
  return text.c_str();
}
