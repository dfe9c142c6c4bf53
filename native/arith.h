// The canonical arithmetic, in words and as the scalar reference.
//
// Matrix product, for one output: cut the inputs into blocks of 32, in order. Per block
//     e = o = 0;  for j in 0..15:  e = fma(a[2j], b[2j], e);  o = fma(a[2j+1], b[2j+1], o);
//     c = c + (e + o)
// with bf16 operands, fp32 accumulators, round to nearest even, denormal operands read as zero and
// denormal results flushed to zero. This is what the TDPBF16PS instruction does. Every path must
// give these bits for every output, whatever rows, columns or threads surround it:
//   - K is never split over accumulators or threads; blocks are added in order;
//   - c may rest in memory between blocks (a store and a load of fp32 change nothing);
//   - inputs are padded with zeros to a multiple of 32 on both sides;
//   - a masked input is an operand +0 against a finite value: an exact no-op.
//
// The second arithmetic, canonical-float32, is the same in every word but one: operands (weights,
// activations, K/V) are fp32 and nothing is rounded to bf16. Its bits are others.
//
// Sums over a vector run in 16 lanes (element i in lane i mod 16, in order), then the lanes are
// folded 8, 4, 2, 1. Elementwise functions use only + - * / sqrt, each correctly rounded, so the
// compiler may vectorise but never contract or reorder them.
#pragma once

#include <cstdint>
#include <cstring>

namespace forerun {

constexpr int kBlock = 32;                        // inputs per block, tokens per K/V block
constexpr int kTileColumns = 16;                  // output columns per tile
constexpr int kPanelColumns = 32;                 // two tiles side by side
constexpr int kTileBytes = 1024;                  // 16 input pairs x 16 columns x 2 x bf16
constexpr int kPanelBlockBytes = 2 * kTileBytes;  // one K block of a panel of bf16
constexpr int kMaxRows = 32;                      // rows a kernel takes in one call
constexpr int kChunkKeys = 512;                   // keys that share one softmax maximum

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline float bf16_to_float(uint16_t h) {
  uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Round to nearest even; denormals flush to a signed zero; NaN stays NaN.
inline uint16_t float_to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  if ((u & 0x7f800000u) == 0) return static_cast<uint16_t>((u >> 16) & 0x8000u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// How the 32 inputs of a K block lie in the two tiles of a panel, in lines of 16 32-bit words, a
// column each. Naturally, line j of a tile holds (2j, 2j+1), low half first, and the tiles stand
// one after another. By chain, line 2i holds (4i+2, 4i) and line 2i+1 (4i+3, 4i+1), and two lines
// of one tile take turns with two of the other, so that a kernel that computes both reads one
// ascending stream. The path decides; the arithmetic does not see it.
enum class PairOrder : uint8_t { kNatural, kChains };

// Offset in values of (input, column) inside a panel whose K blocks are contiguous.
inline int64_t panel_offset(int64_t input, int column, PairOrder order) {
  const int64_t block = input / kBlock, within = input % kBlock, quarter = within % 4;
  const int tile = column / kTileColumns, lane = column % kTileColumns;
  const bool natural = order == PairOrder::kNatural;
  const int64_t line = natural ? 16 * tile + within / 2 : within / 4 * 4 + 2 * tile + (quarter & 1);
  const int64_t half = natural ? within & 1 : quarter < 2;
  return block * (kPanelBlockBytes / 2) + line * kBlock + lane * 2 + half;
}

// How values (weights and K/V) rest in memory.
struct Layout {
  PairOrder order;
  int value_bytes;  // 2: bf16; 4: fp32, of the second arithmetic
  constexpr Layout(PairOrder pairs, int bytes = 2) : order(pairs), value_bytes(bytes) {}
  bool operator==(const Layout&) const = default;
  int64_t block_bytes() const { return kBlock * kPanelColumns * value_bytes; }  // of a panel
};

inline float to_float(uint16_t h) { return bf16_to_float(h); }
inline float to_float(float f) { return f; }
template <typename Value>
Value from_float(float f) {
  if constexpr (sizeof(Value) == 2)
    return float_to_bf16(f);
  else
    return f;
}

// body(a value) with the type that values of so many bytes have: decided once, not for each.
template <typename Body>
void with_values(int value_bytes, Body&& body) {
  if (value_bytes == 2)
    body(uint16_t{});
  else
    body(float{});
}

}  // namespace forerun
