// AVX-512F: the exact fused multiply-add kernel, 16 columns a register.
#include <immintrin.h>

#include "../arith.h"
#include "kernels.h"

namespace forerun::avx512 {

#include "noise512.inc"
#include "ops.inc"

// Invariant: lane i is column i of the tile row it came from.
struct Vec {
  __m512 v;
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Vec low(const uint8_t* row) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(row), 16))};
  }
  static Vec high(const uint8_t* row) {
    return {_mm512_castsi512_ps(_mm512_and_si512(
        _mm512_load_si512(row), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }
  static float operand(float f) { return bits_to_float(to_bf16(f) << 16); }
  static Vec broadcast(float f) { return {_mm512_set1_ps(f)}; }
  static Vec fma(Vec x, Vec y, Vec z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
  static Vec plus(Vec x, Vec y) { return {_mm512_add_ps(x.v, y.v)}; }
};

constexpr int kMaxRegisterRows = 8;
constexpr int kTouchFrom = 4;  // rows from which the driver touches lines
constexpr int kStretch = 8;    // K blocks a stretch
#include "fma.inc"

}  // namespace forerun::avx512

namespace forerun {
const Kernels* avx512_kernels() {
  using namespace avx512;
  static const Kernels kTable =
      FORERUN_TABLE("avx512", kRowBytes, PairOrder::kNatural, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
