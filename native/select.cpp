#include "select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "mode.h"

namespace forerun {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// Own exp and log in double: libm differs between systems, and a result must not.
double exact_exp(double x) {
  if (x < -708.0) return 0.0;
  const double n = std::nearbyint(x * 1.4426950408889634);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0;
  for (int i = 13; i > 0; --i) p = 1.0 + r / i * p;
  return std::ldexp(p, static_cast<int>(n));
}

// log of a positive normal number: m in [sqrt(1/2), sqrt(2)), then 2 atanh((m - 1) / (m + 1)).
double exact_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
  double m;
  std::memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 0.0;
  for (int i = 23; i >= 1; i -= 2) p = p * z + 1.0 / i;
  return exponent * 6.93147180369123816490e-01 +
         (exponent * 1.90821492927058770002e-10 + 2.0 * s * p);
}

double gumbel(uint32_t word) {
  const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return -exact_log(-exact_log(u));
}

// Bias, allowed tokens and penalties: z in double, -inf where removed.
void edit(const float* logits, int64_t vocab, const Sampler& s, const int32_t* path,
          int64_t path_length, std::vector<double>& z) {
  z.assign(logits, logits + vocab);
  for (size_t i = 0; i < s.bias_ids.size(); ++i) z[static_cast<size_t>(s.bias_ids[i])] += s.bias[i];
  if (s.restricted) {
    std::vector<double> kept(z.size(), kNever);
    for (const int32_t t : s.allowed) kept[static_cast<size_t>(t)] = z[static_cast<size_t>(t)];
    z.swap(kept);
  }
  if (s.repetition == 1.0 && s.presence == 0.0 && s.frequency == 0.0) return;
  // Distinct tokens seen, with how often each was generated (0 for prompt-only ones).
  std::vector<std::pair<int32_t, int32_t>> seen;
  for (size_t i = 0; i < s.output_ids.size(); ++i)
    seen.emplace_back(s.output_ids[i], s.output_counts[i]);
  for (int64_t i = 0; i < path_length; ++i) seen.emplace_back(path[i], 1);
  for (const int32_t t : s.prompt_ids) seen.emplace_back(t, 0);
  std::sort(seen.begin(), seen.end());
  for (size_t i = 0; i < seen.size();) {
    const int32_t token = seen[i].first;
    int64_t count = 0;
    for (; i < seen.size() && seen[i].first == token; ++i) count += seen[i].second;
    double& value = z[static_cast<size_t>(token)];
    if (s.repetition != 1.0) value = value > 0 ? value / s.repetition : value * s.repetition;
    if (count > 0) value -= s.frequency * static_cast<double>(count) + s.presence;
  }
}

int64_t best_of(const std::vector<double>& z) {
  return std::max_element(z.begin(), z.end()) - z.begin();  // the first, that is the lowest id
}

// Edited logits in double, -inf where removed. False when one is NaN or nothing is left to choose.
bool edited(const float* logits, int64_t vocab, const Sampler& s, const int32_t* path,
            int64_t path_length, std::vector<double>& z) {
  const auto is_nan = [](double v) { return v != v; };
  if (std::any_of(logits, logits + vocab, is_nan)) return false;  // also where a mask would hide it
  edit(logits, vocab, s, path, path_length, z);
  if (std::any_of(z.begin(), z.end(), is_nan)) return false;
  return z[static_cast<size_t>(best_of(z))] != kNever;
}

// Scores in double after edits and temperature, -inf where removed; at temperature 0 one score of
// 0. False when a value is NaN or nothing is left to choose from.
bool score(const float* logits, int64_t vocab, const Sampler& s, const int32_t* path,
           int64_t path_length, std::vector<double>& z) {
  if (!edited(logits, vocab, s, path, path_length, z)) return false;
  const size_t best = static_cast<size_t>(best_of(z));
  if (s.temperature == 0.0) {
    std::fill(z.begin(), z.end(), kNever);
    z[best] = 0.0;
    return true;
  }
  for (double& value : z) value /= s.temperature;
  if (z[best] == -kNever)  // what overflows shares the law
    for (double& value : z) value = value == -kNever ? 0.0 : kNever;
  return true;
}

