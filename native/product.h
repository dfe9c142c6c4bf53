// Products of many rows: packing rows and walking the panels of a matrix. Templates of Model.
#pragma once

#include "model.h"

namespace forerun {

// Up to so many rows every worker packs for itself: cheaper than a barrier.
constexpr int kPrivateRows = 16;

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

}  // namespace forerun
