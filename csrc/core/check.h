// Argument checks: the message names the op, the argument, what came and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace softgate {

// Becomes Python's TypeError; std::invalid_argument becomes ValueError.
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void check(bool ok, const Parts&... message) {
  if (!ok) [[unlikely]]
    throw std::invalid_argument(concat(message...));
}

template <class... Parts>
void check_type(bool ok, const Parts&... message) {
  if (!ok) [[unlikely]]
    throw TypeError(concat(message...));
}

}  // namespace softgate
