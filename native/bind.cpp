// With the other bind files the only one that knows Python: checks what it is given, takes
// pointers, releases the GIL.
#include "bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include "cpu.h"
#include "propose.h"

namespace forerun {
namespace {

using LogitRows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;

// What keeps a result of a forward pass alive while Python looks at it.
nb::capsule kept(const Model::Floats& values) {
  return nb::capsule(new Model::Floats(values),
                     [](void* p) noexcept { delete static_cast<Model::Floats*>(p); });
}

Batch make_batch(const Model& model, const Array<int32_t>& tokens, const Array<int32_t>& parents,
                 const Array<int32_t>& row_starts, const Array<int32_t>& committed,
                 const Table& block_table, const Array<int32_t>& logit_nodes,
                 const Array<int32_t>& taps) {
  require(row_starts.size() == committed.size() + 1 && parents.size() == tokens.size() &&
              block_table.shape(0) == committed.size(),
          "array sizes of a batch do not fit together");
  const Batch batch{static_cast<int>(committed.size()),
                    static_cast<int>(tokens.size()),
                    static_cast<int>(block_table.shape(1)),
                    static_cast<int>(logit_nodes.size()),
                    static_cast<int>(taps.size()),
                    tokens.data(),
                    parents.data(),
                    row_starts.data(),
                    committed.data(),
                    block_table.data(),
                    logit_nodes.data(),
                    taps.data()};
  check_rows(model, batch);
  return batch;
}

nb::object forward(Model& model, const Array<int32_t>& tokens, const Array<int32_t>& parents,
                   const Array<int32_t>& row_starts, const Array<int32_t>& committed,
                   const Table& block_table, const Array<int32_t>& logit_nodes,
                   const Array<int32_t>& taps) {
  const Batch batch =
      make_batch(model, tokens, parents, row_starts, committed, block_table, logit_nodes, taps);
  {
    const nb::gil_scoped_release release;
    const InUse use(model);
    model.forward(batch);
  }
  const size_t num_logits = static_cast<size_t>(batch.num_logits),
               vocab = static_cast<size_t>(model.shape().vocab);
  const int64_t strides[2] = {model.logits_stride(), 1};
  const size_t shape[2] = {num_logits, vocab};
  const Floats logits(model.logits()->data(), 2, shape, kept(model.logits()), strides);
  if (batch.num_taps == 0) return nb::make_tuple(logits, nb::none());
  const size_t width =
      static_cast<size_t>(batch.num_taps) * static_cast<size_t>(model.shape().hidden);
  const size_t taps_shape[2] = {static_cast<size_t>(batch.num_nodes), width};
  return nb::make_tuple(logits, Floats(model.taps()->data(), 2, taps_shape, kept(model.taps())));
}

void commit(Model& model, const Array<int32_t>& tokens, const Array<int32_t>& parents,
            const Array<int32_t>& row_starts, const Array<int32_t>& committed,
            const Table& block_table, const Array<int32_t>& paths, const Array<int32_t>& starts) {
  const Array<int32_t> none;
  const Batch batch =
      make_batch(model, tokens, parents, row_starts, committed, block_table, none, none);
  require_spans(starts, committed.size(), paths.size(), "path starts");
  require(model.computed(batch), "commit takes the batch of the last forward");
  for (int b = 0; b < batch.num_rows; ++b)
    for (int i = starts(b); i < starts(b + 1); ++i) {
      const int node = paths(i), before = i == starts(b) ? -1 : paths(i - 1);
      require(node >= 0 && node < batch.row_starts[b + 1] - batch.row_starts[b] &&
                  batch.parents[batch.row_starts[b] + node] == before,
              "a path must run from node 0 along parents");
    }
  const nb::gil_scoped_release release;
  const InUse use(model);
  model.commit(batch, paths.data(), starts.data());
}

struct RowArguments {
  std::vector<const Sampler*> samplers;
  Rows rows;
};

RowArguments row_arguments(const LogitRows& logits, const Array<int64_t>& positions,
                           const Array<int32_t>& sampler_of, const std::vector<Sampler*>& samplers,
                           const Array<int32_t>& path_starts, const Array<int32_t>& path_tokens) {
  const size_t count = logits.shape(0);
  const int64_t vocab = static_cast<int64_t>(logits.shape(1));
  require(logits.stride(1) == 1, "logits must be contiguous along the vocabulary");
  require(positions.size() == count && sampler_of.size() == count && vocab > 0,
          "one position and sampler per row of logits");
  require_spans(path_starts, count, path_tokens.size(), "path_starts");
  for (size_t r = 0; r < count; ++r)
    require(sampler_of(r) >= 0 && static_cast<size_t>(sampler_of(r)) < samplers.size(),
            "a sampler index");
  for (size_t i = 0; i < path_tokens.size(); ++i)
    require(path_tokens(i) >= 0 && path_tokens(i) < vocab, "a path token outside the vocabulary");
  require_tokens(samplers, vocab);
  RowArguments made{{samplers.begin(), samplers.end()}, {}};
  made.rows = {logits.data(),
               logits.stride(0),
               vocab,
               static_cast<int64_t>(count),
               positions.data(),
               sampler_of.data(),
               made.samplers.data(),
               path_starts.data(),
               path_tokens.data()};
  return made;
}

auto choose_tokens(Model& model, const LogitRows& logits, const Array<int64_t>& positions,
                   const Array<int32_t>& sampler_of, const std::vector<Sampler*>& samplers,
                   const Array<int32_t>& path_starts, const Array<int32_t>& path_tokens) {
  const RowArguments a =
      row_arguments(logits, positions, sampler_of, samplers, path_starts, path_tokens);
  int32_t* tokens = new int32_t[static_cast<size_t>(a.rows.count) + 1];
  auto result = owned(tokens, a.rows.count);
  const nb::gil_scoped_release release;
  const InUse use(model);
  select_rows(model.lane(), a.rows, tokens);
  return result;
}

auto laws(Model& model, const LogitRows& logits, const Array<int64_t>& positions,
          const Array<int32_t>& sampler_of, const std::vector<Sampler*>& samplers,
          const Array<int32_t>& path_starts, const Array<int32_t>& path_tokens) {
  const RowArguments a =
      row_arguments(logits, positions, sampler_of, samplers, path_starts, path_tokens);
  float* out = new float[static_cast<size_t>(a.rows.count * a.rows.vocab) + 1];
  auto result = owned(out, a.rows.count, a.rows.vocab);
  bool sound;
  {
    const nb::gil_scoped_release release;
    const InUse use(model);
    sound = law_rows(model.lane(), a.rows, out);
  }
  require(sound, "a logit is NaN, or no token is left to choose from");
  return result;
}

auto logprobs(Model&, const LogitRows& logits, const Array<int32_t>& rows) {
  const size_t vocab = logits.shape(1);
  require(logits.stride(1) == 1, "logits must be contiguous along the vocabulary");
  float* out = new float[rows.size() * vocab + 1];
  auto result = owned(out, rows.size(), vocab);
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows(i) >= 0 && static_cast<size_t>(rows(i)) < logits.shape(0), "a row of logits");
    log_softmax(logits.data() + rows(i) * logits.stride(0), static_cast<int64_t>(vocab),
                out + i * vocab);
  }
  return result;
}