// Ids that top-k, top-p and min-p keep, best first (score, then lowest id).
void truncate(const std::vector<double>& scores, const Sampler& s, std::vector<int32_t>& kept) {
  kept.clear();
  for (size_t t = 0; t < scores.size(); ++t)
    if (scores[t] != kNever) kept.push_back(static_cast<int32_t>(t));
  const auto before = [&](int32_t a, int32_t b) {
    const double x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (s.top_k > 0 && s.top_k < static_cast<int64_t>(kept.size())) {
    std::nth_element(kept.begin(), kept.begin() + s.top_k, kept.end(), before);
    kept.resize(static_cast<size_t>(s.top_k));
  }
  if (kept.empty()) return;
  const double top =
      scores[static_cast<size_t>(*std::min_element(kept.begin(), kept.end(), before))];
  const auto weight = [&](int32_t t) { return exact_exp(scores[static_cast<size_t>(t)] - top); };
  size_t count = kept.size();
  if (s.top_p < 1.0) {
    std::sort(kept.begin(), kept.end());
    double total = 0.0;
    for (const int32_t t : kept) total += weight(t);
    // Sort only as far as the nucleus reaches; the first is in it however small top_p is, also
    // where subnormal numbers count as zero.
    double cumulative = 0.0;
    size_t sorted = 0;
    count = 0;
    while (count < kept.size() && (count == 0 || cumulative < s.top_p * total)) {
      if (count == sorted) {
        sorted = std::min(kept.size(), std::max<size_t>(64, sorted * 4));
        std::partial_sort(kept.begin() + static_cast<int64_t>(count),
                          kept.begin() + static_cast<int64_t>(sorted), kept.end(), before);
      }
      cumulative += weight(kept[count++]);
    }
    kept.resize(count);
  }
  if (s.min_p > 0.0) {
    std::erase_if(kept, [&](int32_t t) { return weight(t) < s.min_p; });
  }
}

int32_t best_with_noise(const std::vector<int32_t>& kept, const std::vector<double>& scores,
                        const std::vector<uint32_t>& words) {
  int32_t best = -1;
  double best_score = kNever;
  for (const int32_t t : kept) {
    const double score = scores[static_cast<size_t>(t)] + gumbel(words[static_cast<size_t>(t)]);
    if (best < 0 || score > best_score || (score == best_score && t < best)) {
      best = t;
      best_score = score;
    }
  }
  return best;
}

// No edits, no truncation: only tokens whose upper bound reaches the best sure score are computed.
int32_t choose_plain(const Kernels& kernels, const float* logits, int64_t vocab, double temperature,
                     int64_t top, SelectScratch& scratch) {
  const auto score = [&](int64_t t) {
    return static_cast<double>(logits[t]) / temperature +
           gumbel(scratch.words[static_cast<size_t>(t)]);
  };
  const float inverse = static_cast<float>(1.0 / temperature);
  const double sure = score(top);
  const double slack = 1e-3 + 1e-5 * std::abs(static_cast<double>(logits[top]) / temperature);
  scratch.kept.resize(static_cast<size_t>(vocab));
  const int64_t count =
      kernels.contenders(logits, scratch.words.data(), inverse, static_cast<float>(sure - slack),
                         vocab, scratch.kept.data());
  int64_t best = top;
  double best_score = sure;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = scratch.kept[static_cast<size_t>(i)];
    const double s = score(t);
    if (s > best_score || (s == best_score && t < best)) {
      best = t;
      best_score = s;
    }
  }
  return static_cast<int32_t>(best);
}

}  // namespace

