// AVX2 + FMA: 16 columns are two registers.
#include <immintrin.h>

#include "../arith.h"
#include "kernels.h"

namespace forerun::avx2 {

#include "noise.inc"
#include "ops.inc"

// Invariant: lane i of (a, b) is column i (i < 8 in a) of the tile row it came from.
struct Vec {
  __m256 a, b;
  static Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
  static __m256 shifted(const uint8_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)), 16));
  }
  static __m256 masked(const uint8_t* p) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
                         _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Vec low(const uint8_t* row) { return {shifted(row), shifted(row + 32)}; }
  static Vec high(const uint8_t* row) { return {masked(row), masked(row + 32)}; }
  static float operand(float f) { return bits_to_float(to_bf16(f) << 16); }
  static Vec broadcast(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
  static Vec fma(Vec x, Vec y, Vec z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static Vec plus(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
};

constexpr int kMaxRegisterRows = 2;
constexpr int kTouchFrom = 9;  // rows from which the driver touches lines
constexpr int kStretch = 8;    // K blocks a stretch
#include "fma.inc"

}  // namespace forerun::avx2

namespace forerun {
const Kernels* avx2_kernels() {
  using namespace avx2;
  static const Kernels kTable =
      FORERUN_TABLE("avx2", kRowBytes, PairOrder::kNatural, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
