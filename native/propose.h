// Many rows of logits at once, and a whole chain proposal in one call.
#pragma once

#include <vector>

#include "mode.h"
#include "model.h"
#include "select.h"

namespace forerun {

// body(row, scratch) for every row of logits, on all workers where there are several.
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

// Rows of logits and who chooses at each; protocols.py, Selection, has the meaning of every field.
struct Rows {
  const float* logits;
  int64_t stride, vocab, count;
  const int64_t* positions;
  const int32_t* sampler_of;
  const Sampler* const* samplers;
  const int32_t *path_starts, *path_tokens;
};

void select_rows(Lane& lane, const Rows& rows, int32_t* tokens);
// False when any row has no token to choose.
bool law_rows(Lane& lane, const Rows& rows, float* probabilities);

struct Proposal {
  int num_rows, num_steps, table_width;
  const int32_t *catch_up, *catch_up_starts, *committed, *block_table;
  const Sampler* const* samplers;
};

// tokens [num_rows num_steps]: each is the argmax of log q + g with the target's noise of its
// position; kNoToken from the first step without a token on.
void propose(Model& model, const Proposal& plan, int32_t* tokens);

}  // namespace forerun