int32_t choose(const Kernels& kernels, const float* logits, int64_t vocab, const Sampler& s,
               int64_t position, const int32_t* path, int64_t path_length, SelectScratch& scratch) {
  bool has_nan = false;
  const int64_t top = kernels.argmax(logits, vocab, &has_nan);
  if (has_nan || logits[top] == -INFINITY) return kNoToken;
  if (s.temperature == 0.0 && !s.edits_logits()) return static_cast<int32_t>(top);
  if (s.temperature > 0.0) {
    scratch.words.resize(static_cast<size_t>(vocab));
    kernels.noise_words({static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32),
                         static_cast<uint32_t>(position), s.choice, kVerdictPurpose},
                        vocab, scratch.words.data());
    const bool finite = std::isfinite(logits[top]);
    if (!s.edits_logits() && !s.truncates() && finite && s.temperature >= 1e-3)
      return choose_plain(kernels, logits, vocab, s.temperature, top, scratch);
  }
  if (!score(logits, vocab, s, path, path_length, scratch.scores)) return kNoToken;
  if (s.temperature == 0.0) return static_cast<int32_t>(best_of(scratch.scores));
  truncate(scratch.scores, s, scratch.kept);
  return best_with_noise(scratch.kept, scratch.scores, scratch.words);
}

namespace {

// The `count` best of `ids` by value, best first, lowest id on ties.
template <typename Value>
int best_of_ids(std::vector<int32_t>& ids, int count, Value&& value, int32_t* tokens,
                double* values) {
  const auto before = [&](int32_t a, int32_t b) {
    const double x = value(a), y = value(b);
    return x != y ? x > y : a < b;
  };
  const size_t kept = std::min(ids.size(), static_cast<size_t>(count));
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(kept), ids.end(), before);
  for (size_t i = 0; i < kept; ++i) {
    tokens[i] = ids[i];
    values[i] = value(ids[i]);
  }
  return static_cast<int>(kept);
}

// The `count` greatest logits, best first: how far down noise can possibly matter is known by them.
void top_logits(const float* logits, int64_t vocab, int count, std::vector<int32_t>& ids) {
  ids.clear();
  for (int64_t t = 0; t < vocab; ++t) {
    if (static_cast<int>(ids.size()) == count && !(logits[t] > logits[ids.back()])) continue;
    if (static_cast<int>(ids.size()) == count) ids.pop_back();
    auto at = ids.end();
    while (at != ids.begin() && logits[t] > logits[*(at - 1)]) --at;
    ids.insert(at, static_cast<int32_t>(t));
  }
}

}  // namespace

int best_tokens(const Kernels& kernels, const float* logits, int64_t vocab, const Sampler& s,
                int64_t position, const int32_t* path, int64_t path_length, int count,
                SelectScratch& scratch, int32_t* tokens, double* values) {
  bool has_nan = false;
  const int64_t top = kernels.argmax(logits, vocab, &has_nan);
  if (has_nan || logits[top] == -INFINITY) return 0;
  count = static_cast<int>(std::min<int64_t>(count, vocab));
  std::vector<int32_t>& ids = scratch.kept;
  if (s.temperature == 0.0 && !s.edits_logits()) {
    top_logits(logits, vocab, count, ids);
    return best_of_ids(
        ids, count, [&](int32_t t) { return static_cast<double>(logits[t]); }, tokens, values);
  }
  if (s.temperature > 0.0) {
    scratch.words.resize(static_cast<size_t>(vocab));
    kernels.noise_words({static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32),
                         static_cast<uint32_t>(position), s.choice, kVerdictPurpose},
                        vocab, scratch.words.data());
  }
  const auto noise = [&](int32_t t) { return gumbel(scratch.words[static_cast<size_t>(t)]); };
  if (s.temperature >= 1e-3 && !s.edits_logits() && !s.truncates() && std::isfinite(logits[top])) {
    const auto value = [&](int32_t t) {
      return static_cast<double>(logits[t]) / s.temperature + noise(t);
    };
    top_logits(logits, vocab, count, ids);
    double sure = value(ids[0]);
    for (const int32_t t : ids) sure = std::min(sure, value(t));
    if (std::isfinite(sure)) {  // else fewer tokens than asked for have any score
      const double slack = 1e-3 + 1e-5 * std::abs(static_cast<double>(logits[top]) / s.temperature);
      ids.resize(static_cast<size_t>(vocab));
      const int64_t found =
          kernels.contenders(logits, scratch.words.data(), static_cast<float>(1.0 / s.temperature),
                             static_cast<float>(sure - slack), vocab, ids.data());
      ids.resize(static_cast<size_t>(found));
      return best_of_ids(ids, count, value, tokens, values);
    }
  }
  std::vector<double>& z = scratch.scores;
  if (s.temperature == 0.0) {
    if (!edited(logits, vocab, s, path, path_length, z)) return 0;
    ids.clear();
    for (size_t t = 0; t < z.size(); ++t)
      if (z[t] != kNever) ids.push_back(static_cast<int32_t>(t));
    return best_of_ids(
        ids, count, [&](int32_t t) { return z[static_cast<size_t>(t)]; }, tokens, values);
  }
  if (!score(logits, vocab, s, path, path_length, z)) return 0;
  truncate(z, s, ids);
  return best_of_ids(
      ids, count, [&](int32_t t) { return z[static_cast<size_t>(t)] + noise(t); }, tokens, values);
}

