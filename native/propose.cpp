#include "propose.h"

#include <algorithm>
#include <atomic>

#include "mode.h"

namespace forerun {
namespace {

struct Path {
  const int32_t* tokens;
  int64_t length;
};

Path path_of(const Rows& rows, int64_t r) {
  return {rows.path_tokens + rows.path_starts[r], rows.path_starts[r + 1] - rows.path_starts[r]};
}

template <typename Body>
void each_row(Lane& lane, int64_t count, Body&& body) {
  if (count == 1) {  // not worth waking anybody
    const CanonicalMode mode;
    thread_local SelectScratch scratch;
    body(0, scratch);
    return;
  }
  lane.reset_phases(1);
  lane.run([&](int worker) {
    thread_local SelectScratch scratch;
    lane.share(worker, 0, count, [&](int64_t r) { body(r, scratch); });
  });
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
  const int num_rows = plan.num_rows, num_steps = plan.num_steps;
  const size_t rows = static_cast<size_t>(num_rows);
  std::vector<int32_t> parents, starts(rows + 1),
      committed(plan.committed, plan.committed + num_rows);
  std::vector<int32_t> last(rows), step_tokens(rows), sampler_of(rows), path_starts(rows + 1);
  std::vector<int32_t> path_tokens;
  std::vector<int64_t> positions(rows);
  for (int b = 0; b < num_rows; ++b) {
    const int count = plan.catch_up_starts[b + 1] - plan.catch_up_starts[b];
    for (int i = 0; i < count; ++i) parents.push_back(i - 1);
    last[static_cast<size_t>(b)] = plan.catch_up_starts[b + 1] - 1;
    sampler_of[static_cast<size_t>(b)] = b;
    positions[static_cast<size_t>(b)] = committed[static_cast<size_t>(b)] + count;
  }
  Batch batch{num_rows,
              static_cast<int>(parents.size()),
              plan.table_width,
              num_rows,
              0,
              plan.catch_up,
              parents.data(),
              plan.catch_up_starts,
              committed.data(),
              plan.block_table,
              last.data(),
              nullptr};
  for (int step = 0; step < num_steps; ++step) {
    model.forward(batch);
    select_rows(model.lane(),
                {model.logits()->data(), model.logits_stride(), model.shape().vocab, num_rows,
                 positions.data(), sampler_of.data(), plan.samplers, path_starts.data(),
                 path_tokens.data()},
                step_tokens.data());
    for (int b = 0; b < num_rows; ++b) {
      const bool failed = step > 0 && tokens[b * num_steps + step - 1] == kNoToken;
      tokens[b * num_steps + step] = failed ? kNoToken : step_tokens[static_cast<size_t>(b)];
    }
    if (step + 1 == num_steps) break;
    if (step == 0) {  // from here on one node a row
      parents.assign(rows, -1);
      for (int b = 0; b <= num_rows; ++b) starts[static_cast<size_t>(b)] = b;
      for (int b = 0; b < num_rows; ++b) last[static_cast<size_t>(b)] = b;
      batch.num_nodes = num_rows;
      batch.tokens = step_tokens.data();
      batch.parents = parents.data();
      batch.row_starts = starts.data();
    }
    path_tokens.clear();
    for (int b = 0; b < num_rows; ++b) {
      path_starts[static_cast<size_t>(b)] = static_cast<int32_t>(path_tokens.size());
      for (int i = 0; i <= step; ++i) path_tokens.push_back(std::max(0, tokens[b * num_steps + i]));
      step_tokens[static_cast<size_t>(b)] = std::max(0, step_tokens[static_cast<size_t>(b)]);
      committed[static_cast<size_t>(b)] = static_cast<int32_t>(positions[static_cast<size_t>(b)]);
      ++positions[static_cast<size_t>(b)];
    }
    path_starts[rows] = static_cast<int32_t>(path_tokens.size());
  }
}

}  // namespace forerun
