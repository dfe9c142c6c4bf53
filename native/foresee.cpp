#include "foresee.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace forerun {
namespace {

// A bonus that a verdict may end with: child `rank` of an exit, which the draft does not have.
struct Guess {
  int row, exit;
  int32_t token;
  int rank;
  float margin;
  double score;
};

class Foreseer {
 public:
  Foreseer(Reader& reader, const ForecastPlan& plan);
  void read_drafts();
  void weigh_drafts();
  void guess();
  void take_given();
  void grow();
  std::vector<GrownRow> finished() const;

 private:
  struct Node {
    int row, parent, depth;  // the parent among all nodes
    int rank = -1;
    float margin = std::nanf("");
    double score = 1.0;
    double unlisted = 0.0;  // its probability where its parent does not offer it
    int kv = -1;
  };
  Node& node(int n) { return nodes_[static_cast<size_t>(n)]; }
  const Node& node(int n) const { return nodes_[static_cast<size_t>(n)]; }
  const Offer& offer_of(int n) const { return offers_[static_cast<size_t>(n)]; }
  int capacity() const;
  void take_carried();
  void offer(const std::vector<int>& read);
  void offer_below(int n, const float* logits, SelectScratch& scratch);
  std::vector<int32_t> path_of(int n) const;
  bool has_child(int n, int32_t token) const;
  std::vector<Guess> outcomes(int row) const;
  void keep_some(int row, const std::vector<Guess>& all, std::vector<size_t>& best) const;
  bool is_cut(int num_levels) const;
  void add_laws(const GrownRow& branch, size_t at, GrownRow& whole) const;
  void add_branches(int row, GrownRow& whole) const;

  Reader& reader_;
  const ForecastPlan& plan_;
  std::vector<int32_t> depths_, budgets_;  // of whole trees, for who must know how far they reach
  GrowthPlan reading_, growing_;
  std::vector<Node> nodes_;
  std::vector<Offer> offers_;
  std::vector<Guess> guesses_;
  std::vector<GrownRow> branches_;
};

Foreseer::Foreseer(Reader& reader, const ForecastPlan& plan)
    : reader_(reader), plan_(plan), reading_(plan.below), growing_(plan.below) {
  growing_.prices = {0.0f};
  growing_.pass_price = 0.0;
  for (int b = 0; b < plan.below.num_rows; ++b) {
    int deepest = 0;
    for (int n = plan.starts[b]; n < plan.starts[b + 1]; ++n) {
      const int parent = plan.parents[n] < 0 ? -1 : plan.starts[b] + plan.parents[n];
      nodes_.push_back({b, parent, parent < 0 ? 0 : node(parent).depth + 1});
      deepest = std::max(deepest, nodes_.back().depth);
    }
    depths_.push_back(deepest + 1 + std::clamp(plan.below.depths[b], 0, kDeepest));
    budgets_.push_back(1);
  }
  offers_.resize(nodes_.size());
  reading_.depths = depths_.data();
  reading_.budgets = budgets_.data();
}

int Foreseer::capacity() const {
  int num_guesses = 0;
  for (int b = 0; b < plan_.below.num_rows; ++b) {
    const int num_exits = plan_.exit_starts[b + 1] - plan_.exit_starts[b];
    num_guesses += std::min(plan_.num_branches[b], num_exits * plan_.num_offers);
  }
  num_guesses += plan_.num_given;
  return plan_.num_nodes() + num_guesses * Grower::most_read(plan_.below);
}

// Children of nodes that an earlier forecast read.
void Foreseer::take_carried() {
  std::vector<int> carried;
  for (int n = 0; n < plan_.num_nodes(); ++n)
    if (plan_.is_carried(n)) carried.push_back(n);
  if (carried.empty()) return;
  each_row(reader_.lane(), static_cast<int64_t>(carried.size()),
           [&](int64_t r, SelectScratch& scratch) {
             const int n = carried[static_cast<size_t>(r)];
             const HeldNodes& held = *plan_.held[node(n).row];
             offer_below(n, &held.logits[static_cast<size_t>(plan_.carried[n] * reader_.vocab())],
                         scratch);
           });
}

// All nodes at once, or from level to level.
void Foreseer::read_drafts() {
  std::vector<int> kv, read, all(nodes_.size());
  for (size_t n = 0; n < all.size(); ++n) all[n] = static_cast<int>(n);
  if (reader_.read_drafts(plan_, capacity(), kv, read)) {
    for (size_t n = 0; n < all.size(); ++n) nodes_[n].kv = kv[n];
    take_carried();
    if (!read.empty()) offer(read);
    return;
  }
  reader_.read_text(reading_, capacity());
  const int deepest = *std::max_element(depths_.begin(), depths_.end());
  for (int depth = 0; depth < deepest; ++depth) {
    std::vector<int> level;
    for (const int n : all)
      if (node(n).depth == depth) level.push_back(n);
    if (level.empty()) break;
    std::vector<Wanted> wanted;
    for (const int n : level)
      if (depth > 0)
        wanted.push_back({node(n).row, plan_.tokens[n], depth, node(node(n).parent).kv});
    if (depth > 0) reader_.read(reading_, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) node(level[i]).kv = wanted[i].kv;
    offer(level);
  }
}

// Children of nodes whose logits the reader holds; of no use where outcomes are given.
void Foreseer::offer(const std::vector<int>& read) {
  if (plan_.is_given()) return;
  each_row(
      reader_.lane(), static_cast<int64_t>(read.size()), [&](int64_t r, SelectScratch& scratch) {
        offer_below(read[static_cast<size_t>(r)], reader_.logits(static_cast<size_t>(r)), scratch);
      });
}

void Foreseer::offer_below(int n, const float* logits, SelectScratch& scratch) {
  const GrowthPlan& below = plan_.below;
  const std::vector<int32_t> path = path_of(n);
  const Asked asked{
      reader_.lane().kernels(), logits, reader_.vocab(), *below.samplers[node(n).row], path,
      below.known(node(n).row), 0,      plan_.num_offers};
  Offer& own = offers_[static_cast<size_t>(n)];
  own = below.draw == Draw::kPoint ? likeliest(asked, scratch) : coupled(asked, scratch);
  if (below.draw != Draw::kPoint) return;
  for (int c = n + 1; c < plan_.starts[node(n).row + 1]; ++c)
    if (node(c).parent == n) node(c).unlisted = probability(asked, plan_.tokens[c], scratch);
}

// Drafted tokens from a child of the pending one down to a node.
std::vector<int32_t> Foreseer::path_of(int n) const {
  std::vector<int32_t> path;
  for (int at = n; node(at).parent >= 0; at = node(at).parent) path.push_back(plan_.tokens[at]);
  std::reverse(path.begin(), path.end());
  return path;
}

bool Foreseer::has_child(int n, int32_t token) const {
  for (int c = n + 1; c < plan_.starts[node(n).row + 1]; ++c)
    if (node(c).parent == n && plan_.tokens[c] == token) return true;
  return false;
}

// Rank, margin and score of every drafted node, as this model sees it.
void Foreseer::weigh_drafts() {
  const GrowthPlan& below = plan_.below;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& self = nodes_[n];
    if (self.parent < 0) continue;
    const Offer& offer = offer_of(self.parent);
    const auto found = std::find(offer.tokens.begin(), offer.tokens.end(), plan_.tokens[n]);
    double chance;
    if (found != offer.tokens.end()) {
      self.rank = static_cast<int>(found - offer.tokens.begin());
      const Weight weight = weigh(below, self.row, offer, static_cast<size_t>(self.rank));
      self.margin = weight.margin;
      chance = weight.chance;
    } else {
      self.rank = plan_.num_offers;
      self.margin = -std::numeric_limits<float>::infinity();
      chance = below.draw == Draw::kPoint ? self.unlisted
                                          : acceptance(below, self.row, self.rank, self.margin);
    }
    self.score = node(self.parent).score * chance;
  }
}

