// What is known of each byte of a block's shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace softgate::simt {

// Who accesses memory, and how often its block and its warp have met at a barrier so far: accesses
// of two threads are ordered when a meeting of both lies between them.
struct Access {
  std::uint16_t thread, warp;
  std::uint32_t block_meetings, warp_meetings;
};

class Shadow {
 public:
  void reset(std::size_t bytes);

  // Null, or what is wrong with the access.
  const char* read(std::size_t begin, std::size_t bytes, const Access& by);
  const char* write(std::size_t begin, std::size_t bytes, const Access& by);
  const char* start_copy(std::size_t begin, std::size_t bytes, const Access& by);
  void land_copy(std::size_t begin, std::size_t bytes, const Access& by);
  const char* update(std::size_t begin, std::size_t bytes);  // atomically

 private:
  static constexpr std::uint16_t kMany = 0xffff;
  enum class State : std::uint8_t { unwritten, in_flight, written };

  // The last thread that wrote; the thread, or kMany of one or of several warps, that has read
  // since the block's last meeting.
  struct Byte {
    State state = State::unwritten;
    Access writer{kMany, kMany, 0, 0};
    Access reader{kMany, kMany, 0, 0};
  };

  static bool ordered(const Access& before, const Access& now);
  static void note_reader(Byte& byte, const Access& by);

  std::vector<Byte> bytes_;
};

}  // namespace softgate::simt
