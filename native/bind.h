// What the binding files share: array types, and checks of arrays.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"
#include "model.h"
#include "select.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace forerun {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
std::vector<T> copy(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

// count + 1 offsets that begin at 0, never fall and end at `size`.
inline void require_spans(const Array<int32_t>& starts, size_t count, size_t size,
                          const std::string& what) {
  const int32_t* first = starts.data();
  require(starts.size() == count + 1 && first[0] == 0 && std::is_sorted(first, first + count + 1) &&
              static_cast<size_t>(first[count]) == size,
          [&] { return what + " must rise from 0 to " + text(static_cast<int64_t>(size)); });
}

inline void require_tokens(const std::vector<Sampler*>& samplers, int64_t vocab) {
  for (const Sampler* s : samplers)
    for (const auto* ids : {&s->bias_ids, &s->allowed, &s->prompt_ids, &s->output_ids})
      for (const int32_t t : *ids)
        require(t >= 0 && t < vocab, [&] {
          return "token " + text(t) + " of a sampler is outside the vocabulary of " + text(vocab);
        });
}

// An owned numpy array.
template <typename T, typename... Dims>
auto owned(T* data, Dims... dims) {
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, {static_cast<size_t>(dims)...}, owner);
}

// Owned copies of values, in a row or in `rows` of equal length.
template <typename T>
auto array_of(const std::vector<T>& values) {
  T* data = new T[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  return owned(data, values.size());
}

template <typename T>
auto table_of(const std::vector<T>& values, size_t rows) {
  T* data = new T[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  return owned(data, rows, rows == 0 ? 0 : values.size() / rows);
}

// Weights, and how they are packed.
void bind_weights(nb::module_& module);

// Whole proposals: propose, grow, foresee, keep.
void bind_proposals(nb::module_& module, nb::class_<Model>& model);

}  // namespace forerun
