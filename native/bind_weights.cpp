// How Python hands over tensors, and what it gets for them: weights that never change again.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include "bind.h"

namespace forerun {
namespace {

SourceType source_type(const std::string& name) {
  if (name == "BF16") return SourceType::kBf16;
  if (name == "F16") return SourceType::kF16;
  require(name == "F32", [&] { return "tensor type " + name + " is not one of BF16, F16, F32"; });
  return SourceType::kF32;
}

Packing::Role role_of(const std::string& name) {
  if (name == "qkv") return Packing::Role::kQkv;
  if (name == "output") return Packing::Role::kOutput;
  if (name == "gate_up") return Packing::Role::kGateUp;
  if (name == "down") return Packing::Role::kDown;
  if (name == "fusion") return Packing::Role::kFusion;
  if (name == "markov_in") return Packing::Role::kMarkovIn;
  if (name == "markov") return Packing::Role::kMarkov;
  if (name == "mix") return Packing::Role::kMix;
  if (name == "head") return Packing::Role::kHead;
  require(name == "embedding", [&] { return "no matrix is called " + name; });
  return Packing::Role::kEmbedding;
}

Packing::Vector vector_of(const std::string& name) {
  if (name == "attention_norm") return Packing::Vector::kAttentionNorm;
  if (name == "feature_norm") return Packing::Vector::kFeatureNorm;
  if (name == "ffn_norm") return Packing::Vector::kFfnNorm;
  if (name == "qkv_bias") return Packing::Vector::kQkvBias;
  if (name == "query_norm") return Packing::Vector::kQueryNorm;
  if (name == "key_norm") return Packing::Vector::kKeyNorm;
  if (name == "mix_bias") return Packing::Vector::kMixBias;
  require(name == "final_norm", [&] { return "no vector is called " + name; });
  return Packing::Vector::kFinalNorm;
}

Reads reads_of(const std::string& name) {
  if (name == "tokens") return Reads::kTokens;
  if (name == "context") return Reads::kContext;
  require(name == "both", [&] { return "no model reads " + name; });
  return Reads::kBoth;
}

using Raw = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void pack(Packing& packing, const std::string& role, int layer, const std::vector<Raw>& arrays,
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
  const InUse use(packing);
  packing.pack(role_of(role), layer, sources);
}

Markov markov_of(const std::string& name) {
  if (name == "gated") return Markov::kGated;
  if (name == "rnn") return Markov::kRecurrent;
  require(name == "vanilla", [&] { return "no Markov head is called " + name; });
  return Markov::kVanilla;
}

void bind_packing(nb::module_& m) {
  nb::class_<Packing>(m, "Packing")
      .def(
          "__init__",
          [](Packing* self, std::shared_ptr<Lane> lane, int hidden, int num_layers, int num_heads,
             int num_kv_heads, int head_dim, int ffn, int vocab, float norm_eps, bool tied,
             bool qkv_bias, bool qk_norm, std::vector<double> inverse_frequencies,
             const std::string& reads, int feature_width, int head_rows, int markov_rank, int mask,
             int block_len, bool is_shifted, bool norms_residual, const std::string& markov,
             std::shared_ptr<const Weights> lender) {
            require(num_heads % num_kv_heads == 0 && num_heads / num_kv_heads <= kMaxRows,
                    "query heads per K/V head must be whole and at most 32");
            require(static_cast<int>(inverse_frequencies.size()) * 2 == head_dim,
                    "one frequency per two dimensions");
            require(mask >= 0 && mask < vocab && markov_rank >= 0 && feature_width >= 0,
                    "sizes of what reads features");
            new (self) Packing({hidden,          num_layers,     num_heads,
                                num_kv_heads,    head_dim,       ffn,
                                vocab,           norm_eps,       tied,
                                qkv_bias,        qk_norm,        std::move(inverse_frequencies),
                                reads_of(reads), feature_width,  head_rows < 0 ? vocab : head_rows,
                                markov_rank,     mask,           block_len,
                                is_shifted,      norms_residual, markov_of(markov)},
                               std::move(lane), std::move(lender));
          },
          "lane"_a, "hidden"_a, "num_layers"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
          "ffn"_a, "vocab"_a, "norm_eps"_a, "tied"_a, "qkv_bias"_a, "qk_norm"_a,
          "inverse_frequencies"_a, "reads"_a = "tokens", "feature_width"_a = 0, "head_rows"_a = -1,
          "markov_rank"_a = 0, "mask"_a = 0, "block_len"_a = 0, "is_shifted"_a = false,
          "norms_residual"_a = false, "markov"_a = "vanilla", "lender"_a = nb::none())
      .def("pack", &pack)
      .def("set_vector",
           [](Packing& packing, const std::string& role, int layer, const Array<float>& values) {
             const InUse use(packing);
             packing.set_vector(vector_of(role), layer, copy(values));
           })
      .def("set_sight",
           [](Packing& packing, int layer, bool sees_ahead, int window) {
             const InUse use(packing);
             packing.set_sight(layer, sees_ahead, window);
           })
      .def("set_token_map",
           [](Packing& packing, std::vector<int32_t> tokens) {
             const InUse use(packing);
             packing.set_token_map(std::move(tokens));
           })
      .def("finish", [](Packing& packing) {
        const InUse use(packing);
        return packing.finish();
      });
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<Weights>(m, "Weights", nb::is_weak_referenceable())
      .def_prop_ro("num_bytes", &Weights::num_bytes);
  bind_packing(m);
}

}  // namespace forerun
