// What models that read a target's features do beside what every model does: fuse them, feed them
// to the layers, and add to a slot's logits what the choice before it says.
#include <algorithm>

#include "mode.h"
#include "model.h"
#include "product.h"

namespace forerun {

// Context of a block drafter is keys and values only; so is, where nothing is asked for, the text
// of EAGLE-3.
int Model::first_working(const Batch& batch) const {
  const bool keys_only = shape_.reads == Reads::kBoth && batch.num_logits == 0;
  return keys_only ? batch.num_nodes : batch.num_context;
}

// Features of all tapped layers, side by side, to the width of the residual stream.
void Model::fuse(const Batch& batch, int worker, int phase) {
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  const int count = shape_.reads == Reads::kBoth ? batch.num_nodes : batch.num_context;
  if (batch.grows) {
    if (worker == 0) std::memcpy(fused_.data(), batch.features, hidden * 4 * nodes_.size());
    lane_->barrier(worker);
    return;
  }
  const Packed raw = pack_rows(worker, count, shape_.feature_width, [&](int n, float*) {
    return batch.features + static_cast<int64_t>(n) * shape_.feature_width;
  });
  product(worker, phase, fusion_, raw, [&](int64_t p, int n, const float* c) {
    const size_t column = static_cast<size_t>(p) * kPanelColumns;
    std::memcpy(&fused_[static_cast<size_t>(n) * hidden + column], c,
                std::min<size_t>(kPanelColumns, hidden - column) * 4);
  });
  lane_->barrier(worker);
  if (fused_norm_.empty()) return;
  lane_->share(worker, phase + 1, count, [&](int64_t n) {
    float* row = &fused_[static_cast<size_t>(n) * hidden];
    lane_->kernels().rms_norm(row, fused_norm_.data(), shape_.hidden, shape_.norm_eps, row);
  });
  lane_->barrier(worker);
}

// What a layer's queries, keys and values are made of.
Model::Packed Model::pack_inputs(const Batch& batch, int l, int worker) {
  const Kernels& k = lane_->kernels();
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const int hidden = shape_.hidden;
  const float* norm = layer.attention_norm.data();
  return pack_rows(worker, batch.num_nodes, shape_.input_width(), [&](int row, float* out) {
    const size_t at = static_cast<size_t>(row) * static_cast<size_t>(hidden);
    if (row < batch.num_context) {
      std::memcpy(out, &fused_[at], static_cast<size_t>(hidden) * 4);
    } else if (shape_.reads == Reads::kBoth) {
      k.rms_norm(&token_rows_[at], norm, hidden, shape_.norm_eps, out);
      if (shape_.norms_residual)
        std::memcpy(out + hidden, &x_[at], static_cast<size_t>(hidden) * 4);
      else
        k.rms_norm(&x_[at], layer.feature_norm.data(), hidden, shape_.norm_eps, out + hidden);
    } else {
      k.rms_norm(&x_[at], norm, hidden, shape_.norm_eps, out);
    }
    return static_cast<const float*>(out);
  });
}

void Model::add_markov(const std::vector<int32_t>& tokens, const std::vector<const float*>& base,
                       float* out) {
  const int rows = static_cast<int>(tokens.size()), rank = shape_.markov_rank;
  const int64_t stride = logits_stride();
  if (static_cast<int64_t>(shared_packed_.size()) < packed_bytes(rows))
    shared_packed_ = Arena(static_cast<size_t>(packed_bytes(rows)));
  for (Scratch& w : scratch_)
    if (static_cast<int64_t>(w.packed.size()) < packed_bytes(rows))
      w.packed = Arena(static_cast<size_t>(packed_bytes(rows)));
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    const Packed before = pack_rows(worker, rows, rank, [&](int r, float* staging) {
      const uint16_t* row =
          markov_in_.as<uint16_t>() + static_cast<int64_t>(tokens[static_cast<size_t>(r)]) * rank;
      for (int i = 0; i < rank; ++i) staging[i] = bf16_to_float(row[i]);
      return static_cast<const float*>(staging);
    });
    product(worker, 0, markov_, before, [&](int64_t p, int r, const float* c) {
      const int64_t column = p * kPanelColumns;
      float* sum = out + r * stride + column;
      std::memcpy(sum, base[static_cast<size_t>(r)] + column, kPanelColumns * 4);
      lane_->kernels().add(c, kPanelColumns, sum);
    });
  });
}

}  // namespace forerun