// What a row's exits offer and its draft lacks, in order of age.
std::vector<Guess> Foreseer::outcomes(int row) const {
  const int32_t *first = plan_.exits + plan_.exit_starts[row],
                *last = plan_.exits + plan_.exit_starts[row + 1];
  std::vector<Guess> found;
  for (int n = plan_.starts[row]; n < plan_.starts[row + 1]; ++n) {
    if (std::find(first, last, n - plan_.starts[row]) == last) continue;
    const Offer& offer = offer_of(n);
    for (size_t i = 0; i < offer.tokens.size(); ++i) {
      if (has_child(n, offer.tokens[i])) continue;
      const Weight weight = weigh(plan_.below, row, offer, i);
      found.push_back({row, n, offer.tokens[i], static_cast<int>(i), weight.margin,
                       node(n).score * weight.chance});
    }
  }
  return found;
}

// Outcomes that somebody else has chosen.
void Foreseer::take_given() {
  for (int i = 0; i < plan_.num_given; ++i) {
    const int exit = plan_.given_exits[i];
    guesses_.push_back({node(exit).row, exit, plan_.given_tokens[i], -1, std::nanf(""), 1.0});
  }
}

// The likeliest outcomes of every row, the older first where they are equal, in order of age.
void Foreseer::guess() {
  for (int b = 0; b < plan_.below.num_rows; ++b) {
    const std::vector<Guess> all = outcomes(b);
    std::vector<size_t> best(all.size());
    for (size_t i = 0; i < best.size(); ++i) best[i] = i;
    std::stable_sort(best.begin(), best.end(),
                     [&](size_t i, size_t j) { return all[i].score > all[j].score; });
    keep_some(b, all, best);
    std::sort(best.begin(), best.end());
    for (const size_t i : best) guesses_.push_back(all[i]);
  }
}

