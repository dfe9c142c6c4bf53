#include "grow.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "offer.h"
#include "propose.h"

namespace forerun {
namespace {

constexpr int kDeepest = 256;  // composition.py, LONGEST

// A token that was offered for the tree. In a given tree `place` is its node there.
struct Candidate {
  int32_t token;
  int parent, rank, depth, place;
  float margin;
  double score;
  int kv = -1;
  bool expanded = false;
};

struct Leaf {
  int row, candidate;
};

class Grower {
 public:
  Grower(Reader& reader, const GrowthPlan& plan);
  int num_levels() const;
  void read_text();
  void offer();
  bool choose();
  void read();
  std::vector<GrownRow> finished() const;

 private:
  using Tree = std::vector<Candidate>;
  Tree& tree(int row) { return trees_[static_cast<size_t>(row)]; }
  const Tree& tree(int row) const { return trees_[static_cast<size_t>(row)]; }
  int num_children(const Leaf& leaf) const;
  std::vector<int32_t> path_of(const Leaf& leaf) const;
  Offer offered(int64_t r, const Leaf& leaf, int count, SelectScratch& scratch) const;
  void take(const Leaf& leaf, const Offer& offer);
  double acceptance(int row, int rank, double margin) const;
  double price(size_t n) const;
  size_t num_paid(int row, std::vector<double>& scores) const;
  void choose_best(int row);
  GrownRow finished_row(int row) const;