void bind_lane(nb::module_& m) {
  nb::class_<Lane>(m, "Lane")
      .def("__init__",
           [](Lane* self, std::vector<int> cores, int num_threads, const std::string& path) {
             const std::vector<int> allowed = affinity_cores();
             for (const int core : cores)
               require(std::find(allowed.begin(), allowed.end(), core) != allowed.end(),
                       [&] { return "core " + text(core) + " is not available to this process"; });
             new (self) Lane(std::move(cores), num_threads, path);
           })
      .def_prop_ro("path", [](const Lane& lane) { return std::string(lane.kernels().name); })
      .def_prop_ro("num_threads", &Lane::num_threads)
      .def("read_bandwidth", &Lane::read_bandwidth, nb::call_guard<nb::gil_scoped_release>());
}

void bind_sampler(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def(
          "__init__",
          [](Sampler* self, double temperature, int64_t top_k, double top_p, double min_p,
             double repetition, double presence, double frequency, uint64_t seed, uint32_t choice,
             std::vector<int32_t> bias_ids, std::vector<double> bias,
             std::optional<std::vector<int32_t>> allowed, const Array<int32_t>& prompt_ids,
             const Array<int32_t>& output_ids, const Array<int32_t>& output_counts) {
            require(bias_ids.size() == bias.size() && output_ids.size() == output_counts.size(),
                    "ids and values of equal length");
            new (self) Sampler{temperature,
                               top_p,
                               min_p,
                               repetition,
                               presence,
                               frequency,
                               top_k,
                               seed,
                               choice,
                               allowed.has_value(),
                               std::move(bias_ids),
                               allowed ? *allowed : std::vector<int32_t>{},
                               copy(prompt_ids),
                               copy(output_ids),
                               copy(output_counts),
                               std::move(bias)};
          },
          "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition"_a, "presence"_a,
          "frequency"_a, "seed"_a, "choice"_a, "bias_ids"_a, "bias"_a, "allowed"_a.none(),
          "prompt_ids"_a, "output_ids"_a, "output_counts"_a);
}

void bind_model(nb::module_& m) {
  nb::class_<Model> model(m, "Model");
  model
      .def(
          "__init__",
          [](Model* self, std::shared_ptr<Lane> lane, std::shared_ptr<const Weights> weights,
             int max_context, int num_blocks) {
            new (self) Model(std::move(weights), std::move(lane), max_context, num_blocks);
          },
          "lane"_a, "weights"_a, "max_context"_a, "num_blocks"_a)
      .def_prop_ro("weight_bytes",
                   [](const Model& model) { return model.weights().streamed_bytes(); })
      .def_prop_ro("num_computed", &Model::num_computed)
      .def_prop_ro("block_bytes", &Model::block_bytes)
      .def("forward", &forward)
      .def("commit", &commit)
      .def("select", &choose_tokens)
      .def("law", &laws)
      .def("logprobs", &logprobs);
  bind_proposals(m, model);
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("available_paths", &available_paths, "value_bytes"_a = 2);
  m.def("value_bytes",
        [](const std::string& path) { return kernels_by_name(path).layout.value_bytes; });
  m.def("affinity_cores", &affinity_cores);
  m.def("quota_cores", &quota_cores);
  m.def("amx_errno", [] { return cpu_features().amx_errno; });
  bind_lane(m);
  bind_sampler(m);
  bind_weights(m);
  bind_model(m);
}

}  // namespace forerun
