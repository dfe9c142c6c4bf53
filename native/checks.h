// Refusals at the edge, for memory safety: the Python side refuses bad requests with better words
// before they come here.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "model.h"

namespace forerun {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// The words are only put together when they are needed: this runs for every node of every pass.
template <typename Words>
  requires std::is_invocable_r_v<std::string, Words>
void require(bool holds, Words&& words) {
  if (!holds) throw std::invalid_argument(words());
}

inline std::string text(int64_t n) { return std::to_string(n); }

// Throws std::invalid_argument unless every index of the batch lies inside the model's arrays.
void check_rows(const Model& model, const Batch& batch);

}  // namespace forerun
