// Where the logits below the nodes of growing trees come from: one class a kind of drafter.
#pragma once

#include <vector>

#include "growth_plan.h"
#include "model.h"

namespace forerun {

// A drafted node whose children are asked for. `parent_kv`, `kv`: numbers among the nodes whose
// K/V is held until the trees are done; -1 is none.
struct Wanted {
  int row;
  int32_t token;
  int depth, parent_kv;
  int kv = -1;
};

// Logits below grown nodes, by the number of their K/V, from `first` on.
struct ReadLogits {
  int first = 0, num_nodes = 0;
  std::vector<float> values;

  bool has(int kv) const { return kv >= first && kv < first + num_nodes; }
};

class Reader {
 public:
  virtual ~Reader() = default;
  // Reads what rows have not read; then logits(b) are those below the pending token of row b.
  // No more than `capacity` nodes will be wanted.
  virtual void read_text(const GrowthPlan& plan, int capacity) = 0;
  // Then logits(i) are those below wanted[i]; rows ascend. Sets where each one's K/V stands.
  virtual void read(const GrowthPlan& plan, std::vector<Wanted>& wanted) = 0;
  // In place of read_text and some read: what rows have not read and what is not carried of their
  // drafts, in one pass. Then logits(i) are those below node read[i] of all drafts; the K/V of node
  // n is number kv[n]. False where a node cannot be read before the one above it is.
  virtual bool read_drafts(const ForecastPlan&, int /*capacity*/, std::vector<int>& /*kv*/,
                           std::vector<int>& /*read*/) {
    return false;
  }
  // Of the nodes read behind drafts that were read in one pass, as far as there is room for them.
  virtual ReadLogits all_read() { return {}; }
  virtual const float* logits(size_t i) const = 0;
  virtual int64_t vocab() const = 0;
  virtual Lane& lane() = 0;
  virtual int num_passes() const = 0;
};

// The arrays of one pass over rows of nodes that are put together node by node.
struct PassRows {
  explicit PassRows(const GrowthPlan& whole) : plan(whole) {}
  void begin_row(int row, int committed);
  void add(int32_t token, int parent) {
    tokens.push_back(token);
    parents.push_back(parent);
  }
  int num_nodes() const { return static_cast<int>(tokens.size()); }
  Batch batch();

  const GrowthPlan& plan;
  std::vector<int32_t> tokens, parents, starts, committed, tables, logit_nodes;
};

// A language model: every node is read, and sees the text and its own ancestors.
class TextReader : public Reader {
 public:
  explicit TextReader(Model& model) : model_(model) {}
  void read_text(const GrowthPlan& plan, int capacity) override;
  void read(const GrowthPlan& plan, std::vector<Wanted>& wanted) override;
  bool read_drafts(const ForecastPlan& plan, int capacity, std::vector<int>& kv,
                   std::vector<int>& read) override;
  ReadLogits all_read() override { return std::move(all_read_); }
  const float* logits(size_t i) const override {
    return model_.logits()->data() + static_cast<int64_t>(i) * model_.logits_stride();
  }
  int64_t vocab() const override { return model_.shape().vocab; }
  Lane& lane() override { return model_.lane(); }
  int num_passes() const override { return num_passes_; }

 private:
  void adopt(const ForecastPlan& plan, int row, std::vector<int>& kv);
  void add_text(const ForecastPlan& plan, int row, PassRows& pass, std::vector<int>& kv,
                std::vector<int>& read);
  void add_draft(const ForecastPlan& plan, int row, PassRows& pass, std::vector<int>& kv,
                 std::vector<int>& read);

  void note(size_t num_rows);

  Model& model_;
  int num_passes_ = 0;
  bool notes_ = false;
  ReadLogits all_read_;
};

// A block drafter: one pass says all levels; what a node adds are the tokens before, as far as its
// head hears them. Below the deepest level nothing is said: logits that are no numbers. A node's
// number is the place of what it has heard.
class BlockReader : public Reader {
 public:
  BlockReader(Model& model, const float* features) : model_(model), features_(features) {}
  void read_text(const GrowthPlan& plan, int capacity) override;
  void read(const GrowthPlan& plan, std::vector<Wanted>& wanted) override;
  const float* logits(size_t i) const override { return rows_[i]; }
  int64_t vocab() const override { return model_.shape().vocab; }
  Lane& lane() override { return model_.lane(); }
  int num_passes() const override { return 1; }

 private:
  bool is_silent(int row, int level) const { return level >= num_levels_[at(row)]; }
  void say(const std::vector<Wanted>& nodes);
  void spread();
  float* heard(int place) { return &heard_[at(place) * at(model_.shape().markov_rank)]; }
  static size_t at(int i) { return static_cast<size_t>(i); }

  Model& model_;
  const float* features_;
  std::vector<int> first_slots_, num_levels_;   // of every row, among the logits of the pass
  std::vector<int32_t> slot_nodes_;             // of the pass, of each of its logits
  std::vector<const float*> rows_;              // of the last answer
  std::vector<float> sums_, silence_, spread_;  // the last by target token
  std::vector<float> heard_;  // by each row's pending token, by each node wanted, by none
  int num_rows_ = 0, num_wanted_ = 0, none_ = 0;
};

// EAGLE-3: a node is read with the layer's own output above it.
class EagleReader : public Reader {
 public:
  EagleReader(Model& model, const float* features) : model_(model), features_(features) {}
  void read_text(const GrowthPlan& plan, int capacity) override;
  void read(const GrowthPlan& plan, std::vector<Wanted>& wanted) override;
  const float* logits(size_t i) const override;
  int64_t vocab() const override { return model_.shape().vocab; }
  Lane& lane() override { return model_.lane(); }
  int num_passes() const override { return num_passes_; }

 private:
  void spread(size_t num_rows);

  Model& model_;
  const float* features_;
  std::vector<float> roots_, outputs_, spread_;  // behind the text; of grown nodes; by target token
  int num_passes_ = 0;
};

// Only the K/V of every row's features; nothing is grown.
void absorb(Model& model, const GrowthPlan& plan, const float* features);

}  // namespace forerun
