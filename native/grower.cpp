#include "grower.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace forerun {

Weight weigh(const GrowthPlan& plan, int row, const Offer& offer, size_t rank) {
  const std::vector<double>& values = offer.values;
  if (plan.draw == Draw::kPoint) return {std::nanf(""), values[rank]};
  const size_t rival = rank > 0 ? 0 : 1;
  const float margin = rival < values.size() ? static_cast<float>(values[rank] - values[rival])
                                             : std::numeric_limits<float>::infinity();
  return {margin, acceptance(plan, row, static_cast<int>(rank), margin)};
}

double acceptance(const GrowthPlan& plan, int row, int rank, double margin) {
  const double bin = std::floor((margin - plan.least_margin) / plan.margin_step);
  const int last = plan.num_margins - 1;
  const int at = bin >= last ? last : bin > 0 ? static_cast<int>(bin) : 0;
  const int of = std::min(rank, plan.num_ranks - 1);
  const float value = plan.acceptance[(row * plan.num_ranks + of) * plan.num_margins + at];
  return std::clamp(static_cast<double>(value), 0.0, 1.0);
}

Grower::Grower(Reader& reader, const GrowthPlan& plan, std::vector<Root> roots)
    : reader_(reader), plan_(plan), roots_(std::move(roots)) {
  places_.resize(plan.parents.size() + 1);
  for (size_t n = 0; n < plan.parents.size(); ++n)
    places_[static_cast<size_t>(plan.parents[n])].push_back(static_cast<int>(n) + 1);
  for (size_t t = 0; t < roots_.size(); ++t) {
    trees_.push_back({{roots_[t].token, -1, -1, 0, 0, std::nanf(""), 1.0}});
    leaves_.push_back({t, 0});
  }
  results_.resize(trees_.size());
}

int Grower::num_levels(const GrowthPlan& plan) {
  return std::min(kDeepest, *std::max_element(plan.depths, plan.depths + plan.num_rows));
}

int Grower::most_read(const GrowthPlan& plan) {
  if (plan.is_given()) return static_cast<int>(plan.parents.size());
  return std::max(0, num_levels(plan)) * plan.frontier;
}

bool Grower::choose_roots() {
  leaves_.clear();
  for (size_t t = 0; t < trees_.size(); ++t)
    if (num_children({t, 0}) > 0) leaves_.push_back({t, 0});
  return !leaves_.empty();
}

void Grower::offer() {
  std::vector<Offer> offers(leaves_.size());
  each_row(
      reader_.lane(), static_cast<int64_t>(leaves_.size()), [&](int64_t r, SelectScratch& scratch) {
        const Leaf& leaf = leaves_[static_cast<size_t>(r)];
        const int count = num_children(leaf);
        if (count > 0)
          offers[static_cast<size_t>(r)] = offered(static_cast<size_t>(r), leaf, count, scratch);
      });
  ++num_offers_;
  for (size_t i = 0; i < leaves_.size(); ++i) take(leaves_[i], offers[i]);
}

size_t Grower::budget_of(size_t tree) const {
  return static_cast<size_t>(std::max(0, plan_.budgets[row_of(tree)]));
}

int Grower::num_children(const Leaf& leaf) const {
  const Candidate& node = at(leaf);
  const int row = row_of(leaf.tree);
  if (node.depth >= std::min(plan_.depths[row], kDeepest)) return 0;
  if (!plan_.is_given()) return plan_.budgets[row] > 0 ? plan_.width : 0;
  const std::vector<int>& places = places_[static_cast<size_t>(node.place)];
  return static_cast<int>(std::count_if(places.begin(), places.end(),
                                        [&](int place) { return place <= plan_.budgets[row]; }));
}

std::vector<int32_t> Grower::path_of(const Leaf& leaf) const {
  std::vector<int32_t> path;
  for (Leaf on = leaf; on.candidate > 0; on.candidate = at(on).parent) path.push_back(at(on).token);
  const std::vector<int32_t>& above = roots_[leaf.tree].above;
  path.insert(path.end(), above.rbegin(), above.rend());
  std::reverse(path.begin(), path.end());
  return path;
}

Offer Grower::offered(size_t r, const Leaf& leaf, int count, SelectScratch& scratch) const {
  const std::vector<int32_t> path = path_of(leaf);
  const int row = row_of(leaf.tree);
  // Draws count by the tokens known as their round begins: those above a root are known by then.
  const int num_above = static_cast<int>(roots_[leaf.tree].above.size());
  const Asked asked{reader_.lane().kernels(),
                    reader_.logits(r),
                    reader_.vocab(),
                    *plan_.samplers[row],
                    path,
                    plan_.known(row) + (plan_.is_sampled() ? num_above : 0),
                    leaf.candidate,
                    count};
  if (plan_.draw == Draw::kCoupled) {
    Offer offer = coupled(asked, scratch);
    if (plan_.is_told) offer.chances = probabilities(asked, offer.tokens, scratch);
    return offer;
  }
  if (plan_.draw == Draw::kPoint) return likeliest(asked, scratch);
  return drawn(asked, plan_.draw, plan_.least, plan_.damped, scratch);
}

