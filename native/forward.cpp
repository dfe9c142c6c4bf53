// The model, top to bottom: run_layers is its table of contents.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "mode.h"
#include "model.h"
#include "product.h"

namespace forerun {
namespace {

constexpr int kPhasesPerLayer = 6;

}  // namespace

Model::Model(std::shared_ptr<const Weights> weights, std::shared_ptr<Lane> lane, int max_context,
             int num_blocks)
    : weights_(std::move(weights)),
      shape_(weights_->shape),
      lane_(std::move(lane)),
      max_context_(max_context),
      num_blocks_(num_blocks) {
  if (lane_->kernels().layout != weights_->layout)
    throw std::invalid_argument("weights are read by lanes of the paths they were packed for");
  kv_ = Arena(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_bytes()));
  scratch_.resize(static_cast<size_t>(lane_->num_threads()));
}

int64_t Model::block_bytes() const {
  return static_cast<int64_t>(shape_.num_layers) * shape_.num_kv_heads * head_block_bytes();
}

void Model::forward(const Batch& batch) {
  const CanonicalMode mode;  // the rotation tables are part of the arithmetic
  plan(batch);
  reserve(batch);
  num_computed_ += batch.num_nodes;
  lane_->reset_phases(shape_.num_layers * kPhasesPerLayer + 4);
  lane_->run([&](int worker) { run_layers(batch, worker); });
}

void Model::run_layers(const Batch& batch, int worker) {
  int phase = 0;
  if (batch.features) {
    fuse(batch, worker, phase);
    phase += 2;
  }
  embed(batch, worker, phase++);
  const int layers = batch.num_layers > 0 ? batch.num_layers : shape_.num_layers;
  for (int l = 0; l < layers; ++l, phase += kPhasesPerLayer) {
    self_attention(batch, l, worker, phase);
    feed_forward(batch, l, worker, phase + 4);
    copy_taps(batch, l, worker);
  }
  if (batch.num_logits > 0) project(batch, worker, phase);
}

void Model::self_attention(const Batch& batch, int l, int worker, int phase) {
  const Layer& layer = weights_->layers[static_cast<size_t>(l)];
  const int heads = shape_.num_kv_heads, first = first_working(batch);
  const int64_t tiles = num_tiles(batch);
  const Packed input = pack_inputs(batch, l, worker);
  if (heads_stay_together(batch)) {
    const int panels = shape_.family_width() / kPanelColumns;
    lane_->share(worker, phase, heads, [&](int64_t head) {
      for (int64_t p = head * panels; p < (head + 1) * panels; ++p) project_panel(l, p, input);
      for (int row = 0; row < batch.num_rows; ++row)
        rotate_and_store(batch, l, worker, row, static_cast<int>(head));
      for (int64_t tile = 0; tile < tiles; ++tile)
        attend(batch, l, worker, tile, static_cast<int>(head));
    });
  } else {
    lane_->share(worker, phase, layer.qkv.num_panels,
                 [&](int64_t p) { project_panel(l, p, input); });
    lane_->barrier(worker);
    lane_->share(worker, phase + 1, static_cast<int64_t>(batch.num_rows) * heads,
                 [&](int64_t unit) {
                   rotate_and_store(batch, l, worker, static_cast<int>(unit / heads),
                                    static_cast<int>(unit % heads));
                 });
    lane_->barrier(worker);
    lane_->share(worker, phase + 2, tiles * heads, [&](int64_t unit) {
      attend(batch, l, worker, unit / heads, static_cast<int>(unit % heads));
    });
  }
  lane_->barrier(worker);
  if (first == batch.num_nodes) return;
  const size_t width = static_cast<size_t>(shape_.query_width());
  const Packed attended =
      pack_rows(worker, batch.num_nodes - first, shape_.query_width(),
                [&](int n, float*) { return &attended_[static_cast<size_t>(first + n) * width]; });
  add_product(worker, phase + 3, layer.output, attended, first);
  lane_->barrier(worker);
}

