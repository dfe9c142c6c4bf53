// A whole proposal of trees as plain data.
#pragma once

#include <vector>

#include "offer.h"

namespace forerun {

constexpr int kDeepest = 256;  // composition.py, LONGEST

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
  Damped damped = {};

  bool is_sampled() const { return draw != Draw::kCoupled && draw != Draw::kPoint; }
  bool is_given() const { return !parents.empty(); }
  // Tokens known to row b, the pending one included.
  int known(int b) const { return committed[b] + catch_up_starts[b + 1] - catch_up_starts[b]; }
};

// Drafts under verification that are grown further; forecast.py, ForecastPlan, has the meaning of
// every field. Nodes and exits of row b stand from `starts[b]`, `exit_starts[b]` on.
struct ForecastPlan {
  GrowthPlan below;
  const int32_t *tokens, *parents, *starts, *exits, *exit_starts, *num_branches;
  int num_offers;
  const volatile int32_t* deepest;  // somebody else may write it at any time

  int num_nodes(int b) const { return starts[b + 1] - starts[b]; }
  int num_nodes() const { return starts[below.num_rows]; }
};

}  // namespace forerun
