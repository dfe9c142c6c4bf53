// Whole proposals as Python sees them: a chain, a tree, and keeping what was grown.
#include <nanobind/stl/optional.h>

#include <memory>

#include "bind.h"
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
  const Model::InUse use(model);
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

template <typename T>
auto array_of(const std::vector<T>& values) {
  T* data = new T[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  return owned(data, values.size());
}

template <typename T>
auto table_of(const std::vector<T>& values, size_t rows) {
  T* data = new T[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  return owned(data, rows, rows == 0 ? 0 : values.size() / rows);
}

nb::tuple as_tuple(const GrownRow& row) {
  const size_t drawn = row.laws.empty() ? 0 : row.expanded.size();
  return nb::make_tuple(array_of(row.tokens), array_of(row.parents), array_of(row.ranks),
                        array_of(row.margins), array_of(row.scores), array_of(row.kv),
                        array_of(row.expanded), table_of(row.laws, drawn),
                        table_of(row.draws, drawn), row.num_passes);
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
                                   const Array<int32_t>& depths,
                                   const std::optional<Features>& features) {
  if (!features) {
    require(model.shape().reads == Reads::kTokens, "this model reads features");
    return std::make_unique<TextReader>(model);
  }
  check_features(model, starts, *features);
  if (model.shape().reads == Reads::kContext) {
    for (size_t b = 0; b < depths.size(); ++b)
      require(depths(b) <= model.shape().max_drafted(), "no deeper than a block");
    return std::make_unique<BlockReader>(model, features->data());
  }
  for (size_t b = 0; b + 1 < starts.size(); ++b)
    require(starts(b) + 1 < starts(b + 1), "a feature in every row");
  return std::make_unique<EagleReader>(model, features->data());
}

nb::list grow_trees(Model& model, const Array<int32_t>& catch_up, const Array<int32_t>& starts,
                    const Array<int32_t>& committed, const Table& block_table,
                    const std::vector<Sampler*>& samplers, const Array<int32_t>& budgets,
                    const Array<int32_t>& depths, const std::string& draw,
                    const std::vector<int32_t>& parents, int width, int frontier, double least,
                    std::vector<float> prices, double pass_price, const Acceptance& acceptance,
                    double least_margin, double margin_step, int num_layers,
                    const std::optional<Features>& features) {
  const size_t num_rows = committed.size();
  require(samplers.size() == num_rows && budgets.size() == num_rows && depths.size() == num_rows &&
              acceptance.shape(0) == num_rows && acceptance.size() > 0 && !prices.empty() &&
              width > 0 && frontier > 0,
          "array sizes of a proposal do not fit together");
  check_room(model, catch_up, starts, committed, block_table,
             std::vector<int>(depths.data(), depths.data() + num_rows));
  require_tokens(samplers, model.shape().vocab);
  std::vector<int> children(parents.size() + 1, 0);
  for (size_t n = 0; n < parents.size(); ++n) {
    require(parents[n] >= 0 && parents[n] <= static_cast<int>(n), "a parent must come first");
    width = std::max(width, ++children[static_cast<size_t>(parents[n])]);
  }
  const std::vector<const Sampler*> who(samplers.begin(), samplers.end());
  const GrowthPlan plan{static_cast<int>(num_rows),
                        static_cast<int>(block_table.shape(1)),
                        catch_up.data(),
                        starts.data(),
                        committed.data(),
                        block_table.data(),
                        budgets.data(),
                        depths.data(),
                        who.data(),
                        draw_of(draw),
                        parents,
                        width,
                        frontier,
                        least,
                        std::move(prices),
                        pass_price,
                        acceptance.data(),
                        static_cast<int>(acceptance.shape(1)),
                        static_cast<int>(acceptance.shape(2)),
                        margin_step,
                        least_margin,
                        num_layers};
  require(num_layers >= 0 && num_layers <= model.shape().num_layers, "a number of layers");
  require(plan.is_given() || !plan.is_sampled(), "what is drawn may not decide what is grown");
  const std::unique_ptr<Reader> reader = reader_for(model, starts, depths, features);
  std::vector<GrownRow> rows;
  {
    const nb::gil_scoped_release release;
    const Model::InUse use(model);
    rows = grow(*reader, plan);
  }
  nb::list result;
  for (const GrownRow& row : rows) result.append(as_tuple(row));
  return result;
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
  const Model::InUse use(model);
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
  const Model::InUse use(model);
  model.keep_grown(table.data(), position, copy(grown));
}

}  // namespace

void bind_proposals(nb::class_<Model>& model) {
  model.def("propose", &propose_chains)
      .def("grow", &grow_trees)
      .def("absorb", &absorb_features)
      .def("keep", &keep);
}

}  // namespace forerun
