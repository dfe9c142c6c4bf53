// A whole proposal of trees in one call: read what is unread, then grow a tree below each pending
// token.
#pragma once

#include <vector>

#include "grower.h"

namespace forerun {

// One tree a row; node 0 is pending.
std::vector<GrownRow> grow(Reader& reader, const GrowthPlan& plan);

}  // namespace forerun
