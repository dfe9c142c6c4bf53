// Whole proposals as Python sees them: a chain, a tree, a tree grown further, and keeping
// what was grown.
#include <nanobind/stl/optional.h>

#include <memory>

#include "bind.h"
#include "foresee.h"
#include "grow.h"
#include "propose.h"

namespace forerun {
namespace {

// The rows of a proposal as chains of their unread tokens and `depths[b]` levels more, the last of
// which is never read: checks tokens, blocks and positions.
void check_room(const Model& model, const Array<int32_t>& catch_up, const Array<int32_t>& starts,
                const Array<int32_t>& committed, const Table& block_table,
                const std::vector<int>& depths) {
  const size_t num_rows = committed.size();
  require(num_rows > 0 && depths.size() == num_rows && block_table.shape(0) == num_rows,
          "array sizes of a proposal do not fit together");
  require_spans(starts, num_rows, catch_up.size(), "starts");
  std::vector<int32_t> tokens, parents, row_starts{0};
  for (size_t b = 0; b < num_rows; ++b) {
    require(starts(b) < starts(b + 1), "a row without tokens");
    for (int i = starts(b); i < starts(b + 1) + std::max(0, depths[b] - 1); ++i) {
      parents.push_back(i - starts(b) - 1);
      tokens.push_back(i < starts(b + 1) ? catch_up(static_cast<size_t>(i)) : 0);
    }
    row_starts.push_back(static_cast<int32_t>(tokens.size()));
  }
  check_rows(model, {static_cast<int>(num_rows), static_cast<int>(tokens.size()),
                     static_cast<int>(block_table.shape(1)), 0, 0, tokens.data(), parents.data(),
                     row_starts.data(), committed.data(), block_table.data(), nullptr, nullptr});
}

auto propose_chains(Model& model, const Array<int32_t>& catch_up, const Array<int32_t>& starts,
                    const Array<int32_t>& committed, const Table& block_table,
                    const std::vector<Sampler*>& samplers, int num_steps) {
  const size_t num_rows = committed.size();
  require(num_steps > 0 && samplers.size() == num_rows,
          "array sizes of a proposal do not fit together");
  check_room(model, catch_up, starts, committed, block_table,
             std::vector<int>(num_rows, num_steps));
  require_tokens(samplers, model.shape().vocab);
  const std::vector<const Sampler*> who(samplers.begin(), samplers.end());
  int32_t* out = new int32_t[num_rows * static_cast<size_t>(num_steps)];
  auto result = owned(out, num_rows, num_steps);
  const nb::gil_scoped_release release;
  const InUse use(model);
  propose(model,
          {static_cast<int>(num_rows), num_steps, static_cast<int>(block_table.shape(1)),
           catch_up.data(), starts.data(), committed.data(), block_table.data(), who.data()},
          out);
  return result;
}

Draw draw_of(const std::string& name) {
  if (name == "coupled") return Draw::kCoupled;
  if (name == "point") return Draw::kPoint;
  if (name == "sampled") return Draw::kSampled;
  if (name == "without replacement") return Draw::kWithoutReplacement;
  require(name == "top and one", [&] { return "no way of drawing is called " + name; });
  return Draw::kTopAndOne;
}

nb::tuple as_tuple(const GrownRow& row) {
  const size_t drawn = row.laws.empty() ? 0 : row.expanded.size();
  return nb::make_tuple(array_of(row.tokens), array_of(row.parents), array_of(row.ranks),
                        array_of(row.margins), array_of(row.scores), array_of(row.kv),
                        array_of(row.expanded), table_of(row.laws, drawn),
                        table_of(row.draws, drawn), row.num_passes, table_of(row.damped, drawn),
                        array_of(row.chances));
}

using Acceptance = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Features = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// One row of features for every token but the pending ones; EAGLE-3 cannot begin without any.
void check_features(const Model& model, const Array<int32_t>& starts, const Features& features) {
  const Shape& shape = model.shape();
  require(shape.reads != Reads::kTokens, "this model reads no features");
  const size_t num_rows = starts.size() - 1;
  require(features.shape(0) + num_rows == static_cast<size_t>(starts(num_rows)) &&
              features.shape(1) == static_cast<size_t>(shape.feature_width),
          "features of every token but the pending ones");
}

std::unique_ptr<Reader> reader_for(Model& model, const Array<int32_t>& starts,
                                   const std::optional<Features>& features) {
  if (!features) {
    require(model.shape().reads == Reads::kTokens, "this model reads features");
    return std::make_unique<TextReader>(model);
  }
  check_features(model, starts, *features);
  if (model.shape().reads == Reads::kContext)
    return std::make_unique<BlockReader>(model, features->data());
  for (size_t b = 0; b + 1 < starts.size(); ++b)
    require(starts(b) + 1 < starts(b + 1), "a feature in every row");
  return std::make_unique<EagleReader>(model, features->data());
}

// A plan with the arrays and samplers that it points into.
class HeldPlan {
 public:
  HeldPlan(Array<int32_t> catch_up, Array<int32_t> starts, Array<int32_t> committed,
           Table block_table, nb::list samplers, Array<int32_t> budgets, Array<int32_t> depths,
           const std::string& draw, std::vector<int32_t> parents, int width, int frontier,
           double least, std::vector<float> prices, double pass_price, Acceptance acceptance,
           double least_margin, double margin_step);
  HeldPlan(const HeldPlan&) = delete;
  HeldPlan& operator=(const HeldPlan&) = delete;