// One worker takes a K/V head from projection to attention (fewer barriers, and nothing of it
// crosses cores) where heads divide well among workers; never a question of bits.
bool Model::heads_stay_together(const Batch& batch) const {
  const int heads = shape_.num_kv_heads, threads = lane_->num_threads();
  return batch.num_nodes <= kMaxRows && (heads % threads == 0 || heads >= 4 * threads);
}

void Model::project_panel(int l, int64_t p, const Packed& input) {
  const Layer& layer = weights_->layers[static_cast<size_t>(l)];
  panel_product(p, layer.qkv, input, [&](int node, const float* c) {
    float* out = &qkv_[static_cast<size_t>(node) * shape_.qkv_width() + p * kPanelColumns];
    std::memcpy(out, c, kPanelColumns * 4);
    if (shape_.qkv_bias)
      lane_->kernels().add(&layer.qkv_bias[static_cast<size_t>(p * kPanelColumns)], kPanelColumns,
                           out);
  });
}

void Model::feed_forward(const Batch& batch, int l, int worker, int phase) {
  const Kernels& k = lane_->kernels();
  const Layer& layer = weights_->layers[static_cast<size_t>(l)];
  const int first = first_working(batch), rows = batch.num_nodes - first;
  if (rows == 0) return;
  const Packed input = pack_normed(worker, rows, layer.ffn_norm, nullptr, first);
  const Packed activated = packed_in(activated_, rows, shape_.ffn);
  product(worker, phase, layer.gate_up, input, [&](int64_t p, int node, const float* c) {
    const int count = std::min<int>(kTileColumns, shape_.ffn - static_cast<int>(p) * kTileColumns);
    float values[kTileColumns] = {};
    k.silu_mul(c, c + kTileColumns, count, values);
    uint8_t* block = activated.row_block(node, p / 2);
    k.pack_half(values, static_cast<int>(p % 2), block);
    if (p % 2 == 0 && p + 1 == layer.gate_up.num_panels) {
      const float zeros[kTileColumns] = {};
      k.pack_half(zeros, 1, block);
    }
  });
  lane_->barrier(worker);
  add_product(worker, phase + 1, layer.down, activated, first);
  lane_->barrier(worker);
}

void Model::copy_taps(const Batch& batch, int l, int worker) {
  const int32_t* end = batch.taps + batch.num_taps;
  if (std::find(batch.taps, end, l) == end) return;
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  for (int tap = 0; tap < batch.num_taps && worker == 0; ++tap)
    for (size_t n = 0; n < nodes_.size() && batch.taps[tap] == l; ++n)
      std::memcpy(&(*taps_)[(n * batch.num_taps + tap) * hidden], &x_[n * hidden], hidden * 4);
  lane_->barrier(worker);
}

void Model::project(const Batch& batch, int worker, int phase) {
  const Packed last =
      pack_normed(worker, batch.num_logits, weights_->final_norm, batch.logit_nodes, 0);
  product(worker, phase, weights_->any_head(), last, [&](int64_t p, int row, const float* c) {
    std::memcpy(&(*logits_)[static_cast<size_t>(row * logits_stride() + p * kPanelColumns)], c,
                kPanelColumns * 4);
  });
}

// Rows of the residual stream (from `first` on, or the chosen nodes), normed and rounded.
Model::Packed Model::pack_normed(int worker, int rows, const std::vector<float>& norm,
                                 const int32_t* nodes, int first) {
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  return pack_rows(worker, rows, shape_.hidden, [&](int row, float* out) {
    const size_t n = static_cast<size_t>(nodes ? nodes[row] : first + row);
    lane_->kernels().rms_norm(&x_[n * hidden], norm.data(), shape_.hidden, shape_.norm_eps, out);
    return out;
  });
}

// Adds the product to the residual stream of the nodes from `first` on.
void Model::add_product(int worker, int phase, const Matrix& matrix, const Packed& a, int first) {
  const int hidden = shape_.hidden;
  product(worker, phase, matrix, a, [&](int64_t p, int row, const float* c) {
    const int column = static_cast<int>(p) * kPanelColumns;
    lane_->kernels().add(c, std::min(kPanelColumns, hidden - column),
                         &x_[static_cast<size_t>(first + row) * hidden + column]);
  });
}

