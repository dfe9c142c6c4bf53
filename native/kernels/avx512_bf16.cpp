// AVX-512-BF16 with the canonical bits, at twice the rate of fp32 multiply-adds.
//
// VDPBF16PS computes, per lane, fma(high halves) and then fma(low halves) into one running sum
// (denormals flushed). Fed with the natural pair (2j, 2j+1) that is another order than the
// canonical one. Fed with pairs of *one* chain, the earlier element in the high half, it is two
// consecutive steps of that chain: (0, 2), (4, 6), … walk the even chain, (1, 3), (5, 7), … the
// odd one. So weights, K/V and activations of this path are paired by chain (PairOrder::kChains).
#include <immintrin.h>

#include "../arith.h"
#include "kernels.h"

namespace forerun::avx512_bf16 {

#include "noise512.inc"
#include "ops.inc"

constexpr int kRowBytes = kBlock * 2;
constexpr int kMaxRegisterRows = 6;  // 24 chains + 4 weight registers + 2 broadcasts
constexpr int kTouchFrom = 4;        // rows from which the driver touches lines
constexpr int kStretch = 2;          // K blocks between two row groups: they share memory evenly

// Row encoding: 16 words of 32 bits; word 2i = (a[4i] high, a[4i+2] low), word 2i+1 the odd pair.
static void pack_rows(const float* x, int64_t stride, int rows, int inputs, void* packed) {
  uint32_t* out = static_cast<uint32_t*>(packed);
  for (int first = 0; first < inputs; first += kBlock)
    for (int row = 0; row < rows; ++row, out += kBlock / 2) {
      const float* in = x + row * stride + first;
      const int count = inputs - first < kBlock ? inputs - first : kBlock;
      uint32_t half[kBlock] = {};
      for (int i = 0; i < count; ++i) half[i] = to_bf16(in[i]);
      for (int i = 0; i < kBlock / 4; ++i) {
        out[2 * i] = half[4 * i] << 16 | half[4 * i + 2];
        out[2 * i + 1] = half[4 * i + 1] << 16 | half[4 * i + 3];
      }
    }
}

static void pack_half(const float* x, int half, void* row_block) {
  uint32_t *out = static_cast<uint32_t*>(row_block) + 8 * half, bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = to_bf16(x[i]);
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = bits[4 * i] << 16 | bits[4 * i + 2];
    out[2 * i + 1] = bits[4 * i + 1] << 16 | bits[4 * i + 3];
  }
}

static inline __m512bh as_bf16(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// One pair in all lanes, straight from memory: by way of a general register it would take a slot of
// the multipliers.
static inline __m512bh spread(const uint8_t* pair) {
  const __m128 value = _mm_load_ss(reinterpret_cast<const float*>(pair));
  return as_bf16(_mm512_castps_si512(_mm512_broadcastss_ps(value)));
}

// One K block of R rows and T neighbouring tiles. Invariant: after step i, even[t][r] and odd[t][r]
// hold the chains over inputs below 4i + 4 of the block.
template <int R, int T>
static inline void tiles_block(const uint8_t* a, const uint8_t* tiles, float* c, int64_t ldc,
                               bool from_zero) {
  __m512 even[T][R], odd[T][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) even[t][r] = odd[t][r] = _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < kBlock / 4; ++i) {
    __m512bh we[T], wo[T];
    for (int t = 0; t < T; ++t) {
      we[t] = as_bf16(_mm512_load_si512(tiles + t * kTileBytes + 128 * i));
      wo[t] = as_bf16(_mm512_load_si512(tiles + t * kTileBytes + 128 * i + 64));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512bh ae = spread(a + r * kRowBytes + 8 * i);
      const __m512bh ao = spread(a + r * kRowBytes + 8 * i + 4);
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) {
        even[t][r] = _mm512_dpbf16_ps(even[t][r], ae, we[t]);
        odd[t][r] = _mm512_dpbf16_ps(odd[t][r], ao, wo[t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      float* out = c + r * ldc + t * kTileColumns;
      const __m512 old = from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(out);
      _mm512_storeu_ps(out, _mm512_add_ps(old, _mm512_add_ps(even[t][r], odd[t][r])));
    }
}

// Up to three rows wait for memory: one ascending stream keeps the hardware prefetcher with us (two
// streams 1 KiB apart read at half the speed). More rows wait for the multipliers: both tiles share
// one broadcast, and the driver's prefetch brings the lines.
template <int R>
static inline void block(const uint8_t* a, const uint8_t* tiles, float* c, int64_t ldc,
                         bool from_zero) {
  if constexpr (R >= kTouchFrom) {
    tiles_block<R, 2>(a, tiles, c, ldc, from_zero);
  } else {
    tiles_block<R, 1>(a, tiles, c, ldc, from_zero);
    tiles_block<R, 1>(a, tiles + kTileBytes, c + kTileColumns, ldc, from_zero);
  }
}

#include "drive.inc"

}  // namespace forerun::avx512_bf16

namespace forerun {
const Kernels* avx512_bf16_kernels() {
  using namespace avx512_bf16;
  static const Kernels kTable =
      FORERUN_TABLE("avx512-bf16", kRowBytes, PairOrder::kChains, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
