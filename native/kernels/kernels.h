// One table of functions per instruction path; all tables of an arithmetic compute the same bits.
//
// Packed activations: for each block of 32 inputs, all rows one after another, `row_block_bytes`
// each (the encoding inside is the path's own). A panel is 32 output columns: for each block of 32
// inputs two tiles of 512 values (arith.h, panel_offset says how), contiguous in K.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arith.h"

namespace forerun {

struct NoiseKey {
  uint32_t seed_low, seed_high, position, choice, purpose;
};

struct Kernels {
  const char* name;
  int row_block_bytes;
  Layout layout;  // of weights and K/V

  // Per thread, around a forward pass (tile state).
  void (*begin)();
  void (*end)();

  // Round `rows` fp32 rows of `inputs` values (row stride in floats) to operands and pack them.
  void (*pack_rows)(const float* x, int64_t stride, int rows, int inputs, void* packed);

  // Round and pack 16 neighbouring inputs of one row: half 0 or 1 of its 32-input block.
  void (*pack_half)(const float* x, int half, void* row_block);

  // c[row][0..31] (+)= packed rows x panel; rows <= 32; `a_stride` bytes between K blocks of a.
  void (*panel)(const void* a, int64_t a_stride, int rows, int64_t num_blocks, const uint8_t* panel,
                float* c, int64_t ldc, bool accumulate);

  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
  // y = silu(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int n, float* y);
  // y = 1 / (1 + exp(-x)), and tanh(x) by the same exp
  void (*sigmoid)(const float* x, int n, float* y);
  void (*tangent)(const float* x, int n, float* y);
  // y += x
  void (*add)(const float* x, int n, float* y);
  // Rotate halves in place: x[i], x[i + n] by (cosine[i], sine[i]), n = head_dim / 2.
  void (*rotate)(float* x, const float* cosine, const float* sine, int n);
  // p = exp(scale * s - max), masked past `num_keys`; returns the sum; max is over the kept keys.
  // `width` is a multiple of 32; p beyond num_keys is +0. Writes the maximum to *maximum.
  float (*softmax)(const float* scores, float scale, int num_keys, int width, float* p,
                   float* maximum);
  // y = y * scale_y + x * scale_x
  void (*blend)(const float* x, float scale_x, float scale_y, int n, float* y);
  float (*exp_one)(float x);
  // Noise words of tokens 0..n-1 (Philox4x32-10, counter (token / 4, position, choice, purpose)).
  void (*noise_words)(const NoiseKey& key, int64_t n, uint32_t* words);
  // The greatest value and its lowest index; *has_nan is set when any value is NaN.
  int64_t (*argmax)(const float* x, int64_t n, bool* has_nan);
  // Indices t with x[t] * inverse_t + bound(words[t]) >= threshold, ascending; returns how many.
  int64_t (*contenders)(const float* x, const uint32_t* words, float inverse_t, float threshold,
                        int64_t n, int32_t* indices);
  // Reads a multiple of 256 bytes as fast as it can, prefetching `ahead` bytes (0: not at all).
  uint32_t (*read)(const uint8_t* bytes, int64_t count, int64_t ahead);
};

// Null when the path was not compiled in.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();
const Kernels* amx_emulated_kernels();      // the AMX kernel over a software model of its tiles
const Kernels* float32_portable_kernels();  // of the second arithmetic

}  // namespace forerun
