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
  bool is_told = false;  // somebody wants to see how likely coupled children were

  bool is_sampled() const { return draw != Draw::kCoupled && draw != Draw::kPoint; }
  bool is_given() const { return !parents.empty(); }
  // Tokens known to row b, the pending one included.
  int known(int b) const { return committed[b] + catch_up_starts[b + 1] - catch_up_starts[b]; }
};

// What was read of some nodes of a forecast, by itself: the logits below each, and its K/V,
// `Model::bytes_per_node` of them.
struct HeldNodes {
  int num_nodes = 0;
  std::vector<float> logits;
  std::vector<uint8_t> kv;
};

// Drafts under verification that are grown further; forecast.py, ForecastPlan, has the meaning of
// every field. Nodes and exits of row b stand from `starts[b]`, `exit_starts[b]` on. `held[b]`:
// what need not be read of a row again, or null; `carried[n]`: which of them node n is, or -1.
struct ForecastPlan {
  GrowthPlan below;
  const int32_t *tokens, *parents, *starts, *exits, *exit_starts, *num_branches;
  int num_offers;
  const volatile int32_t* deepest;  // somebody else may write it at any time
  const HeldNodes* const* held;
  const int32_t* carried;
  // Where outcomes are given, none is guessed: tokens below nodes of all drafts, rows ascending.
  const int32_t *given_exits, *given_tokens;
  int num_given;
  int per_exit = 0;  // the most guesses below one exit; 0: any number

  int num_nodes(int b) const { return starts[b + 1] - starts[b]; }
  int num_nodes() const { return starts[below.num_rows]; }
  bool is_given() const { return num_given > 0; }
  bool is_carried(int n) const { return carried[n] >= 0; }
  // Whether row b has nothing unread but nodes of its draft.
  bool is_held(int b) const { return is_carried(starts[b]); }
};

}  // namespace forerun