Model::Packed Model::packed_in(const Arena& arena, int rows, int inputs) const {
  return {arena.data(), rows, lane_->kernels().row_block_bytes, ceil_div(inputs, kBlock)};
}

void Model::embed(const Batch& batch, int worker, int phase) {
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  const bool both = shape_.reads == Reads::kBoth;
  lane_->share(worker, phase, batch.num_nodes - batch.num_context, [&](int64_t i) {
    const size_t n = static_cast<size_t>(batch.num_context + i);
    copy_token(batch.tokens[n], both ? &token_rows_[n * hidden] : &x_[n * hidden]);
    if (!both) return;
    if (shape_.norms_residual)
      lane_->kernels().rms_norm(&fused_[n * hidden], weights_->layers[0].feature_norm.data(),
                                shape_.hidden, shape_.norm_eps, &x_[n * hidden]);
    else
      std::memcpy(&x_[n * hidden], &fused_[n * hidden], hidden * 4);
  });
  lane_->barrier(worker);
}

// The row of the table that this model reads tokens with; a tied one stands in the head.
void Model::copy_token(int32_t token, float* out) const {
  const Weights& owner = weights_->table_owner();
  const int hidden = shape_.hidden;
  const Layout layout = owner.layout;
  with_values(layout.value_bytes, [&](auto value) {
    using Value = decltype(value);
    if (!owner.shape.tied) {
      const Value* row = owner.embedding.as<Value>() + static_cast<int64_t>(token) * hidden;
      for (int i = 0; i < hidden; ++i) out[i] = to_float(row[i]);
      return;
    }
    const Value* panel = reinterpret_cast<const Value*>(owner.head.panel(token / kPanelColumns));
    for (int i = 0; i < hidden; ++i)
      out[i] = to_float(panel[panel_offset(i, token % kPanelColumns, layout.order)]);
  });
}

// Rows, positions, and whether a row may write its K/V in place.
std::vector<Model::Node> Model::planned(const Batch& batch) const {
  std::vector<Node> nodes(static_cast<size_t>(batch.num_nodes));
  for (int b = 0; b < batch.num_rows; ++b) {
    const int first = batch.row_starts[b], last = batch.row_starts[b + 1];
    bool chain = true;
    for (int n = first; n < last; ++n) {
      const int parent = batch.parents[n];
      chain = chain && parent == n - first - 1;
      const int in_pass = batch.grows ? parent - num_grown() : first + parent;
      int position = batch.committed[b];
      if (parent >= 0)
        position = 1 + (in_pass < 0 ? kv_positions_[static_cast<size_t>(parent)]
                                    : nodes[static_cast<size_t>(in_pass)].position);
      nodes[static_cast<size_t>(n)] = {b, position, false, batch.grows ? num_grown() + n : n};
    }
    chain = chain && !batch.grows;
    for (int n = first; n < last; ++n) nodes[static_cast<size_t>(n)].in_place = chain;
  }
  return nodes;
}

void Model::plan(const Batch& batch) {
  nodes_ = planned(batch);
  if (!batch.grows) {
    kv_parents_.clear();
    kv_positions_.clear();
    kv_stride_ = batch.num_nodes;
  }
  for (int n = 0; n < batch.num_nodes; ++n) {
    const int parent = batch.parents[n], first = batch.row_starts[node(n).row];
    kv_parents_.push_back(parent < 0 || batch.grows ? parent : first + parent);
    kv_positions_.push_back(node(n).position);
  }
  num_tail_blocks_ = 1;
  for (const Node& node : nodes_) {
    const int tail = node.position / kBlock - batch.committed[node.row] / kBlock + 1;
    num_tail_blocks_ = std::max(num_tail_blocks_, tail);
    extend_rotation(node.position + 1);
  }
}

