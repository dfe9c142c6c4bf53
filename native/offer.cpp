#include "offer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace forerun {

Offer coupled(const Asked& asked, SelectScratch& scratch) {
  const int wanted = std::max(asked.count, 2);
  Offer offer;
  offer.tokens.resize(static_cast<size_t>(wanted));
  offer.values.resize(static_cast<size_t>(wanted));
  const int found =
      best_tokens(asked.kernels, asked.logits, asked.vocab, asked.sampler,
                  asked.known + asked.path_length(), asked.path.data(), asked.path_length(), wanted,
                  scratch, offer.tokens.data(), offer.values.data());
  offer.tokens.resize(static_cast<size_t>(std::min(found, asked.count)));
  offer.values.resize(static_cast<size_t>(found));
  return offer;
}

namespace {

// The law behind `likeliest`; empty where there is none.
std::vector<float> softened(const Asked& asked, SelectScratch& scratch) {
  Sampler sampler = asked.sampler;
  if (sampler.temperature == 0.0) sampler.temperature = 1.0;
  std::vector<float> probabilities(static_cast<size_t>(asked.vocab));
  if (!law(asked.logits, asked.vocab, sampler, asked.path.data(), asked.path_length(), scratch,
           probabilities.data()))
    probabilities.clear();
  return probabilities;
}

// The best `count` tokens of a law, best first, lowest id on ties.
std::vector<int32_t> best_of(const std::vector<float>& law, int count) {
  std::vector<int32_t> ids(law.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t kept = std::min(ids.size(), static_cast<size_t>(count));
  const auto p = [&](int32_t t) { return law[static_cast<size_t>(t)]; };
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(kept), ids.end(),
                    [&](int32_t a, int32_t b) { return p(a) != p(b) ? p(a) > p(b) : a < b; });
  ids.resize(kept);
  return ids;
}

}  // namespace

double probability(const Asked& asked, int32_t token, SelectScratch& scratch) {
  return probabilities(asked, {token}, scratch)[0];
}

std::vector<float> probabilities(const Asked& asked, const std::vector<int32_t>& tokens,
                                 SelectScratch& scratch) {
  const std::vector<float> law = softened(asked, scratch);
  std::vector<float> found(tokens.size(), 0.0f);
  for (size_t i = 0; i < tokens.size() && !law.empty(); ++i)
    found[i] = law[static_cast<size_t>(tokens[i])];
  return found;
}

Offer likeliest(const Asked& asked, SelectScratch& scratch) {
  const std::vector<float> probabilities = softened(asked, scratch);
  Offer offer;
  for (const int32_t token : best_of(probabilities, asked.count)) {
    const float p = probabilities[static_cast<size_t>(token)];
    if (!(p > 0.0f)) break;
    offer.tokens.push_back(token);
    offer.values.push_back(p);
  }
  return offer;
}

namespace {

double entropy_of(const std::vector<float>& law) {
  double entropy = 0.0;
  for (const float q : law)
    if (q > 0.0f) entropy -= static_cast<double>(q) * std::log(static_cast<double>(q));
  return entropy;
}

// The greatest of a law but for what was taken, lowest id on ties; kNoToken when nothing is left.
int32_t greatest(const std::vector<float>& law, const std::vector<int32_t>& taken) {
  int32_t best = kNoToken;
  for (int32_t t = 0; t < static_cast<int32_t>(law.size()); ++t) {
    const float q = law[static_cast<size_t>(t)];
    const bool better = best < 0 || q > law[static_cast<size_t>(best)];
    if (q > 0.0f && better && std::find(taken.begin(), taken.end(), t) == taken.end()) best = t;
  }
  return best;
}

// Lowers the likeliest tokens behind `num_set` and says which they are; a law with no token beside
// them stays as it is.
std::vector<int32_t> damp(std::vector<float>& law, const Damped& damped, int num_set) {
  const int count = num_set + damped.count;
  if (damped.count == 0 ||
      std::count_if(law.begin(), law.end(), [](float q) { return q > 0.0f; }) <= count)
    return {};
  std::vector<int32_t> tokens = best_of(law, count);
  tokens.erase(tokens.begin(), tokens.begin() + num_set);
  for (const int32_t token : tokens) law[static_cast<size_t>(token)] *= damped.factor;
  return tokens;
}

}  // namespace

Offer drawn(const Asked& asked, Draw draw, double least, const Damped& damped,
            SelectScratch& scratch) {
  Offer offer;
  offer.law.resize(static_cast<size_t>(asked.vocab));
  if (!law(asked.logits, asked.vocab, asked.sampler, asked.path.data(), asked.path_length(),
           scratch, offer.law.data()))
    return {};
  if (least > 0.0 && 1.0 - std::sqrt(0.2 * entropy_of(offer.law)) < least) return {};
  offer.damped = damp(offer.law, damped, draw == Draw::kTopAndOne ? asked.count - 1 : 0);
  std::vector<int32_t> removed;
  for (int i = 0; i < asked.count; ++i) {
    int32_t token;
    if (draw == Draw::kTopAndOne && i + 1 < asked.count) {
      token = greatest(offer.law, removed);
    } else {
      const double u =
          uniform(asked.kernels, asked.sampler, kDraftPurpose, asked.known, asked.node, i, scratch);
      token = pick(offer.law.data(), asked.vocab, removed, u);
    }
    if (token < 0) break;
    offer.draws.push_back(token);
    if (draw != Draw::kSampled) removed.push_back(token);
    if (std::find(offer.tokens.begin(), offer.tokens.end(), token) == offer.tokens.end())
      offer.tokens.push_back(token);
  }
  return offer;
}

}  // namespace forerun
