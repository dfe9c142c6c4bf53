// Attention over canonical blocks: one shared pass over the blocks all queries of a tile have in
// common, then the private tail of each tree node, in logical order, 512 keys a chunk.
//
// A query's result depends only on its own keys: scores sum over dims, products over keys follow
// the canonical arithmetic by logical position, masked keys are exact no-ops, and chunks are merged
// in order by one formula whatever the tile.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "model.h"

namespace forerun {

constexpr float kFarBelow = -1e30f;  // a score whose weight is nothing beside any other

uint8_t* Model::kv_block(int layer, int block, int head) const {
  const int64_t index =
      (static_cast<int64_t>(layer) * num_blocks_ + block) * shape_.num_kv_heads + head;
  return kv_.data() + index * head_block_bytes();
}

// Key then value of a tree node (its place among them), head_dim values each.
uint8_t* Model::node_kv(int layer, int node, int head) const {
  const int64_t per_layer = static_cast<int64_t>(kv_stride_) * shape_.num_kv_heads;
  const int64_t index = layer * per_layer + static_cast<int64_t>(node) * shape_.num_kv_heads + head;
  return node_kv_.data() + index * token_bytes();
}

// Writes one token's key and value into slot 0..31 of a block. The first token of a block clears
// what an earlier owner left: a stale NaN would survive a weight of zero.
void Model::place(uint8_t* block, int slot, const uint8_t* kv, bool clear) const {
  if (clear) std::memset(block, 0, static_cast<size_t>(head_block_bytes()));
  const Layout layout = weights_->layout;
  with_values(layout.value_bytes, [&](auto kind) {
    using Value = decltype(kind);
    const Value* key = reinterpret_cast<const Value*>(kv);
    const Value* value = key + shape_.head_dim;
    Value* keys = reinterpret_cast<Value*>(block);
    Value* values = reinterpret_cast<Value*>(block + head_block_bytes() / 2);
    for (int d = 0; d < shape_.head_dim; ++d) {
      keys[panel_offset(d, slot, layout.order)] = key[d];
      values[d / kPanelColumns * (kBlock * kPanelColumns) +
             panel_offset(slot, d % kPanelColumns, layout.order)] = value[d];
    }
  });
}

// A value that overflowed would pass a weight of zero and reach rows that may not see its token (a
// rejected draft may be any token). Moved into the key, it reaches exactly those that do: scores
// behind the mask are never read.
template <typename Value>
static void confine(Value* key, Value* value, int head_dim) {
  for (int d = 0; d < head_dim; ++d) {
    if (std::isfinite(to_float(value[d]))) continue;
    value[d] = 0;
    key[0] = from_float<Value>(NAN);
  }
}

// Key and value of a token as they are kept: the one rounding, none of fp32.
void Model::keep_rounded(const float* key, uint8_t* rounded) const {
  const int head_dim = shape_.head_dim;
  with_values(weights_->layout.value_bytes, [&](auto kind) {
    using Value = decltype(kind);
    Value* kept = reinterpret_cast<Value*>(rounded);
    for (int d = 0; d < 2 * head_dim; ++d) kept[d] = from_float<Value>(key[d]);
    confine(kept, kept + head_dim, head_dim);
  });
}

// Norm and rotation in fp32, then the rounding, for all nodes of a row's K/V head.
void Model::rotate_and_store(const Batch& batch, int l, int worker, int row, int head) {
  const Kernels& k = lane_->kernels();
  const Shape& s = shape_;
  const Layer& layer = weights_->layers[static_cast<size_t>(l)];
  const int half = s.head_dim / 2;
  std::vector<uint8_t>& rounded = scratch_[static_cast<size_t>(worker)].rounded;
  for (int n = batch.row_starts[row]; n < batch.row_starts[row + 1]; ++n) {
    const Node& self = node(n);
    const float* cosine = &cosine_[static_cast<size_t>(self.position) * half];
    const float* sine = &sine_[static_cast<size_t>(self.position) * half];
    float* query = family(n, head);
    for (int g = 0; g < s.group(); ++g, query += s.head_dim) {
      if (s.qk_norm) k.rms_norm(query, layer.query_norm.data(), s.head_dim, s.norm_eps, query);
      k.rotate(query, cosine, sine, half);
    }
    float* key = query;
    if (s.qk_norm) k.rms_norm(key, layer.key_norm.data(), s.head_dim, s.norm_eps, key);
    k.rotate(key, cosine, sine, half);
    keep_rounded(key, rounded.data());
    if (!self.in_place) {
      std::memcpy(node_kv(l, self.kv, head), rounded.data(), rounded.size());
      continue;
    }
    const int slot = self.position % kBlock;
    const int block = batch.block_table[row * batch.table_width + self.position / kBlock];
    place(kv_block(l, block, head), slot, rounded.data(), slot == 0);
  }
}

int64_t Model::num_tiles(const Batch& batch) const {
  const int per_tile = kMaxRows / shape_.group();
  int64_t count = 0;
  if (first_working(batch) == batch.num_nodes) return 0;
  for (int b = batch.num_context_rows; b < batch.num_rows; ++b)
    count += ceil_div(batch.row_starts[b + 1] - batch.row_starts[b], per_tile);
  return count;
}

// Tile number `tile` of the batch: as many nodes of one row as fit with all their query heads.
void Model::attend(const Batch& batch, int layer, int worker, int64_t tile, int head) {
  const int per_tile = kMaxRows / shape_.group();
  int row = batch.num_context_rows;
  for (;; ++row) {
    const int64_t tiles = ceil_div(batch.row_starts[row + 1] - batch.row_starts[row], per_tile);
    if (tile < tiles) break;
    tile -= tiles;
  }
  const int first = batch.row_starts[row] + static_cast<int>(tile) * per_tile;
  const int count = std::min(per_tile, batch.row_starts[row + 1] - first);
  const int row_last = node(batch.row_starts[row + 1] - 1).position;  // of a row that is a chain
  int last_position = 0;
  for (int n = first; n < first + count; ++n)
    last_position = std::max(last_position, node(n).position);
  if (weights_->layers[static_cast<size_t>(layer)].sees_ahead) last_position = row_last;
  const int num_blocks = last_position / kBlock + 1;
  const int num_shared = node(first).in_place ? num_blocks : batch.committed[row] / kBlock;
  attend_tile({layer, head, first, count, count * shape_.group(), num_blocks, num_shared, row_last,
               batch.block_table + row * batch.table_width},
              batch, scratch_[static_cast<size_t>(worker)]);
}

// The blocks of one tree node past the last full committed one: committed remainder, ancestors,
// itself; zeros behind.
void Model::gather_tail(const Batch& batch, int layer, int head, int n, uint8_t* tail) const {
  const Node& self = node(n);
  const int committed = batch.committed[self.row], first_block = committed / kBlock;
  const int count = self.position / kBlock - first_block + 1;
  std::memset(tail, 0, static_cast<size_t>(count * head_block_bytes()));
  const int kept = committed % kBlock;
  if (kept > 0) {
    const int block = batch.block_table[self.row * batch.table_width + first_block];
    std::memcpy(tail, kv_block(layer, block, head), static_cast<size_t>(head_block_bytes()));
    // Slots past `kept` may hold rejected tokens; those up to this node are written below, the rest
    // carry weight zero and are finite (confine).
  }
  for (int at = self.kv; at >= 0; at = kv_parents_[static_cast<size_t>(at)]) {
    const int position = kv_positions_[static_cast<size_t>(at)];
    place(tail + (position / kBlock - first_block) * head_block_bytes(), position % kBlock,
          node_kv(layer, at, head), false);
  }
}

// Visits every (block, range of query rows) of a chunk whose keys lie together:
// body(block in chunk, first row, rows, memory of the block).
template <typename Body>
void Model::visit_blocks(const Tile& tile, const Chunk& chunk, const Scratch& w,
                         Body&& body) const {
  const int group = shape_.group();
  for (int i = 0; i < chunk.num_blocks; ++i) {
    const int block = chunk.first_block + i;
    if (block < tile.num_shared) {
      body(i, 0, tile.num_rows, kv_block(tile.layer, tile.table[block], tile.head));
      continue;
    }
    for (int n = 0; n < tile.num_nodes; ++n) {
      if (block > node(tile.first + n).position / kBlock) continue;
      const int64_t at = n * num_tail_blocks_ + block - tile.num_shared;
      body(i, n * group, group, w.tail.data() + at * head_block_bytes());
    }
  }
}

void Model::attend_tile(const Tile& tile, const Batch& batch, Scratch& w) {
  const int group = shape_.group(), width = shape_.head_blocks() * kBlock;
  pack_queries(tile, w);
  if (!node(tile.first).in_place)
    for (int n = 0; n < tile.num_nodes; ++n)
      gather_tail(batch, tile.layer, tile.head, tile.first + n,
                  w.tail.data() + n * num_tail_blocks_ * head_block_bytes());
  std::fill_n(w.sum.begin(), static_cast<size_t>(tile.num_rows) * width, 0.0f);
  std::fill_n(w.totals.begin(), tile.num_rows, 0.0f);
  std::fill_n(w.maxima.begin(), tile.num_rows, -INFINITY);
  constexpr int kChunkBlocks = kChunkKeys / kBlock;
  for (int first = 0; first < tile.num_blocks; first += kChunkBlocks)
    attend_chunk(tile, {first, std::min(kChunkBlocks, tile.num_blocks - first)}, w);
  for (int q = 0; q < tile.num_rows; ++q) {
    const int n = tile.first + q / group, head = tile.head * group + q % group;
    float* out = &attended_[static_cast<size_t>(n) * shape_.query_width() + head * shape_.head_dim];
    const float* sum = &w.sum[static_cast<size_t>(q * width)];
    for (int d = 0; d < shape_.head_dim; ++d) out[d] = sum[d] / w.totals[static_cast<size_t>(q)];
  }
}

// Queries of the tile, node-major, so that one node's heads are neighbours.
void Model::pack_queries(const Tile& tile, Scratch& w) {
  const int head_dim = shape_.head_dim, group = shape_.group();
  for (int q = 0; q < tile.num_rows; ++q)
    std::memcpy(&w.normed[static_cast<size_t>(q) * head_dim],
                family(tile.first + q / group, tile.head) + q % group * head_dim,
                static_cast<size_t>(head_dim) * 4);
  lane_->kernels().pack_rows(w.normed.data(), head_dim, tile.num_rows, head_dim, w.query.data());
}

// Scores, weights and weighted values of up to 512 keys, merged into what came before.
void Model::attend_chunk(const Tile& tile, const Chunk& chunk, Scratch& w) {
  const Kernels& k = lane_->kernels();
  const int rows = tile.num_rows, row_bytes = k.row_block_bytes,
            num_keys = chunk.num_blocks * kBlock;
  const int head_blocks = shape_.head_blocks(), width = head_blocks * kBlock;
  const int64_t stride = static_cast<int64_t>(rows) * row_bytes,
                block_bytes = k.layout.block_bytes();
  visit_blocks(tile, chunk, w, [&](int i, int from, int num, const uint8_t* keys) {
    k.panel(w.query.data() + from * row_bytes, stride, num, head_blocks, keys,
            &w.scores[static_cast<size_t>(from * kChunkKeys + i * kBlock)], kChunkKeys, false);
  });
  weigh(tile, chunk, w);
  k.pack_rows(w.weights.data(), kChunkKeys, rows, num_keys, w.probabilities.data());
  std::fill_n(w.chunk.begin(), static_cast<size_t>(rows) * width, 0.0f);
  visit_blocks(tile, chunk, w, [&](int i, int from, int num, const uint8_t* block) {
    const uint8_t* values = block + head_block_bytes() / 2;
    const uint8_t* weights = w.probabilities.data() + i * stride + from * row_bytes;
    for (int d = 0; d < head_blocks; ++d)
      k.panel(weights, stride, num, 1, values + d * block_bytes,
              &w.chunk[static_cast<size_t>(from * width + d * kPanelColumns)], width, true);
  });
  for (int q = 0; q < rows; ++q) {
    const size_t at = static_cast<size_t>(q);
    if (!w.has_keys[at]) continue;
    const float top = std::max(w.maxima[at], w.chunk_maxima[at]);
    const float keep = k.exp_one(w.maxima[at] - top), take = k.exp_one(w.chunk_maxima[at] - top);
    k.blend(&w.chunk[at * width], take, keep, width, &w.sum[at * width]);
    w.totals[at] = w.totals[at] * keep + w.chunk_totals[at] * take;
    w.maxima[at] = top;
  }
}

// Softmax weights relative to the chunk's own maximum; a query sees the keys up to its position, or
// to the end of its row, and no further back than its window.
void Model::weigh(const Tile& tile, const Chunk& chunk, Scratch& w) {
  const Kernels& k = lane_->kernels();
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  const int width = chunk.num_blocks * kBlock, begin = chunk.first_block * kBlock;
  const Layer& layer = weights_->layers[static_cast<size_t>(tile.layer)];
  for (int q = 0; q < tile.num_rows; ++q) {
    const size_t at = static_cast<size_t>(q);
    const int position = node(tile.first + q / shape_.group()).position;
    const int last = layer.sees_ahead ? tile.last_position : position;
    const int num_keys = std::clamp(last + 1 - begin, 0, width);
    const int num_hidden =
        layer.window > 0 ? std::clamp(position + 1 - layer.window - begin, 0, num_keys) : 0;
    float* weights = &w.weights[at * kChunkKeys];
    float* scores = &w.scores[at * kChunkKeys];
    w.has_keys[at] = num_keys > num_hidden;
    if (!w.has_keys[at]) {
      std::fill_n(weights, width, 0.0f);
      continue;
    }
    std::fill_n(scores, num_hidden, kFarBelow);
    w.chunk_totals[at] = k.softmax(scores, scale, num_keys, width, weights, &w.chunk_maxima[at]);
  }
}

void Model::commit(const Batch& batch, const int32_t* paths, const int32_t* starts) {
  bool any = false;
  for (int b = 0; b < batch.num_rows; ++b)
    any = any || (starts[b] < starts[b + 1] && !node(batch.row_starts[b]).in_place);
  if (!any) return;  // chains wrote theirs in place
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    lane_->share(worker, 0, shape_.num_layers, [&](int64_t l) {
      const int layer = static_cast<int>(l);
      for (int b = 0; b < batch.num_rows; ++b) {
        const int first = batch.row_starts[b];
        if (starts[b] == starts[b + 1] || node(first).in_place) continue;
        place_path(layer, batch.block_table + b * batch.table_width, batch.committed[b], first,
                   paths + starts[b], starts[b + 1] - starts[b]);
      }
    });
  });
}