void Grower::take(const Leaf& leaf, const Offer& offer) {
  Tree& nodes = trees_[leaf.tree];
  at(leaf).expanded = true;
  const Candidate parent = at(leaf);
  for (size_t i = 0; i < offer.tokens.size(); ++i) {
    Candidate child{offer.tokens[i], leaf.candidate, static_cast<int>(i), parent.depth + 1, 0,
                    std::nanf(""),   parent.score};
    if (plan_.is_given()) child.place = places_[static_cast<size_t>(parent.place)][i];
    if (!plan_.is_sampled()) {
      const Weight weight = weigh(plan_, row_of(leaf.tree), offer, i);
      child.margin = weight.margin;
      child.score *= weight.chance;
    }
    if (!offer.chances.empty()) child.chance = offer.chances[i];
    child.born = num_offers_;
    nodes.push_back(child);
  }
  if (offer.law.empty()) return;
  GrownRow& result = results_[leaf.tree];
  result.expanded.push_back(leaf.candidate);
  result.laws.insert(result.laws.end(), offer.law.begin(), offer.law.end());
  result.draws.insert(result.draws.end(), offer.draws.begin(), offer.draws.end());
  result.draws.resize(result.expanded.size() * static_cast<size_t>(plan_.width), kNoToken);
  result.damped.insert(result.damped.end(), offer.damped.begin(), offer.damped.end());
  result.damped.resize(result.expanded.size() * static_cast<size_t>(plan_.damped.count), kNoToken);
}

bool Grower::choose() {
  leaves_.clear();
  for (size_t t = 0; t < trees_.size(); ++t) {
    if (num_offers_ >= plan_.depths[row_of(t)]) continue;
    if (!plan_.is_given()) {
      choose_best(t);
      continue;
    }
    for (int c = 1; c < static_cast<int>(trees_[t].size()); ++c)
      if (!at({t, c}).expanded && num_children({t, c}) > 0) leaves_.push_back({t, c});
  }
  if (plan_.is_given()) return !leaves_.empty();
  double hope = 0.0;
  for (const Leaf& leaf : leaves_) hope += at(leaf).score;
  return !leaves_.empty() && hope >= plan_.pass_price;
}

// What the n-th best node of a tree must score, from 0.
double Grower::price(size_t n) const {
  const double own = plan_.prices[std::min(n, plan_.prices.size() - 1)];
  return std::max(plan_.least, own);
}

// How many of a tree's nodes, best first, pay for themselves; `scores`: all of them, best first.
size_t Grower::num_paid(size_t tree, std::vector<double>& scores) const {
  for (size_t c = 1; c < trees_[tree].size(); ++c) scores.push_back(trees_[tree][c].score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const size_t most = std::min(budget_of(tree), scores.size());
  size_t count = 0;
  while (count < most && scores[count] >= price(count)) ++count;
  return count;
}

// The best nodes that are not expanded yet and whose children could still be kept: a child is no
// better than its parent.
void Grower::choose_best(size_t tree) {
  const Tree& nodes = trees_[tree];
  std::vector<double> scores;
  const size_t paid = num_paid(tree, scores);
  const bool has_room = paid < budget_of(tree);
  const auto could = [&](double score) {
    return (paid > 0 && score > scores[paid - 1]) || (has_room && score >= price(paid));
  };
  std::vector<int> open;
  for (size_t c = 1; c < nodes.size(); ++c)
    if (!nodes[c].expanded && could(nodes[c].score) &&
        num_children({tree, static_cast<int>(c)}) > 0)
      open.push_back(static_cast<int>(c));
  std::stable_sort(open.begin(), open.end(), [&](int a, int b) {
    return nodes[static_cast<size_t>(a)].score > nodes[static_cast<size_t>(b)].score;
  });
  if (open.size() > static_cast<size_t>(plan_.frontier))
    open.resize(static_cast<size_t>(plan_.frontier));
  std::sort(open.begin(), open.end());
  for (const int c : open) leaves_.push_back({tree, c});
}

// Logits below the chosen nodes.
void Grower::read() {
  std::vector<Wanted> wanted;
  for (const Leaf& leaf : leaves_) {
    const Candidate& node = at(leaf);
    const Root& root = roots_[leaf.tree];
    const int parent_kv = leaf.candidate == 0 ? root.parent_kv : at({leaf.tree, node.parent}).kv;
    const int depth = static_cast<int>(root.above.size()) + node.depth;
    wanted.push_back({root.row, node.token, depth, parent_kv});
  }
  reader_.read(plan_, wanted);
  for (size_t i = 0; i < wanted.size(); ++i) at(leaves_[i]).kv = wanted[i].kv;
}

// The best of the budget, in order of age: a parent is older than its child and no worse.
GrownRow Grower::finished(size_t tree) const {
  const Tree& nodes = trees_[tree];
  std::vector<int> kept(nodes.size() - 1);
  std::iota(kept.begin(), kept.end(), 1);
  if (!plan_.is_given()) {
    std::vector<double> scores;
    const size_t paid = num_paid(tree, scores);
    std::stable_sort(kept.begin(), kept.end(), [&](int a, int b) {
      return nodes[static_cast<size_t>(a)].score > nodes[static_cast<size_t>(b)].score;
    });
    kept.resize(paid);
    std::sort(kept.begin(), kept.end());
  }
  kept.insert(kept.begin(), 0);
  std::vector<int> places(nodes.size(), -1);
  GrownRow result = results_[tree];
  for (const int c : kept) {
    const Candidate& node = nodes[static_cast<size_t>(c)];
    places[static_cast<size_t>(c)] = static_cast<int>(result.tokens.size());
    result.tokens.push_back(node.token);
    result.parents.push_back(c == 0 ? -1 : places[static_cast<size_t>(node.parent)]);
    result.ranks.push_back(node.rank);
    result.margins.push_back(node.margin);
    result.scores.push_back(static_cast<float>(node.score));
    if (plan_.is_told) result.chances.push_back(node.chance);
    result.kv.push_back(node.kv);
    result.born.push_back(node.born);
    if (!plan_.is_sampled() && node.expanded)
      result.expanded.push_back(places[static_cast<size_t>(c)]);
  }
  return result;
}

}  // namespace forerun
