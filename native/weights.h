// A model's weights as passes stream them: packed once, then never changed, read by any number of
// models.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "arith.h"
#include "lane.h"

namespace forerun {

// What the first layer of a model reads.
enum class Reads : uint8_t {
  kTokens,   // a language model
  kContext,  // a block drafter: features become keys and values of every layer, a block has tokens
  kBoth      // EAGLE-3: token and feature of a node side by side
};

// How the choices before a slot of a block reach its logits: the token before; the same, as far as
// the slot lets it; all of the draft before, through a state that goes along.
enum class Markov : uint8_t { kVanilla, kGated, kRecurrent };

struct Shape {
  int hidden, num_layers, num_heads, num_kv_heads, head_dim, ffn, vocab;
  float norm_eps;
  bool tied, qkv_bias, qk_norm;
  std::vector<double> inverse_frequencies;  // head_dim / 2
  Reads reads = Reads::kTokens;
  int feature_width = 0;  // of one token's features, before they are fused to `hidden`
  int head_rows = 0;      // of a head of its own: 0 is borrowed, as the table of tokens is
  int markov_rank = 0;    // of the tables that add the choice before to a logit; 0: there are none
  // Of kContext: a block is the pending token and masks; slot k says the token one further where
  // shifted, else the one at its own place, and slot 0 nothing.
  int mask = 0, block_len = 0;
  bool is_shifted = false;
  bool norms_residual = false;  // of kBoth: the residual stream begins with the normed feature
  Markov markov = Markov::kVanilla;
  int max_drafted() const { return is_shifted ? block_len : block_len - 1; }

  // What the kinds that mix multiply: the slot as the head reads it, the token's code, the state.
  int markov_inputs() const {
    if (markov_rank == 0 || markov == Markov::kVanilla) return 0;
    return hidden + markov_rank * (markov == Markov::kGated ? 1 : 2);
  }
  int markov_outputs() const {
    return markov_inputs() == 0 ? 0 : markov_rank * (markov == Markov::kGated ? 1 : 3);
  }
  int input_width() const { return reads == Reads::kBoth ? 2 * hidden : hidden; }
  int group() const { return num_heads / num_kv_heads; }
  int query_width() const { return num_heads * head_dim; }
  // Columns of one K/V head's queries, key and value, which stand together so that one worker can
  // take a head from projection to attention; padded to whole panels.
  int family_width() const {
    return static_cast<int>(ceil_div((group() + 2) * head_dim, kPanelColumns)) * kPanelColumns;
  }
  int qkv_width() const { return num_kv_heads * family_width(); }
  int head_blocks() const { return static_cast<int>(ceil_div(head_dim, kBlock)); }
};

enum class SourceType : uint8_t { kBf16, kF16, kF32 };

// A row-major [rows, columns] tensor of a checkpoint; only read.
struct Source {
  const void* data;
  SourceType type;
  int64_t rows, columns;
  float at(int64_t row, int64_t column) const;
};

// One row of a matrix to be packed; zero rows (padding) have no source.
struct Row {
  const Source* source = nullptr;
  int64_t index = 0;
};

// Outputs in panels of 32, each a contiguous stream of K blocks.
struct Matrix {
  uint8_t* data = nullptr;
  int64_t num_blocks = 0, num_panels = 0, block_bytes = 0;
  int64_t num_bytes() const { return num_blocks * num_panels * block_bytes; }
  const uint8_t* panel(int64_t p) const { return data + p * num_blocks * block_bytes; }
};

struct Layer {
  Matrix qkv, output, gate_up, down;
  std::vector<float> attention_norm, feature_norm, ffn_norm, qkv_bias, query_norm, key_norm;
  bool sees_ahead = false;  // every node of a row sees all of it, not just what is before
  int window = 0;           // positions back that a node sees, its own among them; 0: all
};

// One model's weights, whole. Whoever holds them may read them on any thread.
struct Weights {
  explicit Weights(Layout values) : layout(values) {}
  Shape shape;
  Layout layout;  // of panels and tables: lanes of other instruction paths may read them otherwise
  // Whose table of tokens is read, and whose head where there is none here.
  std::shared_ptr<const Weights> lender;
  Arena panels, embedding, markov_in;
  std::vector<Layer> layers;
  Matrix head, fusion, markov, mix;
  std::vector<float> final_norm, fused_norm, mix_bias;
  std::vector<int32_t> token_map;  // the target's token of each row of the head; none: the same

  const Weights& table_owner() const { return lender ? *lender : *this; }
  const Matrix& any_head() const { return head.data ? head : table_owner().head; }
  int64_t num_bytes() const;       // of memory for matrices and tables, without what is borrowed
  int64_t streamed_bytes() const;  // by one forward
};

// Weights in the making, by all workers of a lane.
class Packing {
 public:
  // Throws std::invalid_argument where `lender`, if there is one, has other widths or panels.
  Packing(Shape shape, std::shared_ptr<Lane> lane, std::shared_ptr<const Weights> lender);

  enum class Role {
    kQkv,
    kOutput,
    kGateUp,
    kDown,
    kHead,
    kEmbedding,
    kFusion,
    kMarkovIn,
    kMarkov,
    kMix
  };
  enum class Vector {
    kAttentionNorm,
    kFeatureNorm,  // of a layer of kBoth; of the fused features of kContext
    kFfnNorm,
    kQkvBias,
    kQueryNorm,
    kKeyNorm,
    kFinalNorm,
    kMixBias
  };
  void pack(Role role, int layer, const std::vector<Source>& sources);
  void set_vector(Vector role, int layer, std::vector<float> values);
  void set_sight(int layer, bool sees_ahead, int window);
  void set_token_map(std::vector<int32_t> tokens);
  // Hands them over, for good. Throws std::invalid_argument where a matrix is missing.
  std::shared_ptr<const Weights> finish();
  // Held during every call from outside: one at a time, whichever thread asks.
  std::atomic_flag& in_use() { return in_use_; }

 private:
  Weights& open();
  Arena table_of(const Source& source);
  Matrix pack_matrix(std::vector<Row> rows, int64_t inputs);

  std::atomic_flag in_use_;
  std::shared_ptr<Lane> lane_;
  std::shared_ptr<Weights> weights_;
  int64_t num_used_ = 0;  // bytes of the panels
};

}  // namespace forerun
