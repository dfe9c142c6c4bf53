// One decoder on one lane: K/V blocks and workspace over weights that others may read too.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "weights.h"

namespace forerun {

// One slot of one draft as a Markov head sees it; the memory is the caller's.
struct Heard {
  int32_t before;      // the token chosen before it
  int node;            // of the last pass: what the head read there
  const float* base;   // its logits without the head
  const float* above;  // of kRecurrent, markov_rank values each: what the slot before had heard,
  float* below;        // and what this one has
};

// Rows of nodes; protocols.py, ForwardBatch, has the meaning of every field.
struct Batch {
  int num_rows, num_nodes, table_width, num_logits, num_taps;
  const int32_t *tokens, *parents, *row_starts, *committed, *block_table, *logit_nodes, *taps;
  // Nodes that go on growing the trees begun by begin_growth: a parent is then the number of an
  // earlier grown node, of this pass or one before, in order of growth over all rows; -1 is the
  // row's committed text.
  bool grows = false;
  int num_layers = 0;  // the lowest so many, then the head; 0: all of them
  // Of models that read features. kContext: one for each of the first `num_context` nodes, which
  // are `num_context_rows` whole rows, become keys and values and nothing else, and have no token.
  // kBoth: one for every node; those of nodes that grow are fused already.
  const float* features = nullptr;
  int num_context = 0, num_context_rows = 0;
};

class Model {
 public:
  // Positions are below `max_context`. Throws std::invalid_argument where the lane's path reads
  // panels in another order.
  Model(std::shared_ptr<const Weights> weights, std::shared_ptr<Lane> lane, int max_context,
        int num_blocks);

  // Computes every node once. Afterwards logits() holds num_logits rows of logits_stride() floats
  // and taps() num_nodes rows of num_taps * hidden floats.
  void forward(const Batch& batch);
  // Whether the last forward was of these rows and nodes.
  bool computed(const Batch& batch) const;
  // Keeps the K/V of path nodes; `paths[starts[b] .. starts[b+1])` are node ids of row b.
  void commit(const Batch& batch, const int32_t* paths, const int32_t* starts);

  // Forgets the tree nodes of the last pass and makes room for `capacity` grown ones, whose K/V
  // stays until the next pass that does not grow.
  void begin_growth(int capacity);
  int num_grown() const { return static_cast<int>(kv_parents_.size()); }
  // K/V of one node over all layers.
  int64_t bytes_per_node() const { return token_bytes() * shape_.num_layers * shape_.num_kv_heads; }
  // K/V of grown nodes, one after another.
  std::vector<uint8_t> grown_kv(const std::vector<int32_t>& grown) const;
  // One more grown node, whose K/V was computed in another growth. `parent` as in a batch that
  // grows.
  void adopt(const uint8_t* kv, int position, int parent);
  // Nodes of all passes so far.
  int64_t num_computed() const { return num_computed_; }
  // Rows of the residual stream behind the last layer, of the last pass.
  const float* output(int node) const { return &x_[static_cast<size_t>(node) * shape_.hidden]; }
  // out[r] = base[r] + what the tokens chosen before add; rows of logits_stride() floats.
  void add_markov(const std::vector<Heard>& slots, float* out);

  // Keeps the K/V of grown nodes at positions from `position` on of the row with that block table.
  void keep_grown(const int32_t* table, int position, const std::vector<int32_t>& grown);
  // Keeps grown nodes `first … last`, a path, in the same way; what grew below the last one stands
  // on text from now on.
  void settle(const int32_t* table, int position, int first, int last);

  using Floats = std::shared_ptr<std::vector<float>>;
  const Floats& logits() const { return logits_; }
  int64_t logits_stride() const { return weights_->any_head().num_panels * kPanelColumns; }
  const Floats& taps() const { return taps_; }
  const Weights& weights() const { return *weights_; }
  const Shape& shape() const { return shape_; }
  int max_context() const { return max_context_; }
  Lane& lane() { return *lane_; }
  int num_blocks() const { return num_blocks_; }
  int64_t block_bytes() const;  // of one K/V block, all layers
  // Held during every call from outside: one at a time, whichever thread asks.
  std::atomic_flag& in_use() { return in_use_; }

 private:
  struct Node {
    int row, position;
    bool in_place;  // its row is a chain: K/V goes straight to the canonical blocks
    int kv;         // else its place among the tree nodes' K/V
    bool operator==(const Node&) const = default;
  };
  // Rows of operands ready for products: groups of 32 rows, each [K block][row][bytes].
  struct Packed {
    uint8_t* data;
    int num_rows, row_bytes;
    int64_t num_blocks;
    int rows_in(int group) const {
      return num_rows - group * kMaxRows < kMaxRows ? num_rows - group * kMaxRows : kMaxRows;
    }
    int num_groups() const { return (num_rows + kMaxRows - 1) / kMaxRows; }
    uint8_t* group(int g) const {
      return data + static_cast<int64_t>(g) * kMaxRows * num_blocks * row_bytes;
    }
    // The packed block of one row's inputs 32 block … 32 block + 31.
    uint8_t* row_block(int row, int64_t block) const {
      const int g = row / kMaxRows;
      return group(g) + block * stride(g) + row % kMaxRows * row_bytes;
    }
    int64_t stride(int g) const { return static_cast<int64_t>(rows_in(g)) * row_bytes; }
  };
  // Query rows (nodes x heads of one K/V head) that are computed together.
  struct Tile {
    int layer, head, first, num_nodes, num_rows;
    int num_blocks, num_shared;  // of logical positions; those all rows read in place
    int last_position;           // of their row
    const int32_t* table;
  };
  struct Chunk {
    int first_block, num_blocks;
  };
  struct Scratch {  // of one worker
    std::vector<float> normed, scores, weights, chunk, sum, maxima, totals;
    std::vector<uint8_t> rounded;  // key and value of one token, as they are kept
    float chunk_maxima[kMaxRows], chunk_totals[kMaxRows];
    bool has_keys[kMaxRows];
    Arena packed, query, probabilities, tail;
  };