  Reader& reader_;
  const GrowthPlan& plan_;
  std::vector<std::vector<int>> places_;  // children of every node of a given tree
  std::vector<Tree> trees_;
  std::vector<Leaf> leaves_;  // whose logits the reader holds, or is about to read; rows ascending
  std::vector<GrownRow> results_;
};

Grower::Grower(Reader& reader, const GrowthPlan& plan) : reader_(reader), plan_(plan) {
  places_.resize(plan.parents.size() + 1);
  for (size_t n = 0; n < plan.parents.size(); ++n)
    places_[static_cast<size_t>(plan.parents[n])].push_back(static_cast<int>(n) + 1);
  for (int b = 0; b < plan.num_rows; ++b) {
    const int32_t pending = plan.catch_up[plan.catch_up_starts[b + 1] - 1];
    trees_.push_back({{pending, -1, -1, 0, 0, std::nanf(""), 1.0}});
    leaves_.push_back({b, 0});
  }
  results_.resize(trees_.size());
}

void Grower::read_text() {
  const int inner =
      plan_.is_given() ? static_cast<int>(plan_.parents.size()) : num_levels() * plan_.frontier;
  reader_.read_text(plan_, plan_.num_rows * inner);
}

int Grower::num_levels() const {
  return std::min(kDeepest, *std::max_element(plan_.depths, plan_.depths + plan_.num_rows));
}

// Children of every leaf, from the logits just computed.
void Grower::offer() {
  std::vector<Offer> offers(leaves_.size());
  each_row(reader_.lane(), static_cast<int64_t>(leaves_.size()),
           [&](int64_t r, SelectScratch& scratch) {
             const Leaf& leaf = leaves_[static_cast<size_t>(r)];
             const int count = num_children(leaf);
             if (count > 0) offers[static_cast<size_t>(r)] = offered(r, leaf, count, scratch);
           });
  for (size_t i = 0; i < leaves_.size(); ++i) take(leaves_[i], offers[i]);
}

int Grower::num_children(const Leaf& leaf) const {
  const Candidate& node = tree(leaf.row)[static_cast<size_t>(leaf.candidate)];
  if (node.depth >= std::min(plan_.depths[leaf.row], kDeepest)) return 0;
  if (!plan_.is_given()) return plan_.budgets[leaf.row] > 0 ? plan_.width : 0;
  const std::vector<int>& places = places_[static_cast<size_t>(node.place)];
  return static_cast<int>(std::count_if(
      places.begin(), places.end(), [&](int place) { return place <= plan_.budgets[leaf.row]; }));
}

std::vector<int32_t> Grower::path_of(const Leaf& leaf) const {
  std::vector<int32_t> path;
  for (int at = leaf.candidate; at > 0; at = tree(leaf.row)[static_cast<size_t>(at)].parent)
    path.push_back(tree(leaf.row)[static_cast<size_t>(at)].token);
  std::reverse(path.begin(), path.end());
  return path;
}

Offer Grower::offered(int64_t r, const Leaf& leaf, int count, SelectScratch& scratch) const {
  const std::vector<int32_t> path = path_of(leaf);
  const Asked asked{reader_.lane().kernels(),
                    reader_.logits(static_cast<size_t>(r)),
                    reader_.vocab(),
                    *plan_.samplers[leaf.row],
                    path,
                    plan_.known(leaf.row),
                    leaf.candidate,
                    count};
  if (plan_.draw == Draw::kCoupled) return coupled(asked, scratch);
  if (plan_.draw == Draw::kPoint) return likeliest(asked, scratch);
  return drawn(asked, plan_.draw, plan_.least, scratch);
}

double Grower::acceptance(int row, int rank, double margin) const {
  const double bin = std::floor((margin - plan_.least_margin) / plan_.margin_step);
  const int last = plan_.num_margins - 1;
  const int at = bin >= last ? last : bin > 0 ? static_cast<int>(bin) : 0;
  const int of = std::min(rank, plan_.num_ranks - 1);
  const float value = plan_.acceptance[(row * plan_.num_ranks + of) * plan_.num_margins + at];
  return std::clamp(static_cast<double>(value), 0.0, 1.0);
}

void Grower::take(const Leaf& leaf, const Offer& offer) {
  Tree& nodes = tree(leaf.row);
  const size_t parent = static_cast<size_t>(leaf.candidate);
  nodes[parent].expanded = true;
  const std::vector<double>& values = offer.values;
  for (size_t i = 0; i < offer.tokens.size(); ++i) {
    Candidate child{
        offer.tokens[i], leaf.candidate,     static_cast<int>(i), nodes[parent].depth + 1, 0,
        std::nanf(""),   nodes[parent].score};
    if (plan_.is_given()) child.place = places_[static_cast<size_t>(nodes[parent].place)][i];
    if (plan_.draw == Draw::kPoint) child.score *= values[i];
    if (plan_.draw == Draw::kCoupled) {
      const size_t rival = i > 0 ? 0 : 1;
      const double margin = rival < values.size() ? values[i] - values[rival]
                                                  : std::numeric_limits<double>::infinity();
      child.margin = static_cast<float>(margin);
      child.score *= acceptance(leaf.row, child.rank, child.margin);
    }
    nodes.push_back(child);
  }
  if (offer.law.empty()) return;
  GrownRow& result = results_[static_cast<size_t>(leaf.row)];
  result.expanded.push_back(leaf.candidate);
  result.laws.insert(result.laws.end(), offer.law.begin(), offer.law.end());
  result.draws.insert(result.draws.end(), offer.draws.begin(), offer.draws.end());
  result.draws.resize(result.expanded.size() * static_cast<size_t>(plan_.width), kNoToken);
}

// Which nodes to expand next; false when there are none.
bool Grower::choose() {
  leaves_.clear();
  for (int b = 0; b < plan_.num_rows; ++b) {
    if (!plan_.is_given()) {
      choose_best(b);
      continue;
    }
    for (size_t c = 1; c < tree(b).size(); ++c)
      if (!tree(b)[c].expanded && num_children({b, static_cast<int>(c)}) > 0)
        leaves_.push_back({b, static_cast<int>(c)});
  }
  if (plan_.is_given()) return !leaves_.empty();
  double hope = 0.0;
  for (const Leaf& leaf : leaves_)
    hope += tree(leaf.row)[static_cast<size_t>(leaf.candidate)].score;
  return !leaves_.empty() && hope >= plan_.pass_price;
}

// What the n-th best node of a row must score, from 0.
double Grower::price(size_t n) const {
  const double own = plan_.prices[std::min(n, plan_.prices.size() - 1)];
  return std::max(plan_.least, own);
}

// How many of a row's nodes, best first, pay for themselves; `scores`: all of them, best first.
size_t Grower::num_paid(int row, std::vector<double>& scores) const {
  for (size_t c = 1; c < tree(row).size(); ++c) scores.push_back(tree(row)[c].score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const size_t budget = static_cast<size_t>(std::max(0, plan_.budgets[row]));
  size_t count = 0;
  while (count < std::min(budget, scores.size()) && scores[count] >= price(count)) ++count;
  return count;
}

// The best nodes that are not expanded yet and whose children could still be kept: a child is no
// better than its parent.
void Grower::choose_best(int row) {
  const Tree& nodes = tree(row);
  std::vector<double> scores;
  const size_t paid = num_paid(row, scores);
  const bool has_room = paid < static_cast<size_t>(std::max(0, plan_.budgets[row]));
  const auto could = [&](double score) {
    return (paid > 0 && score > scores[paid - 1]) || (has_room && score >= price(paid));
  };
  std::vector<int> open;
  for (size_t c = 1; c < nodes.size(); ++c)
    if (!nodes[c].expanded && could(nodes[c].score) && num_children({row, static_cast<int>(c)}) > 0)
      open.push_back(static_cast<int>(c));
  std::stable_sort(open.begin(), open.end(), [&](int a, int b) {
    return nodes[static_cast<size_t>(a)].score > nodes[static_cast<size_t>(b)].score;
  });
  if (open.size() > static_cast<size_t>(plan_.frontier))
    open.resize(static_cast<size_t>(plan_.frontier));
  std::sort(open.begin(), open.end());
  for (const int c : open) leaves_.push_back({row, c});
}

// Logits below the chosen nodes.
void Grower::read() {
  std::vector<Wanted> wanted;
  for (const Leaf& leaf : leaves_) {
    const Candidate& node = tree(leaf.row)[static_cast<size_t>(leaf.candidate)];
    const int parent_kv = tree(leaf.row)[static_cast<size_t>(node.parent)].kv;
    wanted.push_back({leaf.row, node.token, node.depth, parent_kv});
  }
  reader_.read(plan_, wanted);
  for (size_t i = 0; i < wanted.size(); ++i)
    tree(leaves_[i].row)[static_cast<size_t>(leaves_[i].candidate)].kv = wanted[i].kv;
}

std::vector<GrownRow> Grower::finished() const {
  std::vector<GrownRow> rows;
  for (int b = 0; b < plan_.num_rows; ++b) rows.push_back(finished_row(b));
  return rows;
}

// The best of the budget, in order of age: a parent is older than its child and no worse.
GrownRow Grower::finished_row(int row) const {
  const Tree& nodes = tree(row);
  std::vector<int> kept(nodes.size() - 1);
  std::iota(kept.begin(), kept.end(), 1);
  if (!plan_.is_given()) {
    std::vector<double> scores;
    const size_t paid = num_paid(row, scores);
    std::stable_sort(kept.begin(), kept.end(), [&](int a, int b) {
      return nodes[static_cast<size_t>(a)].score > nodes[static_cast<size_t>(b)].score;
    });
    kept.resize(paid);
    std::sort(kept.begin(), kept.end());
  }
  kept.insert(kept.begin(), 0);
  std::vector<int> places(nodes.size(), -1);
  GrownRow result = results_[static_cast<size_t>(row)];
  for (const int c : kept) {
    const Candidate& node = nodes[static_cast<size_t>(c)];
    places[static_cast<size_t>(c)] = static_cast<int>(result.tokens.size());
    result.tokens.push_back(node.token);
    result.parents.push_back(c == 0 ? -1 : places[static_cast<size_t>(node.parent)]);
    result.ranks.push_back(node.rank);
    result.margins.push_back(node.margin);
    result.scores.push_back(static_cast<float>(node.score));
    result.kv.push_back(node.kv);
    if (!plan_.is_sampled() && node.expanded)
      result.expanded.push_back(places[static_cast<size_t>(c)]);
  }
  return result;
}

}  // namespace

std::vector<GrownRow> grow(Reader& reader, const GrowthPlan& plan) {
  Grower grower(reader, plan);
  grower.read_text();
  grower.offer();
  for (int level = 1; level < grower.num_levels() && grower.choose(); ++level) {
    grower.read();
    grower.offer();
  }
  std::vector<GrownRow> rows = grower.finished();
  for (GrownRow& row : rows) row.num_passes = reader.num_passes();
  return rows;
}

}  // namespace forerun