int32_t pick(const float* weights, int64_t vocab, const std::vector<int32_t>& removed, double u) {
  const auto weight = [&](int64_t t) {
    const bool gone = std::find(removed.begin(), removed.end(), t) != removed.end();
    return gone ? 0.0 : static_cast<double>(weights[t]);
  };
  double total = 0.0;
  for (int64_t t = 0; t < vocab; ++t)
    if (weights[t] > 0.0f) total += weight(t);
  double sum = 0.0;
  int32_t last = kNoToken;
  for (int64_t t = 0; t < vocab; ++t) {
    if (!(weights[t] > 0.0f)) continue;
    const double w = weight(t);
    if (w == 0.0) continue;
    sum += w;
    last = static_cast<int32_t>(t);
    if (sum > u * total) return last;
  }
  return last;
}

double uniform(const Kernels& kernels, const Sampler& s, uint32_t purpose, int64_t start, int node,
               int index, SelectScratch& scratch) {
  const int64_t count = 4LL * index + 2;
  scratch.words.resize(static_cast<size_t>(count));
  kernels.noise_words(
      {static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32),
       static_cast<uint32_t>(start), s.choice, purpose + (static_cast<uint32_t>(node) << 8)},
      count, scratch.words.data());
  const uint32_t high = scratch.words[static_cast<size_t>(count) - 2] >> 5,
                 low = scratch.words[static_cast<size_t>(count) - 1] >> 6;
  return (high * 0x1p26 + low) * 0x1p-53;
}

bool law(const float* logits, int64_t vocab, const Sampler& s, const int32_t* path,
         int64_t path_length, SelectScratch& scratch, float* probabilities) {
  std::fill_n(probabilities, vocab, 0.0f);
  if (!score(logits, vocab, s, path, path_length, scratch.scores)) return false;
  if (s.temperature == 0.0) {
    probabilities[best_of(scratch.scores)] = 1.0f;
    return true;
  }
  truncate(scratch.scores, s, scratch.kept);
  std::sort(scratch.kept.begin(), scratch.kept.end());
  double top = kNever, total = 0.0;
  for (const int32_t t : scratch.kept) top = std::max(top, scratch.scores[static_cast<size_t>(t)]);
  for (const int32_t t : scratch.kept)
    total += exact_exp(scratch.scores[static_cast<size_t>(t)] - top);
  for (const int32_t t : scratch.kept)
    probabilities[t] =
        static_cast<float>(exact_exp(scratch.scores[static_cast<size_t>(t)] - top) / total);
  return true;
}

void log_softmax(const float* logits, int64_t vocab, float* out) {
  const CanonicalMode mode;
  const double top = *std::max_element(logits, logits + vocab);
  double total = 0.0;
  for (int64_t t = 0; t < vocab; ++t) total += exact_exp(logits[t] - top);
  const double log_total = exact_log(total);
  for (int64_t t = 0; t < vocab; ++t) out[t] = static_cast<float>(logits[t] - top - log_total);
}

}  // namespace forerun
