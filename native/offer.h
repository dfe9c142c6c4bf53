// What one node of a growing tree offers as children, by the ways of drawing. The readable
// reference is backends/growing.py.
#pragma once

#include <vector>

#include "select.h"

namespace forerun {

enum class Draw { kCoupled, kPoint, kSampled, kWithoutReplacement, kTopAndOne };

// A node's logits, who chooses, and where: `path` are the drafted tokens down to it, `known` the
// tokens known before them, `node` its number in its row, `count` how many children are wanted.
struct Asked {
  const Kernels& kernels;
  const float* logits;
  int64_t vocab;
  const Sampler& sampler;
  const std::vector<int32_t>& path;
  int known, node, count;

  int64_t path_length() const { return static_cast<int64_t>(path.size()); }
};

// The `count` likeliest tokens of a law are drawn `factor` times as often as it says.
struct Damped {
  int count = 0;
  float factor = 1.0f;
};

// Tokens in order of drawing, with what orders them; of draws the law, all draws with their
// repetitions, and the tokens that the law was damped at. `chances`: of each token what the law
// gives it, where somebody wants to be told.
struct Offer {
  std::vector<int32_t> tokens, draws, damped;
  std::vector<double> values;
  std::vector<float> law, chances;
};

// The best of `log q + g` with the target's own noise. One value more than tokens where there is
// one: a margin needs somebody to be compared with.
Offer coupled(const Asked& asked, SelectScratch& scratch);

// The likeliest tokens and their probabilities; a greedy row's law is that of temperature 1.
Offer likeliest(const Asked& asked, SelectScratch& scratch);
// The probability that `likeliest` gives a token; 0 where there is no law.
double probability(const Asked& asked, int32_t token, SelectScratch& scratch);
// The same of several tokens, out of one law.
std::vector<float> probabilities(const Asked& asked, const std::vector<int32_t>& tokens,
                                 SelectScratch& scratch);

// Draws of a sampled rule: each by a counter of (tokens known, node, index) and no other. Whether
// anything is drawn may depend on the law (`least` bounds its entropy), never on what is drawn.
// The readable reference of damping is shapes/draw.py.
Offer drawn(const Asked& asked, Draw draw, double least, const Damped& damped,
            SelectScratch& scratch);

}  // namespace forerun