// Tables of the first positions, extended as contexts grow: a long limit costs nothing unused.
void Model::extend_rotation(int num_positions) {
  constexpr int kStep = 1024;
  const size_t half = static_cast<size_t>(shape_.head_dim / 2);
  const int known = static_cast<int>(cosine_.size() / half);
  if (num_positions <= known) return;
  const int wanted = static_cast<int>(ceil_div(num_positions, kStep)) * kStep;
  for (int position = known; position < wanted; ++position)
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * shape_.inverse_frequencies[i];
      cosine_.push_back(static_cast<float>(std::cos(angle)));
      sine_.push_back(static_cast<float>(std::sin(angle)));
    }
}

bool Model::computed(const Batch& batch) const { return nodes_ == planned(batch); }

int64_t Model::packed_bytes(int rows) const {
  const Shape& s = shape_;
  const int widest = std::max(
      {s.input_width(), s.ffn, s.query_width(), s.feature_width, s.markov_rank, s.markov_inputs()});
  return ceil_div(rows, kMaxRows) * kMaxRows * ceil_div(widest, kBlock) *
         lane_->kernels().row_block_bytes;
}

void Model::reserve_node_kv() {
  const int64_t bytes = kv_stride_ * bytes_per_node();
  if (static_cast<int64_t>(node_kv_.size()) < bytes) node_kv_ = Arena(static_cast<size_t>(bytes));
}

void Model::begin_growth(int capacity) {
  kv_parents_.clear();
  kv_positions_.clear();
  kv_stride_ = capacity;
  reserve_node_kv();
}

void Model::reserve(const Batch& batch) {
  const Shape& s = shape_;
  const size_t nodes = static_cast<size_t>(batch.num_nodes);
  const int rows = std::max(batch.num_nodes, batch.num_logits);  // a node may be asked for twice
  const auto grow = [](std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  const auto grow_arena = [](Arena& arena, int64_t bytes) {
    if (static_cast<int64_t>(arena.size()) < bytes) arena = Arena(static_cast<size_t>(bytes));
  };
  grow(x_, nodes * s.hidden);
  grow(qkv_, nodes * s.qkv_width());
  grow(attended_, nodes * s.query_width());
  if (s.reads != Reads::kTokens) grow(fused_, nodes * s.hidden);
  if (s.reads == Reads::kBoth) grow(token_rows_, nodes * s.hidden);
  const auto renew = [](Floats& buffer, size_t size) {
    if (!buffer || buffer.use_count() > 1 || buffer->size() < size)
      buffer = std::make_shared<std::vector<float>>(size);
  };
  renew(logits_, static_cast<size_t>(batch.num_logits * logits_stride()));
  renew(taps_, nodes * batch.num_taps * s.hidden);
  grow_arena(shared_packed_, packed_bytes(rows));
  grow_arena(activated_, packed_bytes(batch.num_nodes));
  const bool trees =
      std::any_of(nodes_.begin(), nodes_.end(), [](const Node& n) { return !n.in_place; });
  if (trees && !batch.grows) reserve_node_kv();
  const int width = s.head_blocks() * kBlock, row_bytes = lane_->kernels().row_block_bytes;
  for (Scratch& w : scratch_) {
    w.rounded.resize(static_cast<size_t>(token_bytes()));
    const int staged = std::max({s.input_width(), s.head_dim, s.markov_rank, s.markov_inputs()});
    grow(w.normed, static_cast<size_t>(kMaxRows) * staged);
    grow(w.scores, kMaxRows * kChunkKeys);
    grow(w.weights, kMaxRows * kChunkKeys);
    grow(w.chunk, static_cast<size_t>(kMaxRows) * width);
    grow(w.sum, static_cast<size_t>(kMaxRows) * width);
    grow(w.maxima, kMaxRows);
    grow(w.totals, kMaxRows);
    grow_arena(w.packed, packed_bytes(lane_->num_threads() == 1 ? rows : kPrivateRows));
    grow_arena(w.query, static_cast<int64_t>(kMaxRows) * s.head_blocks() * row_bytes);
    grow_arena(w.probabilities, static_cast<int64_t>(kMaxRows) * (kChunkKeys / kBlock) * row_bytes);
    if (trees) grow_arena(w.tail, kMaxRows * num_tail_blocks_ * head_block_bytes());
  }
}

}  // namespace forerun
