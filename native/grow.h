// A whole proposal of trees in one call: read what is unread, then level by level offer children,
// choose which nodes to expand, read those. The readable reference is backends/growing.py.
#pragma once

#include <vector>

#include "growth_plan.h"
#include "reader.h"

namespace forerun {

// One row's tree; node 0 is pending. `kv[n]`: the number of its K/V among the grown nodes, or -1.
// `laws`: vocab values for each of `expanded`; `draws`: the same number of tokens for each, -1
// behind.
struct GrownRow {
  std::vector<int32_t> tokens, parents, ranks, kv, expanded, draws;
  std::vector<float> margins, scores, laws;
  int num_passes = 0;  // of the whole proposal
};

std::vector<GrownRow> grow(Reader& reader, const GrowthPlan& plan);

}  // namespace forerun