// The first of these places in `all`, so many of the row and so many of each exit.
void Foreseer::keep_some(int row, const std::vector<Guess>& all, std::vector<size_t>& best) const {
  std::vector<int> num_taken(nodes_.size(), 0);
  std::vector<size_t> kept;
  for (const size_t i : best) {
    if (kept.size() == static_cast<size_t>(plan_.num_branches[row])) break;
    int& num_here = num_taken[static_cast<size_t>(all[i].exit)];
    if (plan_.per_exit > 0 && num_here == plan_.per_exit) continue;
    ++num_here;
    kept.push_back(i);
  }
  best = kept;
}

bool Foreseer::is_cut(int num_levels) const {
  const int deepest = *plan_.deepest;
  return deepest > 0 && num_levels >= deepest;
}

// Below all guesses at once, level by level.
void Foreseer::grow() {
  std::vector<Root> roots;
  for (const Guess& guess : guesses_) {
    roots.push_back({guess.row, guess.token, path_of(guess.exit), -1});
    roots.back().above.push_back(guess.token);
    if (node(guess.exit).depth > 0) roots.back().parent_kv = node(guess.exit).kv;
  }
  Grower grower(reader_, growing_, std::move(roots));
  bool any = grower.choose_roots();
  for (int level = 0; any && level < Grower::num_levels(growing_) && !is_cut(level); ++level) {
    grower.read();
    grower.offer();
    any = grower.choose();
  }
  for (size_t t = 0; t < guesses_.size(); ++t) branches_.push_back(grower.finished(t));
}

// What was drawn at a place among the read nodes of a branch, and from what.
void Foreseer::add_laws(const GrownRow& branch, size_t at, GrownRow& whole) const {
  const auto add = [&](const auto& from, auto& to) {
    const int64_t width = static_cast<int64_t>(from.size() / branch.expanded.size());
    const auto begin = from.begin() + static_cast<int64_t>(at) * width;
    to.insert(to.end(), begin, begin + width);
  };
  add(branch.laws, whole.laws);
  add(branch.draws, whole.draws);
  add(branch.damped, whole.damped);
}

// A row's guesses and all below them, in order of age.
void Foreseer::add_branches(int row, GrownRow& whole) const {
  std::vector<std::vector<int32_t>> places(guesses_.size());  // of each branch's nodes in `whole`
  bool any = true;
  for (int age = 0; any; ++age) {
    any = false;
    for (size_t t = 0; t < guesses_.size(); ++t) {
      const Guess& guess = guesses_[t];
      const GrownRow& branch = branches_[t];
      if (guess.row != row) continue;
      any = any || age <= branch.born.back();
      for (size_t n = 0; n < branch.tokens.size(); ++n) {
        if (branch.born[n] != age) continue;
        const bool is_root = n == 0;
        const size_t above = static_cast<size_t>(branch.parents[n]);
        places[t].push_back(static_cast<int32_t>(whole.tokens.size()));
        whole.tokens.push_back(branch.tokens[n]);
        whole.parents.push_back(is_root ? guess.exit - plan_.starts[row] : places[t][above]);
        whole.ranks.push_back(is_root ? guess.rank : branch.ranks[n]);
        whole.margins.push_back(is_root ? guess.margin : branch.margins[n]);
        whole.scores.push_back(static_cast<float>(guess.score * branch.scores[n]));
        if (growing_.is_told) whole.chances.push_back(branch.chances[n]);
        whole.kv.push_back(branch.kv[n]);
        const auto& read = branch.expanded;
        const auto found = std::find(read.begin(), read.end(), static_cast<int32_t>(n));
        if (found == read.end()) continue;
        whole.expanded.push_back(places[t].back());
        add_laws(branch, static_cast<size_t>(found - read.begin()), whole);
      }
    }
  }
}

std::vector<GrownRow> Foreseer::finished() const {
  std::vector<GrownRow> rows;
  for (int b = 0; b < plan_.below.num_rows; ++b) {
    GrownRow row;
    for (int n = plan_.starts[b]; n < plan_.starts[b + 1]; ++n) {
      if (!plan_.is_given()) row.expanded.push_back(n - plan_.starts[b]);
      row.tokens.push_back(plan_.tokens[n]);
      row.parents.push_back(plan_.parents[n]);
      row.ranks.push_back(node(n).rank);
      row.margins.push_back(node(n).margin);
      row.scores.push_back(static_cast<float>(node(n).score));
      if (growing_.is_told) row.chances.push_back(std::nanf(""));
      row.kv.push_back(node(n).kv);
    }
    add_branches(b, row);
    row.num_passes = reader_.num_passes();
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

Forecast foresee(Reader& reader, const ForecastPlan& plan) {
  Foreseer foreseer(reader, plan);
  foreseer.read_drafts();
  if (plan.is_given()) {
    foreseer.take_given();
  } else {
    foreseer.weigh_drafts();
    foreseer.guess();
  }
  foreseer.grow();
  return {foreseer.finished(), reader.all_read()};
}

}  // namespace forerun
