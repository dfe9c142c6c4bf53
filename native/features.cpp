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
  product(worker, phase, weights_->fusion, raw, [&](int64_t p, int n, const float* c) {
    const size_t column = static_cast<size_t>(p) * kPanelColumns;
    std::memcpy(&fused_[static_cast<size_t>(n) * hidden + column], c,
                std::min<size_t>(kPanelColumns, hidden - column) * 4);
  });
  lane_->barrier(worker);
  if (weights_->fused_norm.empty()) return;
  lane_->share(worker, phase + 1, count, [&](int64_t n) {
    float* row = &fused_[static_cast<size_t>(n) * hidden];
    lane_->kernels().rms_norm(row, weights_->fused_norm.data(), shape_.hidden, shape_.norm_eps,
                              row);
  });
  lane_->barrier(worker);
}

// What a layer's queries, keys and values are made of.
Model::Packed Model::pack_inputs(const Batch& batch, int l, int worker) {
  const Kernels& k = lane_->kernels();
  const Layer& layer = weights_->layers[static_cast<size_t>(l)];
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

// What a pass does not make room for: slots are asked after it, in any number.
void Model::reserve_markov(int rows) {
  const size_t count = static_cast<size_t>(rows);
  const auto room = [&](Arena& arena) {
    if (static_cast<int64_t>(arena.size()) < packed_bytes(rows))
      arena = Arena(static_cast<size_t>(packed_bytes(rows)));
  };
  room(shared_packed_);
  for (Scratch& w : scratch_) room(w.packed);
  if (shape_.markov_inputs() == 0) return;
  mixed_.resize(count * static_cast<size_t>(weights_->mix.num_panels * kPanelColumns));
  codes_.resize(count * static_cast<size_t>(shape_.markov_rank));
}

void Model::read_code(int32_t token, float* out) const {
  const int rank = shape_.markov_rank;
  with_values(weights_->layout.value_bytes, [&](auto value) {
    using Value = decltype(value);
    const Value* row = weights_->markov_in.as<Value>() + static_cast<int64_t>(token) * rank;
    for (int i = 0; i < rank; ++i) out[i] = to_float(row[i]);
  });
}

void Model::add_markov(const std::vector<Heard>& slots, float* out) {
  const int rows = static_cast<int>(slots.size()), rank = shape_.markov_rank;
  const bool mixes = shape_.markov_inputs() > 0;
  const int64_t stride = logits_stride();
  reserve_markov(rows);
  lane_->reset_phases(3);
  lane_->run([&](int worker) {
    if (mixes) mix(slots, worker, 0);
    const Packed codes = pack_rows(worker, rows, rank, [&](int r, float* staging) {
      if (mixes) return static_cast<const float*>(&codes_[static_cast<size_t>(r * rank)]);
      read_code(slots[static_cast<size_t>(r)].before, staging);
      return static_cast<const float*>(staging);
    });
    product(worker, 2, weights_->markov, codes, [&](int64_t p, int r, const float* c) {
      const int64_t column = p * kPanelColumns;
      float* sum = out + r * stride + column;
      std::memcpy(sum, slots[static_cast<size_t>(r)].base + column, kPanelColumns * 4);
      lane_->kernels().add(c, kPanelColumns, sum);
    });
  });
}

// The codes of slots whose own state has a say, and what they have heard; two phases.
void Model::mix(const std::vector<Heard>& slots, int worker, int phase) {
  const int rows = static_cast<int>(slots.size()), rank = shape_.markov_rank;
  const size_t width = static_cast<size_t>(weights_->mix.num_panels * kPanelColumns);
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  const bool has_state = shape_.markov == Markov::kRecurrent;
  const Packed inputs = pack_rows(worker, rows, shape_.markov_inputs(), [&](int r, float* staging) {
    const Heard& slot = slots[static_cast<size_t>(r)];
    float *code = has_state ? staging + rank : staging + hidden,
          *read = has_state ? staging + 2 * rank : staging;
    if (has_state) std::memcpy(staging, slot.above, static_cast<size_t>(rank) * 4);
    read_code(slot.before, code);
    lane_->kernels().rms_norm(&x_[static_cast<size_t>(slot.node) * hidden],
                              weights_->final_norm.data(), shape_.hidden, shape_.norm_eps, read);
    return static_cast<const float*>(staging);
  });
  product(worker, phase, weights_->mix, inputs, [&](int64_t p, int r, const float* c) {
    const size_t column = static_cast<size_t>(p) * kPanelColumns;
    float* sum = &mixed_[static_cast<size_t>(r) * width + column];
    std::memcpy(sum, c, kPanelColumns * 4);
    lane_->kernels().add(&weights_->mix_bias[column], kPanelColumns, sum);
  });
  lane_->barrier(worker);
  lane_->share(worker, phase + 1, rows, [&](int64_t r) {
    const size_t row = static_cast<size_t>(r);
    turn(slots[row], &mixed_[row * width], &codes_[row * static_cast<size_t>(rank)]);
  });
  lane_->barrier(worker);
}

// DSpark, arXiv:2607.05147, section 3: a gate for the token's code; or a state that is kept as far
// as a gate lets it, a candidate for the rest, and what the slot says.
void Model::turn(const Heard& slot, const float* mixed, float* code) const {
  const Kernels& k = lane_->kernels();
  const int rank = shape_.markov_rank;
  if (shape_.markov == Markov::kGated) {
    std::vector<float> gate(static_cast<size_t>(rank));
    k.sigmoid(mixed, rank, gate.data());
    read_code(slot.before, code);
    for (int i = 0; i < rank; ++i) code[i] = gate[static_cast<size_t>(i)] * code[i];
    return;
  }
  float *gate = code, *below = slot.below;
  k.sigmoid(mixed, rank, gate);
  k.tangent(mixed + rank, rank, below);
  for (int i = 0; i < rank; ++i) below[i] = gate[i] * slot.above[i] + (1.0f - gate[i]) * below[i];
  k.tangent(mixed + 2 * rank, rank, code);
}

}  // namespace forerun
