// Drafts that are under verification, grown further in one call: read them, weigh the bonuses they
// lack, and grow below the likeliest. The readable reference is backends/foreseeing.py.
#pragma once

#include <vector>

#include "grower.h"

namespace forerun {

// One tree a row; the first nodes are the draft's own. `read`: of the nodes below.
struct Forecast {
  std::vector<GrownRow> rows;
  ReadLogits read;
};
Forecast foresee(Reader& reader, const ForecastPlan& plan);

}  // namespace forerun
