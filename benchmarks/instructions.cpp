// What VDPBF16PS computes, and how fast it and a fused multiply-add run on this CPU: on one core,
// and on all at once, which virtual cores need not do as often faster as there are of them.
//
//   g++ -O2 -std=c++20 -pthread -mavx512f -mavx512bw -mavx512bf16 -mfma -ffp-contract=off \
//       benchmarks/instructions.cpp -o /tmp/instructions && /tmp/instructions
//
// Docs/arithmetic.md quotes its output. The control (the other order of the pair) must differ.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

float widen(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

float fma_flushed(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

// Finite values only; `low` and `span` choose the exponents.
uint16_t random_bf16(std::mt19937& random, unsigned low, unsigned span) {
  return static_cast<uint16_t>((random() & 0x8000u) | (low + random() % span) << 7 |
                               (random() & 127u));
}

void semantics(const char* name, unsigned low, unsigned span) {
  std::mt19937 random(1);
  long differ = 0, control = 0, total = 0;
  for (int trial = 0; trial < 200'000; ++trial) {
    alignas(64) uint16_t a[32], b[32];
    alignas(64) float c[16], out[16];
    for (int i = 0; i < 32; ++i) {
      a[i] = random_bf16(random, low, span);
      b[i] = random_bf16(random, low, span);
    }
    for (float& value : c) value = widen(random_bf16(random, low, span)) * 1.2345f;
    _mm512_store_ps(out, _mm512_dpbf16_ps(_mm512_load_ps(c), (__m512bh)_mm512_load_si512(a),
                                          (__m512bh)_mm512_load_si512(b)));
    for (int i = 0; i < 16; ++i, ++total) {
      const float a0 = widen(a[2 * i]), a1 = widen(a[2 * i + 1]);
      const float b0 = widen(b[2 * i]), b1 = widen(b[2 * i + 1]);
      const float high_first = fma_flushed(a0, b0, fma_flushed(a1, b1, c[i]));
      const float low_first = fma_flushed(a1, b1, fma_flushed(a0, b0, c[i]));
      differ += std::memcmp(&high_first, &out[i], 4) != 0;
      control += std::memcmp(&low_first, &out[i], 4) != 0;
    }
  }
  std::printf("%-16s high half first: %ld of %ld differ; control, low half first: %ld\n", name,
              differ, total, control);
}

#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define FMA(i) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #i "\n"
#define DOT(i) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #i "\n"
#define REGISTERS                                                                          \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm14", "xmm15"

constexpr int kRounds = 9, kTimes = 2'000'000;

// Nanoseconds an instruction, of every round.
template <typename Body>
std::array<double, kRounds> timed(Body&& body) {
  std::array<double, kRounds> found;
  for (double& ns : found) {
    const auto start = std::chrono::steady_clock::now();
    asm volatile("vpxord %%zmm14, %%zmm14, %%zmm14\nvpxord %%zmm15, %%zmm15, %%zmm15" ::
                     : "xmm14", "xmm15");
    for (int i = 0; i < kTimes; ++i) body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    ns = took.count() * 1e9 / kTimes / 12;
  }
  return found;
}

template <typename Body>
void rate(const char* name, int products, Body&& body) {
  const auto rounds = timed(body);
  const double best = *std::min_element(rounds.begin(), rounds.end());
  std::printf("%-10s %.3f ns an instruction, %.0f multiply-adds a ns\n", name, best,
              products / best);

  std::vector<std::array<double, kRounds>> cores(std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (auto& one : cores) threads.emplace_back([&] { one = timed(body); });
  for (std::thread& one : threads) one.join();
  double sum = 0;
  for (auto& one : cores) {
    std::sort(one.begin(), one.end());
    sum += products / one[kRounds / 2];  // the median: the cores' best rounds need not coincide
  }
  std::printf("%-10s %zu cores at once: %.0f multiply-adds a ns, %.2f x one core's best\n", "",
              cores.size(), sum, sum / (products / best));
}

}  // namespace

int main() {
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush denormals, as the dot product does by itself
  semantics("ordinary", 118, 18);
  semantics("wide", 60, 130);
  semantics("denormal sums", 0, 70);
  rate("VFMADD zmm", 16, [] { asm volatile(TWELVE(FMA)::: REGISTERS); });
  rate("VDPBF16PS", 32, [] { asm volatile(TWELVE(DOT)::: REGISTERS); });
}
