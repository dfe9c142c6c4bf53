// AVX-512-BF16 with the canonical bits, at twice the rate of fp32 multiply-adds.
//
// VDPBF16PS computes, per lane, fma(high halves) and then fma(low halves) into one running sum
// (denormals flushed). Fed with the natural pair (2j, 2j+1) that is another order than the
// canonical one. Fed with pairs of *one* chain, the earlier element in the high half, it is two
// consecutive steps of that chain: (0, 2), (4, 6), … walk the even chain, (1, 3), (5, 7), … the
// odd one. So weights, K/V and activations of this path are paired by chain (PairOrder::kChains),
// and the kernel reads both tiles of a panel as one ascending stream.
#include <immintrin.h>

#include "../arith.h"
#include "kernels.h"

namespace forerun::avx512_bf16 {

#include "noise512.inc"
#include "ops.inc"

constexpr int kRowBytes = kBlock * 2;
constexpr int kHeldRows = 4;  // 16 chains + 8 sums + 4 weight registers + 2 broadcasts
constexpr int kMostRows = 5;  // 20 chains + 4 weight registers + 2 broadcasts; sums in memory
constexpr int kFewRows = 2;   // which wait for memory, whatever is done about it
constexpr int kStretch = 4;   // K blocks between two row groups: 8 KiB stay in the nearest cache
constexpr int kAhead = 8;     // K blocks that memory brings while these are computed: 16 KiB
constexpr int kShort = 16;    // K blocks of a panel whose sums take long to use, beside it
constexpr int kLineBytes = 64;

static inline __m512bh as_bf16(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// Row encoding: 16 words of 32 bits; word 2i = (a[4i] high, a[4i+2] low), word 2i+1 the odd pair.
// VCVTNEPS2BF16 rounds as arith.h says, denormals and NaN included.
static void pack_rows(const float* x, int64_t stride, int rows, int inputs, void* packed) {
  alignas(64) static constexpr uint16_t kPaired[kBlock] = {
      2,  0,  3,  1,  6,  4,  7,  5,  10, 8,  11, 9,  14, 12, 15, 13,
      18, 16, 19, 17, 22, 20, 23, 21, 26, 24, 27, 25, 30, 28, 31, 29};
  const __m512i paired = _mm512_load_si512(kPaired);
  uint8_t* out = static_cast<uint8_t*>(packed);
  for (int first = 0; first < inputs; first += kBlock) {
    const int count = inputs - first < kBlock ? inputs - first : kBlock;
    const uint32_t there = count == kBlock ? ~0u : (1u << count) - 1;
    for (int row = 0; row < rows; ++row, out += kRowBytes) {
      const float* in = x + row * stride + first;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there), in);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16), in + 16);
      const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(paired, halves));
    }
  }
}

static void pack_half(const float* x, int half, void* row_block) {
  const __m256i paired = _mm256_setr_epi16(2, 0, 3, 1, 6, 4, 7, 5, 10, 8, 11, 9, 14, 12, 15, 13);
  const __m256i halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
  _mm256_storeu_si256(static_cast<__m256i*>(row_block) + half,
                      _mm256_permutexvar_epi16(paired, halves));
}

// One pair in all lanes, straight from memory: by way of a general register it would take a slot of
// the multipliers.
static inline __m512bh spread(const uint8_t* pair) {
  const __m128 value = _mm_load_ss(reinterpret_cast<const float*>(pair));
  return as_bf16(_mm512_castps_si512(_mm512_broadcastss_ps(value)));
}

// Which lines a row group asks for, of the block kAhead on: `lines` at each of the eight steps of a
// block, from `first` on.
struct Touch {
  int lines, first;
};

// One K block of R rows and both tiles, L lines asked for a step. Invariant: after step i,
// even[t][r] and odd[t][r] hold the chains over inputs below 4i + 4 of the block.
template <int R, int L>
[[gnu::always_inline]] static inline void chains(const uint8_t* a, const uint8_t* tiles,
                                                 const uint8_t* touched, __m512 (&even)[2][R],
                                                 __m512 (&odd)[2][R]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) even[t][r] = odd[t][r] = _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < kBlock / 4; ++i, tiles += 4 * kLineBytes) {
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) __builtin_prefetch(touched + (i * L + l) * kLineBytes, 0, 2);
    __asm__ volatile("" ::: "memory");  // lines are read in ascending order
    __m512bh we[2], wo[2];
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) {
      we[t] = as_bf16(_mm512_load_si512(tiles + 2 * t * kLineBytes));
      wo[t] = as_bf16(_mm512_load_si512(tiles + (2 * t + 1) * kLineBytes));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512bh ae = spread(a + r * kRowBytes + 8 * i);
      const __m512bh ao = spread(a + r * kRowBytes + 8 * i + 4);
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        even[t][r] = _mm512_dpbf16_ps(even[t][r], ae, we[t]);
        odd[t][r] = _mm512_dpbf16_ps(odd[t][r], ao, wo[t]);
      }
    }
  }
}

