// With bind_proposals.cpp the only file that knows Python: checks what it is given, takes pointers,
// releases the GIL.
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

SourceType source_type(const std::string& name) {
  if (name == "BF16") return SourceType::kBf16;
  if (name == "F16") return SourceType::kF16;
  require(name == "F32", [&] { return "tensor type " + name + " is not one of BF16, F16, F32"; });
  return SourceType::kF32;
}

Model::Role role_of(const std::string& name) {
  if (name == "qkv") return Model::Role::kQkv;
  if (name == "output") return Model::Role::kOutput;
  if (name == "gate_up") return Model::Role::kGateUp;
  if (name == "down") return Model::Role::kDown;
  if (name == "fusion") return Model::Role::kFusion;
  if (name == "markov_in") return Model::Role::kMarkovIn;
  if (name == "markov") return Model::Role::kMarkov;
  if (name == "mix") return Model::Role::kMix;
  if (name == "head") return Model::Role::kHead;
  require(name == "embedding", [&] { return "no matrix is called " + name; });
  return Model::Role::kEmbedding;
}

Model::Vector vector_of(const std::string& name) {
  if (name == "attention_norm") return Model::Vector::kAttentionNorm;
  if (name == "feature_norm") return Model::Vector::kFeatureNorm;
  if (name == "ffn_norm") return Model::Vector::kFfnNorm;
  if (name == "qkv_bias") return Model::Vector::kQkvBias;
  if (name == "query_norm") return Model::Vector::kQueryNorm;
  if (name == "key_norm") return Model::Vector::kKeyNorm;
  if (name == "mix_bias") return Model::Vector::kMixBias;
  require(name == "final_norm", [&] { return "no vector is called " + name; });
  return Model::Vector::kFinalNorm;
}

Reads reads_of(const std::string& name) {
  if (name == "tokens") return Reads::kTokens;
  if (name == "context") return Reads::kContext;
  require(name == "both", [&] { return "no model reads " + name; });
  return Reads::kBoth;
}

using Raw = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void pack(Model& model, const std::string& role, int layer, const std::vector<Raw>& arrays,
          const std::vector<std::string>& types) {
  require(arrays.size() == types.size() && !arrays.empty(), "one type per array");
  std::vector<Source> sources;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const SourceType type = source_type(types[i]);
    require(arrays[i].itemsize() == (type == SourceType::kF32 ? 4u : 2u),
            [&] { return "item size of " + types[i]; });
    require(arrays[i].shape(1) == arrays[0].shape(1), "equal inputs of fused tensors");
    sources.push_back({arrays[i].data(), type, static_cast<int64_t>(arrays[i].shape(0)),
                       static_cast<int64_t>(arrays[i].shape(1))});
  }
  const nb::gil_scoped_release release;
  const Model::InUse use(model);
  model.pack(role_of(role), layer, sources);
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
    const Model::InUse use(model);
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
  const Model::InUse use(model);
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
  const Model::InUse use(model);
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
    const Model::InUse use(model);
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

Markov markov_of(const std::string& name) {
  if (name == "gated") return Markov::kGated;
  if (name == "rnn") return Markov::kRecurrent;
  require(name == "vanilla", [&] { return "no Markov head is called " + name; });
  return Markov::kVanilla;
}

void bind_model(nb::module_& m) {
  nb::class_<Model> model(m, "Model");
  model
      .def(
          "__init__",
          [](Model* self, std::shared_ptr<Lane> lane, int hidden, int num_layers, int num_heads,
             int num_kv_heads, int head_dim, int ffn, int vocab, int max_context, float norm_eps,
             bool tied, bool qkv_bias, bool qk_norm, std::vector<double> inverse_frequencies,
             int num_blocks, const std::string& reads, int feature_width, int head_rows,
             int markov_rank, int mask, int block_len, bool is_shifted, bool norms_residual,
             const std::string& markov) {
            require(num_heads % num_kv_heads == 0 && num_heads / num_kv_heads <= kMaxRows,
                    "query heads per K/V head must be whole and at most 32");
            require(static_cast<int>(inverse_frequencies.size()) * 2 == head_dim,
                    "one frequency per two dimensions");
            require(mask >= 0 && mask < vocab && markov_rank >= 0 && feature_width >= 0,
                    "sizes of what reads features");
            new (self) Model({hidden,
                              num_layers,
                              num_heads,
                              num_kv_heads,
                              head_dim,
                              ffn,
                              vocab,
                              max_context,
                              norm_eps,
                              tied,
                              qkv_bias,
                              qk_norm,
                              std::move(inverse_frequencies),
                              reads_of(reads),
                              feature_width,
                              head_rows < 0 ? vocab : head_rows,
                              markov_rank,
                              mask,
                              block_len,
                              is_shifted,
                              norms_residual,
                              markov_of(markov)},
                             std::move(lane), num_blocks);
          },
          "lane"_a, "hidden"_a, "num_layers"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
          "ffn"_a, "vocab"_a, "max_context"_a, "norm_eps"_a, "tied"_a, "qkv_bias"_a, "qk_norm"_a,
          "inverse_frequencies"_a, "num_blocks"_a, "reads"_a = "tokens", "feature_width"_a = 0,
          "head_rows"_a = -1, "markov_rank"_a = 0, "mask"_a = 0, "block_len"_a = 0,
          "is_shifted"_a = false, "norms_residual"_a = false, "markov"_a = "vanilla")
      .def("pack", &pack)
      .def("set_vector",
           [](Model& model, const std::string& role, int layer, const Array<float>& values) {
             model.set_vector(vector_of(role), layer, copy(values));
           })
      .def("set_sight", &Model::set_sight)
      .def("set_token_map", &Model::set_token_map)
      .def("borrow", &Model::borrow)
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
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
  m.def("available_paths", &available_paths);
  m.def("affinity_cores", &affinity_cores);
  m.def("quota_cores", &quota_cores);
  m.def("amx_errno", [] { return cpu_features().amx_errno; });
  bind_lane(m);
  bind_sampler(m);
  bind_model(m);
}

}  // namespace forerun
