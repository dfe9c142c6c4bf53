#include "checks.h"

#include <algorithm>
#include <vector>

namespace forerun {

void check_rows(const Model& model, const Batch& b) {
  const Shape& shape = model.shape();
  require(b.num_rows > 0 && b.num_nodes > 0, "an empty batch");
  require(b.row_starts[0] == 0 && b.row_starts[b.num_rows] == b.num_nodes,
          "row_starts must span the nodes");
  std::vector<int> positions(static_cast<size_t>(b.num_nodes));
  for (int row = 0; row < b.num_rows; ++row) {
    const int first = b.row_starts[row], last = b.row_starts[row + 1];
    require(first < last && last <= b.num_nodes && b.committed[row] >= 0, "a row without nodes");
    int deepest = 0;
    for (int n = first; n < last; ++n) {
      const int token = b.tokens[n], parent = b.parents[n];
      require(token >= 0 && token < shape.vocab, [&] {
        return "token " + text(token) + " is outside the vocabulary of " + text(shape.vocab);
      });
      require(n == first ? parent == -1 : parent >= 0 && parent < n - first,
              "a parent must be an earlier node");
      const int position =
          parent < 0 ? b.committed[row] : positions[static_cast<size_t>(first + parent)] + 1;
      positions[static_cast<size_t>(n)] = position;
      deepest = std::max(deepest, position);
    }
    require(deepest < model.max_context(), [&] {
      return "position " + text(deepest) + " is past the context of " + text(model.max_context());
    });
    require(deepest / kBlock < b.table_width, [&] {
      return text(deepest + 1) + " positions need " + text(deepest / kBlock + 1) +
             " K/V blocks, the row has " + text(b.table_width);
    });
    for (int i = 0; i <= deepest / kBlock; ++i) {
      const int block = b.block_table[row * b.table_width + i];
      require(block >= 0 && block < model.num_blocks(),
              [&] { return "block " + text(block) + " of " + text(model.num_blocks()); });
    }
  }
  for (int i = 0; i < b.num_taps; ++i)
    require(b.taps[i] >= 0 && b.taps[i] < shape.num_layers,
            [&] { return "tapped layer " + text(b.taps[i]) + " of " + text(shape.num_layers); });
  for (int i = 0; i < b.num_logits; ++i)
    require(b.logit_nodes[i] >= 0 && b.logit_nodes[i] < b.num_nodes,
            "a logit node outside the batch");
}

}  // namespace forerun