template <int R>
[[gnu::always_inline]] static inline void load(__m512 (&sum)[2][R], const float* c, int64_t ldc,
                                               bool from_zero) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t)
      sum[t][r] = from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * ldc + t * kTileColumns);
}

template <int R>
[[gnu::always_inline]] static inline void store(const __m512 (&sum)[2][R], float* c, int64_t ldc) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) _mm512_storeu_ps(c + r * ldc + t * kTileColumns, sum[t][r]);
}

// Some K blocks of R rows. Invariant: after block k, sum[t][r] is c over all blocks up to it. Where
// there is room for them, sums stay in registers: a store takes a slot of the multipliers.
template <int R, int L>
static void stretch(const uint8_t* a, int64_t a_stride, const uint8_t* tiles, int64_t num_blocks,
                    float* c, int64_t ldc, bool from_zero, int64_t ahead) {
  constexpr bool kHeld = R > kFewRows && R <= kHeldRows;
  __m512 sum[2][R], even[2][R], odd[2][R];
  if constexpr (kHeld) load<R>(sum, c, ldc, from_zero);
  for (int64_t k = 0; k < num_blocks; ++k, a += a_stride, tiles += kPanelBlockBytes) {
    chains<R, L>(a, tiles, tiles + ahead, even, odd);
    if constexpr (!kHeld) load<R>(sum, c, ldc, from_zero && k == 0);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t)
        sum[t][r] = _mm512_add_ps(sum[t][r], _mm512_add_ps(even[t][r], odd[t][r]));
    if constexpr (!kHeld) store<R>(sum, c, ldc);
  }
  if constexpr (kHeld) store<R>(sum, c, ldc);
}

// One group reads a stream that the hardware runs ahead of by itself, until it stops at the end of
// a panel; short ones are asked for. Several groups read each block, all but the first from the
// nearest cache, and share out the asking, so that memory works while every one of them computes.
static Touch touch_of(int64_t num_blocks, int rows, int group, int num_groups) {
  if (num_blocks < kAhead) return {0, 0};  // K/V above all: what follows in memory is not next
  if (num_groups == 1) return {rows > kFewRows && num_blocks <= kShort ? 4 : 0, 0};
  if (num_groups == 2) return {2, 16 * group};
  if (num_groups == 3) return group == 0 ? Touch{2, 0} : Touch{1, 8 + 8 * group};
  return group < 4 ? Touch{1, 8 * group} : Touch{0, 0};
}

// K in short stretches, so that every row group but the first finds the weights in the nearest
// cache, and rows in groups that fit the registers.
static void panel(const void* a, int64_t a_stride, int rows, int64_t num_blocks,
                  const uint8_t* panel, float* c, int64_t ldc, bool accumulate) {
  using Stretch =
      void (*)(const uint8_t*, int64_t, const uint8_t*, int64_t, float*, int64_t, bool, int64_t);
  static constexpr Stretch kStretches[5][kMostRows] = {
      {stretch<1, 0>, stretch<2, 0>, stretch<3, 0>, stretch<4, 0>, stretch<5, 0>},
      {stretch<1, 1>, stretch<2, 1>, stretch<3, 1>, stretch<4, 1>, stretch<5, 1>},
      {stretch<1, 2>, stretch<2, 2>, stretch<3, 2>, stretch<4, 2>, stretch<5, 2>},
      {},  // nobody asks for three
      {stretch<1, 4>, stretch<2, 4>, stretch<3, 4>, stretch<4, 4>, stretch<5, 4>}};
  // Two full groups beat three small ones.
  const bool full = rows > 2 * kHeldRows && rows <= 2 * kMostRows;
  const int most = full ? kMostRows : kHeldRows;
  const int num_groups = (rows + most - 1) / most;
  const int64_t step = num_groups == 1 ? num_blocks : kStretch;
  const uint8_t* bytes = static_cast<const uint8_t*>(a);
  for (int64_t first = 0; first < num_blocks; first += step) {
    const int64_t count = num_blocks - first < step ? num_blocks - first : step;
    for (int group = 0, row = 0; group < num_groups; ++group) {
      const int left = num_groups - group, taken = (rows - row + left - 1) / left;  // balanced
      const Touch touch = touch_of(num_blocks, rows, group, num_groups);
      kStretches[touch.lines][taken - 1](bytes + first * a_stride + row * kRowBytes, a_stride,
                                         panel + first * kPanelBlockBytes, count, c + row * ldc,
                                         ldc, first == 0 && !accumulate,
                                         kAhead * kPanelBlockBytes + touch.first * kLineBytes);
      row += taken;
    }
  }
}

}  // namespace forerun::avx512_bf16

namespace forerun {
const Kernels* avx512_bf16_kernels() {
  using namespace avx512_bf16;
  static const Kernels kTable =
      FORERUN_TABLE("avx512-bf16", kRowBytes, PairOrder::kChains, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
