// AMX-BF16. The compiler's tile intrinsics name no memory (GCC 12 even drops the stores that fill
// the configuration), so every tile operation is our own asm with a memory clobber.
#include <immintrin.h>

#include "../arith.h"
#include "kernels.h"

namespace forerun::amx {

#include "noise512.inc"
#include "ops.inc"

struct TileConfig;
static void tile_rows(int low, int high);

template <int T>
static inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
}
template <int T>
static inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
static inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}
template <int C, int A, int B>
static inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
}

#include "amx.inc"

// The rows this thread's tiles are configured for; 0 after release. Constant initialised.
static thread_local int configured_low = 0, configured_high = 0;

static void tile_rows(int low, int high) {
  if (low == configured_low && high == configured_high) return;
  const TileConfig config = make_config(low, high);
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  configured_low = low;
  configured_high = high;
}

static void release() {
  asm volatile("tilerelease" ::: "memory");
  configured_low = configured_high = 0;
}

}  // namespace forerun::amx

namespace forerun {
const Kernels* amx_kernels() {
  using namespace amx;
  static const Kernels kTable =
      FORERUN_TABLE("amx", kRowBytes, PairOrder::kNatural, begin_nothing, release);
  return &kTable;
}
}  // namespace forerun
