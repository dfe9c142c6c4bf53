// Attention over canonical blocks: one shared pass over the blocks all queries of a tile have in
// common, then the private tail of each tree node, in logical order, 512 keys a chunk.
//
// A query's result depends only on its own keys: scores sum over dims, products over keys follow
// the canonical arithmetic by logical position, masked keys are exact no-ops, and chunks are merged
// in order by one formula whatever the tile.
#include <algorithm>
#include <cmath>

#include "model.h"

namespace forerun {

uint8_t* Model::kv_block(int layer, int block, int head) const {
  const int64_t index =
      (static_cast<int64_t>(layer) * num_blocks_ + block) * shape_.num_kv_heads + head;
  return kv_.data() + index * head_block_bytes();
}

// Key then value of a tree node, head_dim bf16 each.
uint16_t* Model::node_kv(int layer, int node, int head) const {
  const int64_t per_layer = static_cast<int64_t>(nodes_.size()) * shape_.num_kv_heads;
  const int64_t index = layer * per_layer + static_cast<int64_t>(node) * shape_.num_kv_heads + head;
  return node_kv_.as<uint16_t>() + index * 2 * shape_.head_dim;
}

// Writes one token into slot 0..31 of a block. The first token of a block clears what an earlier
// owner left: a stale NaN would survive a weight of zero.
void Model::place(uint8_t* block, int slot, const uint16_t* key, const uint16_t* value,
                  bool clear) const {
  if (clear) std::memset(block, 0, static_cast<size_t>(head_block_bytes()));
  uint16_t* keys = reinterpret_cast<uint16_t*>(block);
  uint16_t* values = keys + head_block_bytes() / 4;
  const PairOrder order = lane_->kernels().order;
  for (int d = 0; d < shape_.head_dim; ++d) {
    keys[panel_offset(d, slot, order)] = key[d];
    values[d / kPanelColumns * (kPanelBlockBytes / 2) +
           panel_offset(slot, d % kPanelColumns, order)] = value[d];
  }
}

// Norm and rotation in fp32, then the one rounding to bf16; a unit is one row's one K/V head.
void Model::rotate_and_store(const Batch& batch, int l, int worker, int phase) {
  const Kernels& k = lane_->kernels();
  const Shape& s = shape_;
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const int half = s.head_dim / 2;
  lane_->share(
      worker, phase, static_cast<int64_t>(batch.num_rows) * s.num_kv_heads, [&](int64_t unit) {
        const int row = static_cast<int>(unit / s.num_kv_heads),
                  head = static_cast<int>(unit % s.num_kv_heads);
        std::vector<uint16_t> rounded(static_cast<size_t>(2 * s.head_dim));
        for (int n = batch.row_starts[row]; n < batch.row_starts[row + 1]; ++n) {
          const Node& node = nodes_[static_cast<size_t>(n)];
          float* qkv = &qkv_[static_cast<size_t>(n) * s.qkv_width()];
          const float* cosine = &cosine_[static_cast<size_t>(node.position) * half];
          const float* sine = &sine_[static_cast<size_t>(node.position) * half];
          for (int g = 0; g < s.group(); ++g) {
            float* query = qkv + (head * s.group() + g) * s.head_dim;
            if (s.qk_norm)
              k.rms_norm(query, layer.query_norm.data(), s.head_dim, s.norm_eps, query);
            k.rotate(query, cosine, sine, half);
          }
          float* key = qkv + s.query_width() + head * s.head_dim;
          if (s.qk_norm) k.rms_norm(key, layer.key_norm.data(), s.head_dim, s.norm_eps, key);
          k.rotate(key, cosine, sine, half);
          const float* value = key + s.key_width();
          for (int d = 0; d < s.head_dim; ++d) {
            rounded[static_cast<size_t>(d)] = float_to_bf16(key[d]);
            rounded[static_cast<size_t>(s.head_dim + d)] = float_to_bf16(value[d]);
          }
          if (!node.in_place) {
            std::memcpy(node_kv(l, n, head), rounded.data(), rounded.size() * 2);
            continue;
          }
          const int slot = node.position % kBlock;
          const int block = batch.block_table[row * batch.table_width + node.position / kBlock];
          place(kv_block(l, block, head), slot, rounded.data(), rounded.data() + s.head_dim,
                slot == 0);
        }
      });
}

void Model::attend(const Batch& batch, int layer, int worker, int phase) {
  const int per_tile = std::max(1, kMaxRows / shape_.group());
  int64_t num_tiles = 0;
  for (int b = 0; b < batch.num_rows; ++b)
    num_tiles += ceil_div(batch.row_starts[b + 1] - batch.row_starts[b], per_tile);
  lane_->share(worker, phase, num_tiles * shape_.num_kv_heads, [&](int64_t unit) {
    int64_t tile = unit / shape_.num_kv_heads;
    const int head = static_cast<int>(unit % shape_.num_kv_heads);
    int row = 0;
    for (;; ++row) {
      const int64_t tiles = ceil_div(batch.row_starts[row + 1] - batch.row_starts[row], per_tile);
      if (tile < tiles) break;
      tile -= tiles;
    }
    const int first = batch.row_starts[row] + static_cast<int>(tile) * per_tile;
    attend_tile(batch, layer, worker, row, head, first,
                std::min(per_tile, batch.row_starts[row + 1] - first));
  });
}

// The blocks of one tree node past the last full committed one: committed remainder, ancestors,
// itself; zeros behind. Returns how many.
int Model::gather_tail(const Batch& batch, int layer, int head, int n, uint8_t* tail) const {
  const Node& node = nodes_[static_cast<size_t>(n)];
  const int committed = batch.committed[node.row], first_block = committed / kBlock;
  const int count = node.position / kBlock - first_block + 1;
  std::memset(tail, 0, static_cast<size_t>(count * head_block_bytes()));
  const int kept = committed % kBlock;
  if (kept > 0) {
    const int block = batch.block_table[node.row * batch.table_width + first_block];
    std::memcpy(tail, kv_block(layer, block, head), static_cast<size_t>(head_block_bytes()));
    // Slots past `kept` may hold rejected tokens; those up to this node are written below, the rest
    // carry weight zero and are finite.
  }
  const int start = batch.row_starts[node.row];
  for (int at = n;; at = start + batch.parents[at]) {
    const int position = nodes_[static_cast<size_t>(at)].position;
    const uint16_t* kv = node_kv(layer, at, head);
    place(tail + (position / kBlock - first_block) * head_block_bytes(), position % kBlock, kv,
          kv + shape_.head_dim, false);
    if (batch.parents[at] < 0) return count;
  }
}

void Model::attend_tile(const Batch& batch, int layer, int worker, int row, int head, int first,
                        int count) {
  const Kernels& k = lane_->kernels();
  const Shape& s = shape_;
  Scratch& w = scratch_[static_cast<size_t>(worker)];
  const int group = s.group(), rows = count * group, width = s.head_blocks() * kBlock;
  const int row_bytes = k.row_block_bytes;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  const bool tree = !nodes_[static_cast<size_t>(first)].in_place;
  const int32_t* table = batch.block_table + row * batch.table_width;

  // Queries of the tile, node-major, so that one node's heads are neighbours.
  for (int q = 0; q < rows; ++q)
    std::memcpy(&w.normed[static_cast<size_t>(q) * s.head_dim],
                &qkv_[static_cast<size_t>(first + q / group) * s.qkv_width() +
                      (head * group + q % group) * s.head_dim],
                static_cast<size_t>(s.head_dim) * 4);
  k.pack_rows(w.normed.data(), s.head_dim, rows, s.head_dim, w.query.data());

  int last_position = 0;
  for (int n = first; n < first + count; ++n)
    last_position = std::max(last_position, nodes_[static_cast<size_t>(n)].position);
  const int num_blocks = last_position / kBlock + 1;
  const int num_shared = tree ? batch.committed[row] / kBlock : num_blocks;
  const int64_t tail_bytes = num_tail_blocks_ * head_block_bytes();
  if (tree)
    for (int n = 0; n < count; ++n)
      gather_tail(batch, layer, head, first + n, w.tail.data() + n * tail_bytes);

  std::fill_n(w.sum.begin(), static_cast<size_t>(rows) * width, 0.0f);
  std::fill_n(w.totals.begin(), rows, 0.0f);
  std::fill_n(w.maxima.begin(), rows, -INFINITY);
  const int64_t query_stride = static_cast<int64_t>(rows) * row_bytes;
  constexpr int kChunkBlocks = kChunkKeys / kBlock;

  for (int start = 0; start < num_blocks; start += kChunkBlocks) {
    const int in_chunk = std::min(kChunkBlocks, num_blocks - start);
    // Visits every (block, range of query rows) whose keys lie together: body(block in chunk,
    // first row, rows, memory).
    const auto visit = [&](auto&& body) {
      for (int i = 0; i < in_chunk; ++i) {
        const int block = start + i;
        if (block < num_shared) {
          body(i, 0, rows, kv_block(layer, table[block], head));
          continue;
        }
        for (int n = 0; n < count; ++n)
          if (block <= nodes_[static_cast<size_t>(first + n)].position / kBlock)
            body(i, n * group, group,
                 w.tail.data() + n * tail_bytes + (block - num_shared) * head_block_bytes());
      }
    };
    visit([&](int i, int from, int num, const uint8_t* keys) {
      k.panel(w.query.data() + from * row_bytes, query_stride, num, s.head_blocks(), keys,
              &w.scores[static_cast<size_t>(from * kChunkKeys + i * kBlock)], kChunkKeys, false);
    });
    float chunk_maxima[kMaxRows], chunk_totals[kMaxRows];
    bool has_keys[kMaxRows];
    for (int q = 0; q < rows; ++q) {
      const int keys =
          std::clamp(nodes_[static_cast<size_t>(first + q / group)].position + 1 - start * kBlock,
                     0, in_chunk * kBlock);
      float* p = &w.weights[static_cast<size_t>(q * kChunkKeys)];
      has_keys[q] = keys > 0;
      if (has_keys[q])
        chunk_totals[q] = k.softmax(&w.scores[static_cast<size_t>(q * kChunkKeys)], scale, keys,
                                    in_chunk * kBlock, p, &chunk_maxima[q]);
      else
        std::fill_n(p, in_chunk * kBlock, 0.0f);
    }
    k.pack_rows(w.weights.data(), kChunkKeys, rows, in_chunk * kBlock, w.probabilities.data());
    std::fill_n(w.chunk.begin(), static_cast<size_t>(rows) * width, 0.0f);
    visit([&](int i, int from, int num, const uint8_t* block) {
      const uint8_t* values = block + head_block_bytes() / 2;
      for (int d = 0; d < s.head_blocks(); ++d)
        k.panel(w.probabilities.data() + i * query_stride + from * row_bytes, query_stride, num, 1,
                values + d * kPanelBlockBytes,
                &w.chunk[static_cast<size_t>(from * width + d * kPanelColumns)], width, true);
    });
    for (int q = 0; q < rows; ++q) {
      if (!has_keys[q]) continue;
      const float top = std::max(w.maxima[static_cast<size_t>(q)], chunk_maxima[q]);
      const float keep = k.exp_one(w.maxima[static_cast<size_t>(q)] - top),
                  take = k.exp_one(chunk_maxima[q] - top);
      k.blend(&w.chunk[static_cast<size_t>(q * width)], take, keep, width,
              &w.sum[static_cast<size_t>(q * width)]);
      w.totals[static_cast<size_t>(q)] =
          w.totals[static_cast<size_t>(q)] * keep + chunk_totals[q] * take;
      w.maxima[static_cast<size_t>(q)] = top;
    }
  }
  for (int q = 0; q < rows; ++q) {
    float* out = &attended_[static_cast<size_t>(first + q / group) * s.query_width() +
                            (head * group + q % group) * s.head_dim];
    for (int d = 0; d < s.head_dim; ++d)
      out[d] = w.sum[static_cast<size_t>(q * width + d)] / w.totals[static_cast<size_t>(q)];
  }
}

void Model::commit(const Batch& batch, const int32_t* paths, const int32_t* starts) {
  bool any = false;
  for (int b = 0; b < batch.num_rows; ++b)
    any = any ||
          (starts[b] < starts[b + 1] && !nodes_[static_cast<size_t>(batch.row_starts[b])].in_place);
  if (!any) return;  // chains wrote theirs in place
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    lane_->share(worker, 0, shape_.num_layers, [&](int64_t l) {
      const int layer = static_cast<int>(l);
      for (int b = 0; b < batch.num_rows; ++b) {
        const int first = batch.row_starts[b];
        if (starts[b] == starts[b + 1] || nodes_[static_cast<size_t>(first)].in_place) continue;
        for (int i = starts[b]; i < starts[b + 1]; ++i)
          for (int head = 0; head < shape_.num_kv_heads; ++head) {
            const int position = batch.committed[b] + i - starts[b], slot = position % kBlock;
            const int block = batch.block_table[b * batch.table_width + position / kBlock];
            const uint16_t* kv = node_kv(layer, first + paths[i], head);
            place(kv_block(layer, block, head), slot, kv, kv + shape_.head_dim, slot == 0);
          }
      }
    });
  });
}

}  // namespace forerun
