#include "simt/shadow.h"

namespace softgate::simt {

void Shadow::reset(std::size_t bytes) { bytes_.assign(bytes, {}); }

bool Shadow::ordered(const Access& before, const Access& now) {
  if (before.block_meetings != now.block_meetings) return true;
  if (before.warp != now.warp) return false;
  return before.thread == now.thread || before.warp_meetings != now.warp_meetings;
}

void Shadow::note_reader(Byte& byte, const Access& by) {
  Access& reader = byte.reader;
  if (reader.block_meetings != by.block_meetings) {
    reader = by;
  } else if (reader.warp != by.warp) {
    reader.warp = reader.thread = kMany;
  } else if (reader.warp_meetings != by.warp_meetings) {
    reader = by;
  } else if (reader.thread != by.thread) {
    reader.thread = kMany;
  }
}

const char* Shadow::read(std::size_t begin, std::size_t bytes, const Access& by) {
  for (std::size_t i = begin; i < begin + bytes; ++i) {
    Byte& byte = bytes_[i];
    if (byte.state == State::unwritten) return "reads what nobody has written";
    if (byte.state == State::in_flight) return "reads where a copy is in flight: a missing wait";
    if (!ordered(byte.writer, by)) return "reads what another thread wrote since the last barrier";
    note_reader(byte, by);
  }
  return nullptr;
}

const char* Shadow::write(std::size_t begin, std::size_t bytes, const Access& by) {
  for (std::size_t i = begin; i < begin + bytes; ++i) {
    Byte& byte = bytes_[i];
    if (byte.state == State::in_flight) return "writes where a copy is in flight: a missing wait";
    if (byte.state == State::written && !ordered(byte.writer, by))
      return "writes what another thread wrote since the last barrier";
    if (byte.reader.block_meetings != 0 && !ordered(byte.reader, by))
      return "writes what another thread read since the last barrier";
    byte.state = State::written;
    byte.writer = by;
  }
  return nullptr;
}

const char* Shadow::start_copy(std::size_t begin, std::size_t bytes, const Access& by) {
  if (const char* wrong = write(begin, bytes, by)) return wrong;
  for (std::size_t i = begin; i < begin + bytes; ++i) bytes_[i].state = State::in_flight;
  return nullptr;
}

void Shadow::land_copy(std::size_t begin, std::size_t bytes, const Access& by) {
  for (std::size_t i = begin; i < begin + bytes; ++i) {
    bytes_[i].state = State::written;
    bytes_[i].writer = by;
  }
}

const char* Shadow::update(std::size_t begin, std::size_t bytes) {
  for (std::size_t i = begin; i < begin + bytes; ++i) {
    if (bytes_[i].state == State::unwritten) return "updates what nobody has written";
    if (bytes_[i].state == State::in_flight) return "updates where a copy is in flight";
  }
  return nullptr;
}

}  // namespace softgate::simt
