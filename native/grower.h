// Trees that grow level by level out of one reader: offer children, choose which nodes to expand,
// read those. The readable reference is backends/growing.py.
#pragma once

#include <limits>
#include <vector>

#include "growth_plan.h"
#include "propose.h"
#include "reader.h"

namespace forerun {

// One tree as it grew; node 0 is its root. `kv[n]`: the number of its K/V among the grown nodes, or
// -1. `born[n]`: in which round of offers. `laws`: vocab values for each of `expanded`; `draws`:
// the same number of tokens for each, -1 behind; `damped`: likewise, what a law is damped at.
// `chances`: each node's below its parent, empty where nobody wants to be told.
struct GrownRow {
  std::vector<int32_t> tokens, parents, ranks, kv, expanded, draws, damped, born;
  std::vector<float> margins, scores, laws, chances;
  int num_passes = 0;  // of the whole proposal
};

// Where a tree begins: at a token of a row below drafted ones. `above` are those down to the root
// and with it; of a pending token, none.
struct Root {
  int row;
  int32_t token;
  std::vector<int32_t> above = {};
  int parent_kv = -1;
};

// How a child of an offer compares with its siblings, and how likely it is kept if its parent is.
struct Weight {
  float margin;
  double chance;
};
Weight weigh(const GrowthPlan& plan, int row, const Offer& offer, size_t rank);
double acceptance(const GrowthPlan& plan, int row, int rank, double margin);

// Grows a tree below each root; roots ascend by row.
class Grower {
 public:
  Grower(Reader& reader, const GrowthPlan& plan, std::vector<Root> roots);
  // Levels that the deepest tree may have.
  static int num_levels(const GrowthPlan& plan);
  // Nodes that are read of one tree at most, its root among them.
  static int most_read(const GrowthPlan& plan);
  // Takes the roots as the nodes that the reader is about to read; those without room are left out.
  bool choose_roots();
  // Children of every node the reader has just read.
  void offer();
  // Which nodes to expand next; false when there are none.
  bool choose();
  void read();
  GrownRow finished(size_t tree) const;

 private:
  // A token that was offered for a tree. In a given tree `place` is its node there.
  struct Candidate {
    int32_t token;
    int parent, rank, depth, place;
    float margin;
    double score;
    int kv = -1, born = 0;
    bool expanded = false;
    float chance = std::numeric_limits<float>::quiet_NaN();
  };
  using Tree = std::vector<Candidate>;
  struct Leaf {
    size_t tree;
    int candidate;
  };
  Candidate& at(const Leaf& leaf) { return trees_[leaf.tree][static_cast<size_t>(leaf.candidate)]; }
  const Candidate& at(const Leaf& leaf) const {
    return trees_[leaf.tree][static_cast<size_t>(leaf.candidate)];
  }
  int row_of(size_t tree) const { return roots_[tree].row; }
  size_t budget_of(size_t tree) const;
  int num_children(const Leaf& leaf) const;
  std::vector<int32_t> path_of(const Leaf& leaf) const;
  Offer offered(size_t r, const Leaf& leaf, int count, SelectScratch& scratch) const;
  void take(const Leaf& leaf, const Offer& offer);
  double price(size_t n) const;
  size_t num_paid(size_t tree, std::vector<double>& scores) const;
  void choose_best(size_t tree);

  Reader& reader_;
  const GrowthPlan& plan_;
  std::vector<Root> roots_;
  std::vector<std::vector<int>> places_;  // children of every node of a given tree
  std::vector<Tree> trees_;
  std::vector<Leaf> leaves_;  // whose logits the reader holds, or is about to read; trees ascending
  std::vector<GrownRow> results_;
  int num_offers_ = 0;  // rounds of them
};

}  // namespace forerun
