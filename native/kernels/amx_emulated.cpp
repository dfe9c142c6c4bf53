// The AMX kernel over a software model of its tiles, so that its logic (configuration, strides,
// row groups) is tested on machines without AMX. The model is the manual's definition of
// TDPBF16PS, the same as arith.h; slow, for tests only.
#include "../arith.h"
#include "kernels.h"

namespace forerun::amx_emulated {

#include "noise.inc"
#include "ops.inc"

struct TileConfig;
static void tile_rows(int low, int high);

struct Tile {
  int rows;
  uint8_t bytes[16][64];
};
static thread_local Tile state[8];

template <int T>
static void tile_zero() {
  for (auto& row : state[T].bytes)
    for (auto& byte : row) byte = 0;
}
template <int T>
static void tile_load(const void* from, int64_t stride) {
  tile_zero<T>();
  for (int r = 0; r < state[T].rows; ++r)
    __builtin_memcpy(state[T].bytes[r], static_cast<const uint8_t*>(from) + r * stride, 64);
}
template <int T>
static void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < state[T].rows; ++r)
    __builtin_memcpy(static_cast<uint8_t*>(to) + r * stride, state[T].bytes[r], 64);
}
template <int C, int A, int B>
static void tile_dot() {
  for (int r = 0; r < state[C].rows; ++r)
    for (int n = 0; n < 16; ++n) {
      float chains[2] = {}, c;
      for (int j = 0; j < 16; ++j)
        for (int half = 0; half < 2; ++half) {
          uint16_t x, y;
          __builtin_memcpy(&x, state[A].bytes[r] + 4 * j + 2 * half, 2);
          __builtin_memcpy(&y, state[B].bytes[j] + 4 * n + 2 * half, 2);
          chains[half] =
              __builtin_fmaf(bits_to_float(static_cast<uint32_t>(x) << 16),
                             bits_to_float(static_cast<uint32_t>(y) << 16), chains[half]);
        }
      __builtin_memcpy(&c, state[C].bytes[r] + 4 * n, 4);
      c = c + (chains[0] + chains[1]);
      __builtin_memcpy(state[C].bytes[r] + 4 * n, &c, 4);
    }
}

#include "amx.inc"

static void tile_rows(int low, int high) {
  const TileConfig config = make_config(low, high);
  for (int t = 0; t < 8; ++t) state[t].rows = config.rows[t];
}

}  // namespace forerun::amx_emulated

namespace forerun {
const Kernels* amx_emulated_kernels() {
  using namespace amx_emulated;
  static const Kernels kTable =
      FORERUN_TABLE("amx-emulated", kRowBytes, PairOrder::kNatural, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
