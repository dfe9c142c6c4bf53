#include "propose.h"

#include <algorithm>
#include <atomic>

namespace forerun {
namespace {

struct Path {
  const int32_t* tokens;
  int64_t length;
};

Path path_of(const Rows& rows, int64_t r) {
  return {rows.path_tokens + rows.path_starts[r], rows.path_starts[r + 1] - rows.path_starts[r]};
}

// The arrays of the next forward pass and choice, one entry a row; after the first step a row is
// one node.
struct Step {
  explicit Step(const Proposal& plan);
  void advance(const int32_t* tokens, int num_steps, int done);

  size_t rows;
  std::vector<int32_t> parents, starts, committed, last, chosen, sampler_of, path_starts,
      path_tokens;
  std::vector<int64_t> positions;
  Batch batch;
};

Step::Step(const Proposal& plan)
    : rows(static_cast<size_t>(plan.num_rows)),
      starts(rows + 1),
      committed(plan.committed, plan.committed + plan.num_rows),
      last(rows),
      chosen(rows),
      sampler_of(rows),
      path_starts(rows + 1),
      positions(rows) {
  for (size_t b = 0; b < rows; ++b) {
    const int count = plan.catch_up_starts[b + 1] - plan.catch_up_starts[b];
    for (int i = 0; i < count; ++i) parents.push_back(i - 1);
    last[b] = plan.catch_up_starts[b + 1] - 1;
    sampler_of[b] = static_cast<int32_t>(b);
    positions[b] = committed[b] + count;
  }
  batch = {plan.num_rows,
           static_cast<int>(parents.size()),
           plan.table_width,
           plan.num_rows,
           0,
           plan.catch_up,
           parents.data(),
           plan.catch_up_starts,
           committed.data(),
           plan.block_table,
           last.data(),
           nullptr};
}

// Feed each row the token it chose; `tokens [rows num_steps]` hold what was drafted in steps
// 0..done.
void Step::advance(const int32_t* tokens, int num_steps, int done) {
  parents.assign(rows, -1);
  path_tokens.clear();
  for (size_t b = 0; b < rows; ++b) {
    starts[b + 1] = static_cast<int32_t>(b + 1);
    last[b] = static_cast<int32_t>(b);
    path_starts[b] = static_cast<int32_t>(path_tokens.size());
    for (int i = 0; i <= done; ++i)
      path_tokens.push_back(
          std::max(0, tokens[b * static_cast<size_t>(num_steps) + static_cast<size_t>(i)]));
    chosen[b] = std::max(0, chosen[b]);  // a row without a token computes on, unheard
    committed[b] = static_cast<int32_t>(positions[b]++);
  }
  path_starts[rows] = static_cast<int32_t>(path_tokens.size());
  batch.num_nodes = batch.num_rows;
  batch.tokens = chosen.data();
  batch.parents = parents.data();
  batch.row_starts = starts.data();
}

}  // namespace

void select_rows(Lane& lane, const Rows& rows, int32_t* tokens) {
  each_row(lane, rows.count, [&](int64_t r, SelectScratch& scratch) {
    const Path path = path_of(rows, r);
    tokens[r] = choose(lane.kernels(), rows.logits + r * rows.stride, rows.vocab,
                       *rows.samplers[rows.sampler_of[r]], rows.positions[r], path.tokens,
                       path.length, scratch);
  });
}

bool law_rows(Lane& lane, const Rows& rows, float* probabilities) {
  std::atomic<bool> sound{true};
  each_row(lane, rows.count, [&](int64_t r, SelectScratch& scratch) {
    const Path path = path_of(rows, r);
    if (!law(rows.logits + r * rows.stride, rows.vocab, *rows.samplers[rows.sampler_of[r]],
             path.tokens, path.length, scratch, probabilities + r * rows.vocab))
      sound = false;
  });
  return sound;
}

void propose(Model& model, const Proposal& plan, int32_t* tokens) {
  Step step(plan);
  for (int done = 0; done < plan.num_steps; ++done) {
    if (done > 0) step.advance(tokens, plan.num_steps, done - 1);
    model.forward(step.batch);
    select_rows(model.lane(),
                {model.logits()->data(), model.logits_stride(), model.shape().vocab, plan.num_rows,
                 step.positions.data(), step.sampler_of.data(), plan.samplers,
                 step.path_starts.data(), step.path_tokens.data()},
                step.chosen.data());
    for (int b = 0; b < plan.num_rows; ++b) {
      int32_t* row = tokens + b * plan.num_steps;
      const bool failed = done > 0 && row[done - 1] == kNoToken;
      row[done] = failed ? kNoToken : step.chosen[static_cast<size_t>(b)];
    }
  }
}

}  // namespace forerun
