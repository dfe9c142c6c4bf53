#include "grow.h"

namespace forerun {

std::vector<GrownRow> grow(Reader& reader, const GrowthPlan& plan) {
  std::vector<Root> roots;
  for (int b = 0; b < plan.num_rows; ++b)
    roots.push_back({b, plan.catch_up[plan.catch_up_starts[b + 1] - 1]});
  Grower grower(reader, plan, std::move(roots));
  reader.read_text(plan, plan.num_rows * Grower::most_read(plan));
  grower.offer();
  for (int level = 1; level < Grower::num_levels(plan) && grower.choose(); ++level) {
    grower.read();
    grower.offer();
  }
  std::vector<GrownRow> rows;
  for (int b = 0; b < plan.num_rows; ++b) {
    rows.push_back(grower.finished(static_cast<size_t>(b)));
    rows.back().num_passes = reader.num_passes();
  }
  return rows;
}

}  // namespace forerun
