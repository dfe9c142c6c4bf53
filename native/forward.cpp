// The model, top to bottom: run_layers is its table of contents.
#include <algorithm>

#include "mode.h"
#include "model.h"

namespace forerun {
namespace {

// Up to so many rows every worker packs for itself: cheaper than a barrier.
constexpr int kPrivateRows = 16;
constexpr int kPhasesPerLayer = 6;

}  // namespace

void Model::forward(const Batch& batch) {
  const CanonicalMode mode;  // the rotation tables are part of the arithmetic
  plan(batch);
  reserve(batch);
  lane_->reset_phases(shape_.num_layers * kPhasesPerLayer + 2);
  lane_->run([&](int worker) { run_layers(batch, worker); });
}

void Model::run_layers(const Batch& batch, int worker) {
  int phase = 0;
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
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const int heads = shape_.num_kv_heads;
  const int64_t tiles = num_tiles(batch);
  const Packed input = pack_normed(worker, batch.num_nodes, layer.attention_norm, nullptr);
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
  const Packed attended = pack_rows(
      worker, batch.num_nodes, shape_.query_width(),
      [&](int n, float*) { return &attended_[static_cast<size_t>(n) * shape_.query_width()]; });
  add_product(worker, phase + 3, layer.output, attended);
  lane_->barrier(worker);
}

// One worker takes a K/V head from projection to attention (fewer barriers, and nothing of it
// crosses cores) where heads divide well among workers; never a question of bits.
bool Model::heads_stay_together(const Batch& batch) const {
  const int heads = shape_.num_kv_heads, threads = lane_->num_threads();
  return batch.num_nodes <= kMaxRows && (heads % threads == 0 || heads >= 4 * threads);
}

void Model::project_panel(int l, int64_t p, const Packed& input) {
  const Layer& layer = layers_[static_cast<size_t>(l)];
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
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const Packed input = pack_normed(worker, batch.num_nodes, layer.ffn_norm, nullptr);
  const Packed activated = packed_in(activated_, batch.num_nodes, shape_.ffn);
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
  add_product(worker, phase + 1, layer.down, activated);
  lane_->barrier(worker);
}

void Model::copy_taps(const Batch& batch, int l, int worker) {
  if (batch.num_taps == 0) return;
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  for (int tap = 0; tap < batch.num_taps && worker == 0; ++tap)
    for (size_t n = 0; n < nodes_.size() && batch.taps[tap] == l; ++n)
      std::memcpy(&(*taps_)[(n * batch.num_taps + tap) * hidden], &x_[n * hidden], hidden * 4);
  lane_->barrier(worker);
}

void Model::project(const Batch& batch, int worker, int phase) {
  const Packed last = pack_normed(worker, batch.num_logits, final_norm_, batch.logit_nodes);
  product(worker, phase, head_, last, [&](int64_t p, int row, const float* c) {
    std::memcpy(&(*logits_)[static_cast<size_t>(row * logits_stride() + p * kPanelColumns)], c,
                kPanelColumns * 4);
  });
}

// Rows of the residual stream (all, or the chosen nodes), normed and rounded.
Model::Packed Model::pack_normed(int worker, int rows, const std::vector<float>& norm,
                                 const int32_t* nodes) {
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  return pack_rows(worker, rows, shape_.hidden, [&](int row, float* out) {
    const size_t n = static_cast<size_t>(nodes ? nodes[row] : row);
    lane_->kernels().rms_norm(&x_[n * hidden], norm.data(), shape_.hidden, shape_.norm_eps, out);
    return out;
  });
}

void Model::add_product(int worker, int phase, const Matrix& matrix, const Packed& a) {
  const int hidden = shape_.hidden;
  product(worker, phase, matrix, a, [&](int64_t p, int node, const float* c) {
    const int first = static_cast<int>(p) * kPanelColumns;
    lane_->kernels().add(c, std::min(kPanelColumns, hidden - first),
                         &x_[static_cast<size_t>(node) * hidden + first]);
  });
}

template <typename Prepare>
Model::Packed Model::pack_rows(int worker, int rows, int inputs, Prepare&& prepare) {
  const Kernels& k = lane_->kernels();
  Scratch& scratch = scratch_[static_cast<size_t>(worker)];
  const bool own = rows <= kPrivateRows || lane_->num_threads() == 1;
  const Packed packed = packed_in(own ? scratch.packed : shared_packed_, rows, inputs);
  const auto pack_group = [&](int g) {
    // All rows of a group are packed together: their blocks alternate in memory.
    const int count = packed.rows_in(g);
    float* staging = scratch.normed.data();
    const float* first = nullptr;
    for (int r = 0; r < count; ++r) {
      const float* ready = prepare(g * kMaxRows + r, staging + static_cast<int64_t>(r) * inputs);
      if (r == 0) first = ready;
    }
    k.pack_rows(first, inputs, count, inputs, packed.group(g));
  };
  if (own) {
    for (int g = 0; g < packed.num_groups(); ++g) pack_group(g);
    return packed;
  }
  for (int g = worker; g < packed.num_groups(); g += lane_->num_threads()) pack_group(g);
  lane_->barrier(worker);
  return packed;
}

Model::Packed Model::packed_in(const Arena& arena, int rows, int inputs) const {
  return {arena.data(), rows, lane_->kernels().row_block_bytes, ceil_div(inputs, kBlock)};
}

template <typename Epilogue>
void Model::product(int worker, int phase, const Matrix& matrix, const Packed& a,
                    Epilogue&& epilogue) {
  lane_->share(worker, phase, matrix.num_panels, [&](int64_t p) {
    panel_product(p, matrix, a, [&](int row, const float* c) { epilogue(p, row, c); });
  });
}

// All rows of 32 outputs: epilogue(row, the 32 sums).
template <typename Epilogue>
void Model::panel_product(int64_t p, const Matrix& matrix, const Packed& a, Epilogue&& epilogue) {
  alignas(64) float c[kMaxRows * kPanelColumns];
  for (int g = 0; g < a.num_groups(); ++g) {
    lane_->kernels().panel(a.group(g), a.stride(g), a.rows_in(g), matrix.num_blocks,
                           matrix.panel(p), c, kPanelColumns, false);
    for (int r = 0; r < a.rows_in(g); ++r) epilogue(g * kMaxRows + r, c + r * kPanelColumns);
  }
}

void Model::embed(const Batch& batch, int worker, int phase) {
  const int hidden = shape_.hidden;
  const PairOrder order = lane_->kernels().order;
  lane_->share(worker, phase, batch.num_nodes, [&](int64_t node) {
    const int32_t token = batch.tokens[node];
    float* out = &x_[static_cast<size_t>(node) * hidden];
    if (!shape_.tied) {
      const uint16_t* row = embedding_.as<uint16_t>() + static_cast<int64_t>(token) * hidden;
      for (int i = 0; i < hidden; ++i) out[i] = bf16_to_float(row[i]);
      return;
    }
    const uint16_t* panel = reinterpret_cast<const uint16_t*>(head_.panel(token / kPanelColumns));
    for (int i = 0; i < hidden; ++i)
      out[i] = bf16_to_float(panel[panel_offset(i, token % kPanelColumns, order)]);
  });
  lane_->barrier(worker);
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
      int position = batch.committed[b];
      if (parent >= 0)
        position = batch.grows ? kv_positions_[static_cast<size_t>(parent)] + 1
                               : nodes[static_cast<size_t>(first + parent)].position + 1;
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

bool Model::computed(const Batch& batch) const { return nodes_ == planned(batch); }

int64_t Model::packed_bytes(int rows) const {
  const Shape& s = shape_;
  const int widest = std::max({s.hidden, s.ffn, s.query_width()});
  return ceil_div(rows, kMaxRows) * kMaxRows * ceil_div(widest, kBlock) *
         lane_->kernels().row_block_bytes;
}

void Model::reserve_node_kv() {
  const Shape& s = shape_;
  const int64_t bytes =
      static_cast<int64_t>(s.num_layers) * kv_stride_ * s.num_kv_heads * 2 * s.head_dim * 2;
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
    w.rounded.resize(static_cast<size_t>(2 * s.head_dim));
    grow(w.normed, static_cast<size_t>(kMaxRows) * std::max(s.hidden, s.head_dim));
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
