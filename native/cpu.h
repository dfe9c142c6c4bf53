// What this machine can do: instruction paths, permission for AMX, cores and quota.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace forerun {

struct CpuFeatures {
  bool avx2, avx512, avx512_bf16, amx;  // usable: CPU, operating system and (amx) permission
  int amx_errno;                        // why AMX was refused although the CPU has it, or 0
};

const CpuFeatures& cpu_features();

// Names of the paths that run here with operands of so many bytes, which all give the same bits;
// best first, "portable" last but the emulation.
std::vector<std::string> available_paths(int value_bytes);

// The table of a path by name ("auto" = the best of bf16). Throws std::invalid_argument with the
// choices.
const Kernels& kernels_by_name(const std::string& name);

// The cores this process may run on.
std::vector<int> affinity_cores();

// Whole cores allowed by control-group quotas of this process (v1 and v2), or 0 for no limit.
int quota_cores();

}  // namespace forerun