// The K/V of tree nodes `first_kv + path[i]` to the places of positions from `position` on.
void Model::place_path(int layer, const int32_t* table, int position, int first_kv,
                       const int32_t* path, int64_t length) {
  for (int64_t i = 0; i < length; ++i, ++position)
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      place(kv_block(layer, table[position / kBlock], head), position % kBlock,
            node_kv(layer, first_kv + path[i], head), position % kBlock == 0);
    }
}

void Model::keep_grown(const int32_t* table, int position, const std::vector<int32_t>& grown) {
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    lane_->share(worker, 0, shape_.num_layers, [&](int64_t l) {
      place_path(static_cast<int>(l), table, position, 0, grown.data(),
                 static_cast<int64_t>(grown.size()));
    });
  });
}

std::vector<uint8_t> Model::grown_kv(const std::vector<int32_t>& grown) const {
  const int64_t width = bytes_per_node() / shape_.num_layers;
  std::vector<uint8_t> kv;
  kv.reserve(grown.size() * static_cast<size_t>(bytes_per_node()));
  for (const int32_t n : grown)
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      const uint8_t* own = node_kv(layer, n, 0);
      kv.insert(kv.end(), own, own + width);
    }
  return kv;
}

void Model::adopt(const uint8_t* kv, int position, int parent) {
  const int64_t width = bytes_per_node() / shape_.num_layers;
  const int n = num_grown();
  for (int layer = 0; layer < shape_.num_layers; ++layer)
    std::copy_n(kv + layer * width, width, node_kv(layer, n, 0));
  kv_parents_.push_back(parent);
  kv_positions_.push_back(position);
}

void Model::settle(const int32_t* table, int position, int first, int last) {
  std::vector<int32_t> path(static_cast<size_t>(last - first + 1));
  std::iota(path.begin(), path.end(), first);
  keep_grown(table, position, path);
  std::replace(kv_parents_.begin(), kv_parents_.end(), last, -1);
}

}  // namespace forerun
