#include "cpu.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "lane.h"
#include "mode.h"

namespace forerun {
namespace {

uint64_t read_xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux hands out tile state on request only; the grant is for the whole process.
int request_amx() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? 0 : errno;
}

CpuFeatures detect() {
  CpuFeatures found = {};
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return found;
  const bool fma = c >> 12 & 1;
  const uint64_t state = read_xcr0();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const bool amx = (d >> 24 & 1) && (d >> 22 & 1);
  found.avx2 = ymm && fma && (b >> 5 & 1);
  // F, DQ, BW, VL: what the AVX-512 files are compiled for.
  found.avx512 = zmm && fma && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  if (found.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512_bf16 = a >> 5 & 1;
  if (amx && tiles && found.avx512) {
    found.amx_errno = request_amx();
    found.amx = found.amx_errno == 0;
  }
  return found;
}

// Awkward numbers: of both signs, exponents from 2^-70 to 2^57 and full mantissas, so that sums
// cancel and products underflow; of activations some are denormal.
struct Awkward {
  static constexpr int kBlocks = 9;  // which accumulate, more than a kernel takes in one stretch
  std::vector<float> x;
  std::vector<uint16_t> weights;

  explicit Awkward(int rows) : x(static_cast<size_t>(rows * kBlocks * kBlock)) {
    weights.resize(kBlocks * kPanelBlockBytes / 2);
    uint32_t state = 1;
    const auto next = [&](bool is_denormal) {
      state = state * 1664525u + 1013904223u;
      const uint32_t exponent = is_denormal ? 0 : 57u + (state >> 20 & 127u);
      const uint32_t bits = (state & 0x80000000u) | exponent << 23 | (state & 0x7fffffu);
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    };
    for (size_t i = 0; i < x.size(); ++i) x[i] = next(i % 11 == 0);
    for (uint16_t& value : weights) value = float_to_bf16(next(false));
  }
};

// The product by one path; nothing where it packs an input in another way by halves.
std::vector<float> product_of(const Awkward& given, int rows, const Kernels& k) {
  constexpr int kInputs = Awkward::kBlocks * kBlock;
  Arena a(static_cast<size_t>(rows * Awkward::kBlocks * k.row_block_bytes)),
      half(static_cast<size_t>(k.row_block_bytes)), panel(Awkward::kBlocks * kPanelBlockBytes);
  for (int input = 0; input < kInputs; ++input)
    for (int column = 0; column < kPanelColumns; ++column)
      panel.as<uint16_t>()[panel_offset(input, column, k.layout.order)] =
          given.weights[static_cast<size_t>(input * kPanelColumns + column)];
  k.pack_rows(given.x.data(), kInputs, rows, kInputs, a.data());
  for (int i = 0; i < 2; ++i) k.pack_half(given.x.data() + 16 * i, i, half.data());
  if (std::memcmp(a.data(), half.data(), static_cast<size_t>(k.row_block_bytes)) != 0) return {};
  std::vector<float> c(static_cast<size_t>(rows * kPanelColumns));
  k.begin();
  k.panel(a.data(), rows * k.row_block_bytes, rows, Awkward::kBlocks, panel.data(), c.data(),
          kPanelColumns, false);
  k.end();
  return c;
}

// What a path is checked with: products of rows that make row groups of every size.
struct Case {
  int rows;
  Awkward given;
  std::vector<float> reference;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int rows : {1, 2, 3, 6, 10, 19}) {
    Awkward given(rows);
    std::vector<float> reference = product_of(given, rows, *portable_kernels());
    cases.push_back({rows, std::move(given), std::move(reference)});
  }
  return cases;
}

// Whether a path gives the reference's bits. A CPU, a hypervisor or a compiler that breaks an
// instruction must cost speed, not tokens.
bool agrees(const Kernels& table, const std::vector<Case>& cases) {
  if (&table == portable_kernels()) return true;
  return std::all_of(cases.begin(), cases.end(), [&](const Case& one) {
    const std::vector<float> own = product_of(one.given, one.rows, table);
    return own.size() == one.reference.size() &&
           std::memcmp(own.data(), one.reference.data(), own.size() * 4) == 0;
  });
}

struct Path {
  const char* name;
  const Kernels* table;
  bool usable;
};

std::vector<Path> find_paths() {
  const CpuFeatures& cpu = cpu_features();
  std::vector<Path> paths = {{"amx", amx_kernels(), cpu.amx},
                             {"avx512-bf16", avx512_bf16_kernels(), cpu.avx512_bf16},
                             {"avx512", avx512_kernels(), cpu.avx512},
                             {"avx2", avx2_kernels(), cpu.avx2},
                             {"portable", portable_kernels(), true},
                             {"amx-emulated", amx_emulated_kernels(), true},
                             {"float32-portable", float32_portable_kernels(), true}};
  const CanonicalMode mode;
  const std::vector<Case> cases = all_cases();
  // The only path of the second arithmetic is a reference itself.
  for (Path& path : paths)
    path.usable = path.table && path.usable &&
                  (path.table->layout.value_bytes != 2 || agrees(*path.table, cases));
  return paths;
}

const std::vector<Path>& all_paths() {
  static const std::vector<Path> paths = find_paths();
  return paths;
}

// cpu.max of one cgroup v2 directory, or quota and period of v1; 0 when unlimited.
int cores_of_group(const std::string& directory) {
  std::ifstream v2(directory + "/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0)
    return std::max(1, static_cast<int>(std::stod(quota) / period));
  std::ifstream v1_quota(directory + "/cpu.cfs_quota_us"),
      v1_period(directory + "/cpu.cfs_period_us");
  double amount = 0;
  if (v1_quota >> amount && v1_period >> period && amount > 0 && period > 0)
    return std::max(1, static_cast<int>(amount / period));
  return 0;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

std::vector<std::string> available_paths(int value_bytes) {
  std::vector<std::string> names;
  for (const Path& path : all_paths())
    if (path.usable && path.table->layout.value_bytes == value_bytes) names.push_back(path.name);
  return names;
}

const Kernels& kernels_by_name(const std::string& name) {
  std::string known;
  for (const Path& path : all_paths()) {
    if (!path.usable) continue;
    if (name == "auto" || name == path.name) return *path.table;
    known += std::string(known.empty() ? "" : ", ") + path.name;
  }
  throw std::invalid_argument("instruction path '" + name + "' cannot run here; use auto, " +
                              known);
}

std::vector<int> affinity_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int core = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET(core, &set)) cores.push_back(core);
  if (cores.empty()) cores.push_back(0);
  return cores;
}

int quota_cores() {
  // Every ancestor may limit; the tightest one counts. v2 lines are "0::/path".
  int limit = 0;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string root = "/sys/fs/cgroup";
    if (!controllers.empty()) {
      if (controllers.find("cpu") == std::string::npos) continue;
      root += "/" + controllers;
    }
    for (std::string path = line.substr(second + 1);; path.resize(path.find_last_of('/'))) {
      const int cores = cores_of_group(root + path);
      if (cores > 0 && (limit == 0 || cores < limit)) limit = cores;
      if (path.empty() || path == "/") break;
    }
  }
  return limit;
}

}  // namespace forerun
