// The reference path: scalar C++, correct on any CPU, slow where fma is a library call.
#include "../arith.h"
#include "kernels.h"

namespace forerun::portable {

#include "noise.inc"
#include "ops.inc"

struct Vec {
  float v[16];
  static Vec zero() { return Vec{}; }
  static Vec load(const float* p) {
    Vec x;
    for (int i = 0; i < 16; ++i) x.v[i] = p[i];
    return x;
  }
  void store(float* p) const {
    for (int i = 0; i < 16; ++i) p[i] = v[i];
  }
  static Vec low(const uint8_t* row) { return half(row, 0); }
  static Vec high(const uint8_t* row) { return half(row, 1); }
  static Vec half(const uint8_t* row, int which) {
    Vec x;
    for (int i = 0; i < 16; ++i) {
      uint32_t pair;
      __builtin_memcpy(&pair, row + 4 * i, 4);
      x.v[i] = bits_to_float(which ? pair & 0xffff0000u : pair << 16);
    }
    return x;
  }
  static Vec broadcast(float f) {
    Vec x;
    for (int i = 0; i < 16; ++i) x.v[i] = f;
    return x;
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    Vec x;
    for (int i = 0; i < 16; ++i) x.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return x;
  }
  static Vec plus(const Vec& a, const Vec& b) {
    Vec x;
    for (int i = 0; i < 16; ++i) x.v[i] = a.v[i] + b.v[i];
    return x;
  }
};

constexpr int kMaxRegisterRows = 1;
constexpr int kTouchFrom = 9;  // rows from which the driver touches lines
constexpr int kStretch = 8;    // K blocks a stretch
#include "fma.inc"

}  // namespace forerun::portable

namespace forerun {
const Kernels* portable_kernels() {
  using namespace portable;
  static const Kernels kTable =
      FORERUN_TABLE("portable", kRowBytes, PairOrder::kNatural, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