  // Refuses rows that do not fit this model when they grow so many levels.
  void check(const Model& model, const std::vector<int>& levels) const {
    check_room(model, catch_up_, starts_, committed_, block_table_, levels);
    require_tokens(whose_, model.shape().vocab);
  }
  void damp(int count, float factor) {
    require(count > 0 && factor > 0.0f && factor <= 1.0f, "a factor above 0 and up to 1");
    plan_.damped = {count, factor};
  }
  void tell() { plan_.is_told = true; }
  const Array<int32_t>& starts() const { return starts_; }
  const GrowthPlan& plan() const { return plan_; }
  std::vector<int> depths() const { return {plan_.depths, plan_.depths + plan_.num_rows}; }

 private:
  Array<int32_t> catch_up_, starts_, committed_;
  Table block_table_;
  nb::list samplers_;
  Array<int32_t> budgets_, depths_;
  Acceptance acceptance_;
  std::vector<Sampler*> whose_;
  GrowthPlan plan_{};
};

HeldPlan::HeldPlan(Array<int32_t> catch_up, Array<int32_t> starts, Array<int32_t> committed,
                   Table block_table, nb::list samplers, Array<int32_t> budgets,
                   Array<int32_t> depths, const std::string& draw, std::vector<int32_t> parents,
                   int width, int frontier, double least, std::vector<float> prices,
                   double pass_price, Acceptance acceptance, double least_margin,
                   double margin_step)
    : catch_up_(std::move(catch_up)),
      starts_(std::move(starts)),
      committed_(std::move(committed)),
      block_table_(std::move(block_table)),
      samplers_(std::move(samplers)),
      budgets_(std::move(budgets)),
      depths_(std::move(depths)),
      acceptance_(std::move(acceptance)) {
  for (const nb::handle one : samplers_) whose_.push_back(nb::cast<Sampler*>(one));
  const size_t num_rows = committed_.size();
  require(whose_.size() == num_rows && budgets_.size() == num_rows && depths_.size() == num_rows &&
              starts_.size() == num_rows + 1 && acceptance_.shape(0) == num_rows &&
              acceptance_.size() > 0 && !prices.empty() && width > 0 && frontier > 0,
          "array sizes of a proposal do not fit together");
  std::vector<int> children(parents.size() + 1, 0);
  for (size_t n = 0; n < parents.size(); ++n) {
    require(parents[n] >= 0 && parents[n] <= static_cast<int>(n), "a parent must come first");
    width = std::max(width, ++children[static_cast<size_t>(parents[n])]);
  }
  plan_ = {static_cast<int>(num_rows),
           static_cast<int>(block_table_.shape(1)),
           catch_up_.data(),
           starts_.data(),
           committed_.data(),
           block_table_.data(),
           budgets_.data(),
           depths_.data(),
           whose_.data(),
           draw_of(draw),
           std::move(parents),
           width,
           frontier,
           least,
           std::move(prices),
           pass_price,
           acceptance_.data(),
           static_cast<int>(acceptance_.shape(1)),
           static_cast<int>(acceptance_.shape(2)),
           margin_step,
           least_margin,
           0};
  require(plan_.is_given() || !plan_.is_sampled(), "what is drawn may not decide what is grown");
}

nb::list as_list(const std::vector<GrownRow>& rows) {
  nb::list result;
  for (const GrownRow& row : rows) result.append(as_tuple(row));
  return result;
}

nb::list grow_trees(Model& model, const HeldPlan& held, int num_layers,
                    const std::optional<Features>& features) {
  require(num_layers >= 0 && num_layers <= model.shape().num_layers, "a number of layers");
  held.check(model, held.depths());
  if (model.shape().reads == Reads::kContext)
    for (const int depth : held.depths())
      require(depth <= model.shape().max_drafted(), "no deeper than a block");
  GrowthPlan plan = held.plan();
  plan.num_layers = num_layers;
  const std::unique_ptr<Reader> reader = reader_for(model, held.starts(), features);
  std::vector<GrownRow> rows;
  {
    const nb::gil_scoped_release release;
    const InUse use(model);
    rows = grow(*reader, plan);
  }
  return as_list(rows);
}

// Drafts are trees of known tokens, exits are nodes of theirs. Returns the levels that each row may
// have below its pending token when it grows `depths` below a guess.
std::vector<int> check_drafts(const Model& model, const ForecastPlan& plan) {
  std::vector<int> levels, positions(static_cast<size_t>(plan.num_nodes()));
  for (int b = 0; b < plan.below.num_rows; ++b) {
    const int first = plan.starts[b];
    require(plan.num_nodes(b) > 0 && plan.parents[first] == -1 && plan.num_branches[b] >= 0,
            "a draft without a pending token");
    int deepest = 0;
    for (int n = first; n < plan.starts[b + 1]; ++n) {
      require(plan.tokens[n] >= 0 && plan.tokens[n] < model.shape().vocab, [&] {
        return "drafted token " + text(plan.tokens[n]) + " is outside the vocabulary of " +
               text(model.shape().vocab);
      });
      if (n == first) continue;
      require(plan.parents[n] >= 0 && plan.parents[n] < n - first, "a parent must come first");
      int& depth = positions[static_cast<size_t>(n)];
      depth = positions[static_cast<size_t>(first + plan.parents[n])] + 1;
      deepest = std::max(deepest, depth);
    }
    for (int i = plan.exit_starts[b]; i < plan.exit_starts[b + 1]; ++i)
      require(plan.exits[i] >= 0 && plan.exits[i] < plan.num_nodes(b), "exits are drafted nodes");
    levels.push_back(deepest + 1 + std::clamp(plan.below.depths[b], 0, kDeepest));
    // The deepest level of a block is a slot as well.
    if (model.shape().reads == Reads::kContext)
      levels.back() = std::min(levels.back(), model.shape().max_drafted()) + 1;
  }
  return levels;
}

// Of each row what an earlier forecast read, or None.
std::vector<const HeldNodes*> held_rows(const nb::list& held, size_t num_rows) {
  require(held.size() == num_rows, "what is held of each row");
  std::vector<const HeldNodes*> rows;
  for (const nb::handle one : held)
    rows.push_back(one.is_none() ? nullptr : nb::cast<const HeldNodes*>(one));
  return rows;
}

// A carried node is held, below a carried one, in a row with only its pending token unread.
void check_carried(const Model& model, const ForecastPlan& plan) {
  for (int b = 0; b < plan.below.num_rows; ++b) {
    const HeldNodes* held = plan.held[b];
    const int first = plan.starts[b];
    const int num_held = held ? held->num_nodes : 0;
    require(!held || (static_cast<int64_t>(held->kv.size()) == num_held * model.bytes_per_node() &&
                      static_cast<int64_t>(held->logits.size()) ==
                          static_cast<int64_t>(num_held) * model.shape().vocab),
            "states of a model like this one");
    const bool is_read = plan.below.known(b) == plan.below.committed[b] + 1;
    for (int n = first; n < plan.starts[b + 1]; ++n) {
      if (!plan.is_carried(n)) continue;
      require(plan.carried[n] < num_held && is_read, "a held node");
      require(n == first || plan.is_carried(first + plan.parents[n]), "a carried parent");
    }
  }
}

void check_given(const Model& model, const Array<int32_t>& exits, const Array<int32_t>& tokens,
                 size_t num_nodes) {
  require(exits.size() == tokens.size(), "an exit and a token of every outcome");
  for (size_t i = 0; i < exits.size(); ++i)
    require(exits(i) >= 0 && static_cast<size_t>(exits(i)) < num_nodes && tokens(i) >= 0 &&
                tokens(i) < model.shape().vocab,
            "an outcome below a drafted node");
}

nb::tuple foresee_trees(Model& model, const HeldPlan& held, const Array<int32_t>& tokens,
                        const Array<int32_t>& parents, const Array<int32_t>& starts,
                        const Array<int32_t>& exits, const Array<int32_t>& exit_starts,
                        const Array<int32_t>& num_branches, int per_exit, int num_offers,
                        const Array<int32_t>& deepest, const nb::list& held_nodes,
                        const Array<int32_t>& carried, const Array<int32_t>& given_exits,
                        const Array<int32_t>& given_tokens,
                        const std::optional<Features>& features) {
  const size_t num_rows = static_cast<size_t>(held.plan().num_rows);
  require(num_branches.size() == num_rows && parents.size() == tokens.size() && num_offers > 0 &&
              per_exit >= 0 && deepest.size() == 1 && carried.size() == tokens.size(),
          "array sizes of a forecast do not fit together");
  require(!held.plan().is_sampled() || given_exits.size() > 0, "outcomes of draws are given");
  check_given(model, given_exits, given_tokens, tokens.size());
  require_spans(starts, num_rows, tokens.size(), "draft starts");
  require_spans(exit_starts, num_rows, exits.size(), "exit starts");
  const std::vector<const HeldNodes*> known = held_rows(held_nodes, num_rows);
  ForecastPlan plan{held.plan(),         tokens.data(),
                    parents.data(),      starts.data(),
                    exits.data(),        exit_starts.data(),
                    num_branches.data(), num_offers,
                    deepest.data(),      known.data(),
                    carried.data(),      given_exits.data(),
                    given_tokens.data(), static_cast<int>(given_exits.size())};
  plan.per_exit = per_exit;
  held.check(model, check_drafts(model, plan));
  check_carried(model, plan);
  const std::unique_ptr<Reader> reader = reader_for(model, held.starts(), features);
  Forecast forecast;
  {
    const nb::gil_scoped_release release;
    const InUse use(model);
    forecast = foresee(*reader, plan);
  }
  const nb::list rows = as_list(forecast.rows);
  return nb::make_tuple(rows, std::move(forecast.read));
}

// What was read of grown nodes of the last forecast, of the first so many that have logits.
HeldNodes take_nodes(Model& model, const ReadLogits& read, const Array<int32_t>& grown) {
  const int64_t width = model.shape().vocab;
  HeldNodes held;
  std::vector<int32_t> nodes;
  for (const int32_t n : copy(grown)) {
    require(n >= 0 && n < model.num_grown(), "a grown node");
    if (!read.has(n)) break;
    const float* own = &read.values[static_cast<size_t>((n - read.first) * width)];
    held.logits.insert(held.logits.end(), own, own + width);
    nodes.push_back(n);
  }
  held.num_nodes = static_cast<int>(nodes.size());
  const nb::gil_scoped_release release;
  const InUse use(model);
  held.kv = model.grown_kv(nodes);
  return held;
}

void absorb_features(Model& model, const Array<int32_t>& catch_up, const Array<int32_t>& starts,
                     const Array<int32_t>& committed, const Table& block_table,
                     const Features& features) {
  check_room(model, catch_up, starts, committed, block_table,
             std::vector<int>(committed.size(), 0));
  check_features(model, starts, features);
  GrowthPlan plan{};
  plan.num_rows = static_cast<int>(committed.size());
  plan.table_width = static_cast<int>(block_table.shape(1));
  plan.catch_up = catch_up.data();
  plan.catch_up_starts = starts.data();
  plan.committed = committed.data();
  plan.block_table = block_table.data();
  const nb::gil_scoped_release release;
  const InUse use(model);
  absorb(model, plan, features.data());
}

void keep(Model& model, const Array<int32_t>& table, int position, const Array<int32_t>& grown) {
  require(position >= 0, "a position");
  for (size_t i = 0; i < grown.size(); ++i) {
    require(grown(i) >= 0 && grown(i) < model.num_grown(), "a grown node");
    const size_t block = (static_cast<size_t>(position) + i) / kBlock;
    require(block < table.size() && table(block) >= 0 && table(block) < model.num_blocks(),
            "a block for every kept node");
  }
  const nb::gil_scoped_release release;
  const InUse use(model);
  model.keep_grown(table.data(), position, copy(grown));
}

}  // namespace

void bind_proposals(nb::module_& module, nb::class_<Model>& model) {
  nb::class_<HeldPlan>(module, "GrowthPlan")
      .def(nb::init<Array<int32_t>, Array<int32_t>, Array<int32_t>, Table, nb::list, Array<int32_t>,
                    Array<int32_t>, const std::string&, std::vector<int32_t>, int, int, double,
                    std::vector<float>, double, Acceptance, double, double>())
      .def("damp", &HeldPlan::damp, "count"_a, "factor"_a)
      .def("tell", &HeldPlan::tell);
  nb::class_<ReadLogits>(module, "ReadLogits");
  nb::class_<HeldNodes>(module, "HeldNodes").def_ro("num_nodes", &HeldNodes::num_nodes);
  model.def("propose", &propose_chains)
      .def("grow", &grow_trees, "plan"_a, "num_layers"_a, "features"_a.none())
      .def("foresee", &foresee_trees, "plan"_a, "tokens"_a, "parents"_a, "starts"_a, "exits"_a,
           "exit_starts"_a, "num_branches"_a, "per_exit"_a, "num_offers"_a, "deepest"_a, "held"_a,
           "carried"_a, "given_exits"_a, "given_tokens"_a, "features"_a.none())
      .def("take", &take_nodes)
      .def("absorb", &absorb_features)
      .def("keep", &keep);
}

}  // namespace forerun
