// The model, top to bottom: run_layers is its table of contents.
#include <algorithm>

#include "model.h"

namespace forerun {
namespace {

constexpr int kPrivateRows =
    16;  // up to here every worker packs for itself: cheaper than a barrier
constexpr int kPhasesPerLayer = 6;

}  // namespace

void Model::forward(const Batch& batch) {
  plan(batch);
  reserve(batch);
  lane_->reset_phases(shape_.num_layers * kPhasesPerLayer + 2);
  lane_->run([&](int worker) { run_layers(batch, worker); });
}

void Model::run_layers(const Batch& batch, int worker) {
  int phase = 0;
  embed(batch, worker, phase++);
  for (int l = 0; l < shape_.num_layers; ++l, phase += kPhasesPerLayer) {
    self_attention(batch, l, worker, phase);
    feed_forward(batch, l, worker, phase + 4);
    copy_taps(batch, l, worker);
  }
  if (batch.num_logits > 0) project(batch, worker, phase);
}

void Model::self_attention(const Batch& batch, int l, int worker, int phase) {
  const Kernels& k = lane_->kernels();
  const Shape& s = shape_;
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const Packed input = pack_normed(worker, batch.num_nodes, layer.attention_norm, nullptr);
  product(worker, phase, layer.qkv, input, [&](int64_t p, int node, const float* c) {
    const int first = static_cast<int>(p) * kPanelColumns;
    const int count = std::min(kPanelColumns, s.qkv_width() - first);
    float* out = &qkv_[static_cast<size_t>(node) * s.qkv_width() + first];
    std::memcpy(out, c, static_cast<size_t>(count) * 4);
    if (s.qkv_bias) k.add(&layer.qkv_bias[static_cast<size_t>(first)], count, out);
  });
  lane_->barrier(worker);
  rotate_and_store(batch, l, worker, phase + 1);
  lane_->barrier(worker);
  attend(batch, l, worker, phase + 2);
  lane_->barrier(worker);
  const Packed attended = pack_rows(worker, batch.num_nodes, s.query_width(), [&](int n, float*) {
    return &attended_[static_cast<size_t>(n) * s.query_width()];
  });
  add_product(worker, phase + 3, layer.output, attended);
  lane_->barrier(worker);
}

void Model::feed_forward(const Batch& batch, int l, int worker, int phase) {
  const Kernels& k = lane_->kernels();
  const Shape& s = shape_;
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const Packed input = pack_normed(worker, batch.num_nodes, layer.ffn_norm, nullptr);
  product(worker, phase, layer.gate_up, input, [&](int64_t p, int node, const float* c) {
    const int first = static_cast<int>(p) * kTileColumns;
    k.silu_mul(c, c + kTileColumns, std::min(kTileColumns, s.ffn - first),
               &activated_[static_cast<size_t>(node) * s.ffn + first]);
  });
  lane_->barrier(worker);
  const Packed activated = pack_rows(worker, batch.num_nodes, s.ffn, [&](int n, float*) {
    return &activated_[static_cast<size_t>(n) * s.ffn];
  });
  add_product(worker, phase + 1, layer.down, activated);
  lane_->barrier(worker);
}

void Model::copy_taps(const Batch& batch, int l, int worker) {
  if (batch.num_taps == 0) return;
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  for (int tap = 0; tap < batch.num_taps && worker == 0; ++tap)
    for (size_t n = 0; n < nodes_.size() && batch.taps[tap] == l; ++n)
      std::memcpy(&taps_[(n * batch.num_taps + tap) * hidden], &x_[n * hidden], hidden * 4);
  lane_->barrier(worker);
}

void Model::project(const Batch& batch, int worker, int phase) {
  const Packed last = pack_normed(worker, batch.num_logits, final_norm_, batch.logit_nodes);
  product(worker, phase, head_, last, [&](int64_t p, int row, const float* c) {
    std::memcpy(&logits_[static_cast<size_t>(row * logits_stride() + p * kPanelColumns)], c,
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
  Packed packed{own ? scratch.packed.data() : shared_packed_.data(), rows, k.row_block_bytes,
                ceil_div(inputs, kBlock)};
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

template <typename Epilogue>
void Model::product(int worker, int phase, const Matrix& matrix, const Packed& a,
                    Epilogue&& epilogue) {
  const Kernels& k = lane_->kernels();
  lane_->share(worker, phase, matrix.num_panels, [&](int64_t p) {
    alignas(64) float c[kMaxRows * kPanelColumns];
    for (int g = 0; g < a.num_groups(); ++g) {
      k.panel(a.group(g), a.stride(g), a.rows_in(g), matrix.num_blocks, matrix.panel(p), c,
              kPanelColumns, false);
      for (int r = 0; r < a.rows_in(g); ++r) epilogue(p, g * kMaxRows + r, c + r * kPanelColumns);
    }
  });
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
void Model::plan(const Batch& batch) {
  nodes_.assign(static_cast<size_t>(batch.num_nodes), {});
  num_tail_blocks_ = 1;
  for (int b = 0; b < batch.num_rows; ++b) {
    const int first = batch.row_starts[b], last = batch.row_starts[b + 1];
    bool chain = true;
    for (int n = first; n < last; ++n) {
      const int parent = batch.parents[n];
      chain = chain && parent == n - first - 1;
      const int position = parent < 0 ? batch.committed[b]
                                      : nodes_[static_cast<size_t>(first + parent)].position + 1;
      nodes_[static_cast<size_t>(n)] = {b, position, false};
      const int tail = position / kBlock - batch.committed[b] / kBlock + 1;
      num_tail_blocks_ = std::max(num_tail_blocks_, tail);
    }
    for (int n = first; n < last; ++n) {
      nodes_[static_cast<size_t>(n)].in_place = chain;
      extend_rotation(nodes_[static_cast<size_t>(n)].position + 1);
    }
  }
}

int64_t Model::packed_bytes(int rows) const {
  const Shape& s = shape_;
  const int widest = std::max({s.hidden, s.ffn, s.query_width()});
  return ceil_div(rows, kMaxRows) * kMaxRows * ceil_div(widest, kBlock) *
         lane_->kernels().row_block_bytes;
}

void Model::reserve(const Batch& batch) {
  const Shape& s = shape_;
  const size_t nodes = static_cast<size_t>(batch.num_nodes);
  const auto grow = [](std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  const auto grow_arena = [](Arena& arena, int64_t bytes) {
    if (static_cast<int64_t>(arena.size()) < bytes) arena = Arena(static_cast<size_t>(bytes));
  };
  grow(x_, nodes * s.hidden);
  grow(qkv_, nodes * s.qkv_width());
  grow(attended_, nodes * s.query_width());
  grow(activated_, nodes * s.ffn);
  grow(logits_, static_cast<size_t>(batch.num_logits * logits_stride()));
  grow(taps_, nodes * batch.num_taps * s.hidden);
  grow_arena(shared_packed_, packed_bytes(batch.num_nodes));
  const bool trees =
      std::any_of(nodes_.begin(), nodes_.end(), [](const Node& n) { return !n.in_place; });
  if (trees)
    grow_arena(node_kv_, static_cast<int64_t>(s.num_layers) * batch.num_nodes * s.num_kv_heads * 2 *
                             s.head_dim * 2);
  const int width = s.head_blocks() * kBlock, row_bytes = lane_->kernels().row_block_bytes;
  for (Scratch& w : scratch_) {
    grow(w.normed, static_cast<size_t>(kMaxRows) * std::max(s.hidden, s.head_dim));
    grow(w.scores, kMaxRows * kChunkKeys);
    grow(w.weights, kMaxRows * kChunkKeys);
    grow(w.chunk, static_cast<size_t>(kMaxRows) * width);
    grow(w.sum, static_cast<size_t>(kMaxRows) * width);
    grow(w.maxima, kMaxRows);
    grow(w.totals, kMaxRows);
    grow_arena(w.packed, packed_bytes(lane_->num_threads() == 1 ? batch.num_nodes : kPrivateRows));
    grow_arena(w.query, static_cast<int64_t>(kMaxRows) * s.head_blocks() * row_bytes);
    grow_arena(w.probabilities, static_cast<int64_t>(kMaxRows) * (kChunkKeys / kBlock) * row_bytes);
    if (trees) grow_arena(w.tail, kMaxRows * num_tail_blocks_ * head_block_bytes());
  }
}

}  // namespace forerun
