// The vocabulary-wide operations: which token a row of logits chooses, and from which law.
//
// Order: bias and allowed tokens, penalties, temperature, top-k, top-p, min-p; then the argmax of
// s + g with Gumbel noise g keyed by (seed, choice, position, token); lowest id on ties. The
// readable reference is sampling.py.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace forerun {

struct Sampler {
  double temperature, top_p, min_p, repetition, presence, frequency;
  int64_t top_k;
  uint64_t seed;
  uint32_t choice;
  bool restricted;  // only `allowed` may be chosen
  std::vector<int32_t> bias_ids, allowed, prompt_ids, output_ids, output_counts;
  std::vector<double> bias;

  bool edits_logits() const {
    return !bias_ids.empty() || restricted || repetition != 1.0 || presence != 0.0 ||
           frequency != 0.0;
  }
  bool truncates() const { return top_k > 0 || top_p < 1.0 || min_p > 0.0; }
};

// Scratch of one worker, reused between rows.
struct SelectScratch {
  std::vector<uint32_t> words;
  std::vector<int32_t> kept;
  std::vector<double> scores;
};

constexpr int32_t kNoToken = -1;  // when a logit is NaN, or nothing is left to choose from
constexpr uint32_t kVerdictPurpose = 0, kDraftPurpose = 1;

int32_t choose(const Kernels& kernels, const float* logits, int64_t vocab, const Sampler& sampler,
               int64_t position, const int32_t* path, int64_t path_length, SelectScratch& scratch);

// The `count` best of what `choose` takes the best of, best first, with their values (the score
// plus noise; at temperature 0 the logit after edits); returns how many there are.
int best_tokens(const Kernels& kernels, const float* logits, int64_t vocab, const Sampler& sampler,
                int64_t position, const int32_t* path, int64_t path_length, int count,
                SelectScratch& scratch, int32_t* tokens, double* values);

// The token whose cumulated weight first exceeds u of the whole; weights of `removed` are none.
// -1 when nothing is left.
int32_t pick(const float* weights, int64_t vocab, const std::vector<int32_t>& removed, double u);

// Uniform in [0, 1), 53 bits: noise.py, uniform.
double uniform(const Kernels& kernels, const Sampler& sampler, uint32_t purpose, int64_t start,
               int node, int index, SelectScratch& scratch);

// The law `choose` draws from, one-hot at temperature 0; false where `choose` has no token.
bool law(const float* logits, int64_t vocab, const Sampler& sampler, const int32_t* path,
         int64_t path_length, SelectScratch& scratch, float* probabilities);

// Raw log-softmax, in double.
void log_softmax(const float* logits, int64_t vocab, float* out);

}  // namespace forerun