  int64_t packed_bytes(int rows) const;
  int64_t head_block_bytes() const {
    return 2 * shape_.head_blocks() * weights_->layout.block_bytes();
  }
  // Key and value of one token in one layer's K/V head.
  int64_t token_bytes() const { return 2LL * shape_.head_dim * weights_->layout.value_bytes; }
  const Node& node(int n) const { return nodes_[static_cast<size_t>(n)]; }
  // Queries, key and value of a node's K/V head.
  float* family(int n, int head) {
    return &qkv_[static_cast<size_t>(n) * shape_.qkv_width() + head * shape_.family_width()];
  }
  uint8_t* kv_block(int layer, int block, int head) const;
  uint8_t* node_kv(int layer, int node, int head) const;
  void keep_rounded(const float* key, uint8_t* rounded) const;
  void place(uint8_t* block, int slot, const uint8_t* kv, bool clear) const;
  void place_path(int layer, const int32_t* table, int position, int first_kv, const int32_t* path,
                  int64_t length);

  std::vector<Node> planned(const Batch& batch) const;
  void plan(const Batch& batch);
  void extend_rotation(int num_positions);
  void reserve(const Batch& batch);
  void reserve_node_kv();
  void run_layers(const Batch& batch, int worker);
  // The first node that a layer computes beyond its keys and values.
  int first_working(const Batch& batch) const;
  void fuse(const Batch& batch, int worker, int phase);
  void embed(const Batch& batch, int worker, int phase);
  void copy_token(int32_t token, float* out) const;
  void self_attention(const Batch& batch, int layer, int worker, int phase);
  void feed_forward(const Batch& batch, int layer, int worker, int phase);
  void copy_taps(const Batch& batch, int layer, int worker);
  void project(const Batch& batch, int worker, int phase);
  void reserve_markov(int rows);
  void read_code(int32_t token, float* out) const;
  void mix(const std::vector<Heard>& slots, int worker, int phase);
  void turn(const Heard& slot, const float* mixed, float* code) const;
  // Packs rows that `prepare(row, staging)` yields one behind the other: by every worker for itself
  // when they are few, else shared out, with a barrier behind.
  template <typename Prepare>
  Packed pack_rows(int worker, int rows, int inputs, Prepare&& prepare);
  Packed packed_in(const Arena& arena, int rows, int inputs) const;
  Packed pack_inputs(const Batch& batch, int layer, int worker);
  Packed pack_normed(int worker, int rows, const std::vector<float>& norm, const int32_t* nodes,
                     int first);
  void add_product(int worker, int phase, const Matrix& matrix, const Packed& a, int first);
  template <typename Epilogue>
  void product(int worker, int phase, const Matrix& matrix, const Packed& a, Epilogue&& epilogue);
  template <typename Epilogue>
  void panel_product(int64_t panel, const Matrix& matrix, const Packed& a, Epilogue&& epilogue);
  void project_panel(int layer, int64_t panel, const Packed& input);
  bool heads_stay_together(const Batch& batch) const;
  void rotate_and_store(const Batch& batch, int layer, int worker, int row, int head);
  void attend(const Batch& batch, int layer, int worker, int64_t tile, int head);
  int64_t num_tiles(const Batch& batch) const;
  void attend_tile(const Tile& tile, const Batch& batch, Scratch& w);
  void pack_queries(const Tile& tile, Scratch& w);
  void attend_chunk(const Tile& tile, const Chunk& chunk, Scratch& w);
  void weigh(const Tile& tile, const Chunk& chunk, Scratch& w);
  template <typename Body>
  void visit_blocks(const Tile& tile, const Chunk& chunk, const Scratch& w, Body&& body) const;
  void gather_tail(const Batch& batch, int layer, int head, int node, uint8_t* tail) const;

  std::atomic_flag in_use_;
  const std::shared_ptr<const Weights> weights_;
  const Shape& shape_;  // of the weights
  const std::shared_ptr<Lane> lane_;
  const int max_context_, num_blocks_;
  Arena kv_, node_kv_;
  std::vector<float> cosine_, sine_;

  std::vector<Node> nodes_;
  // Of all tree nodes whose K/V is held: the one above it (-1: committed text), and its position.
  std::vector<int32_t> kv_parents_, kv_positions_;
  int kv_stride_ = 0;  // tree nodes per layer there is room for
  int64_t num_computed_ = 0;
  std::vector<Scratch> scratch_;
  std::vector<float> x_, qkv_, attended_;
  std::vector<float> fused_, token_rows_;  // of nodes that have features
  std::vector<float> mixed_, codes_;       // of slots that hear more than a token
  Floats logits_, taps_;                   // replaced, not reused, while somebody holds them
  Arena shared_packed_, activated_;        // activated_: packed as the down projection reads it
  int num_tail_blocks_ = 1;
};

}  // namespace forerun
