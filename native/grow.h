// A whole proposal of trees in one call: read what is unread, then level by level offer children,
// choose which nodes to expand, read those. The readable reference is backends/growing.py.
#pragma once

#include <vector>

#include "model.h"
#include "offer.h"

namespace forerun {

// protocols.py, Growth and GrowthPlan, has the meaning of every field.
struct GrowthPlan {
  int num_rows, table_width;
  const int32_t *catch_up, *catch_up_starts, *committed, *block_table, *budgets, *depths;
  const Sampler* const* samplers;
  Draw draw;
  std::vector<int32_t> parents;  // of a given tree's drafted nodes; empty: best first
  int width, frontier;           // of a given tree: the most children of a node, and nothing
  double least;
  std::vector<float> prices;  // score of the n-th best node that pays for it; the last goes on
  double pass_price;          // scores of what a pass would expand, summed, that pay for it
  const float* acceptance;    // [num_rows num_ranks num_margins]
  int num_ranks, num_margins;
  double margin_step, least_margin;
  int num_layers;  // the lowest so many draft; 0: all of them

  bool is_sampled() const { return draw != Draw::kCoupled && draw != Draw::kPoint; }
  bool is_given() const { return !parents.empty(); }
  // Tokens known to row b, the pending one included.
  int known(int b) const { return committed[b] + catch_up_starts[b + 1] - catch_up_starts[b]; }
};

// One row's tree; node 0 is pending. `kv[n]`: the number of its K/V among the grown nodes, or -1.
// `laws`: vocab values for each of `expanded`; `draws`: the same number of tokens for each, -1
// behind.
struct GrownRow {
  std::vector<int32_t> tokens, parents, ranks, kv, expanded, draws;
  std::vector<float> margins, scores, laws;
  int num_passes = 0;  // of the whole proposal
};

std::vector<GrownRow> grow(Model& model, const GrowthPlan& plan);

}  // namespace forerun
