// The second arithmetic, canonical-float32: fp32 operands in the chains of the first one. Scalar,
// for those who compare with other frameworks; nothing takes this path unless it is asked for.
#include "../arith.h"
#include "kernels.h"

namespace forerun::float32_portable {

#include "noise.inc"
#include "ops.inc"

constexpr Layout kLayout = {PairOrder::kNatural, 4};
constexpr int kTileBytes = kBlock * kTileColumns * kLayout.value_bytes;
constexpr int kPanelBlockBytes = 2 * kTileBytes;
using Operand = float;
#include "scalar.inc"

}  // namespace forerun::float32_portable

namespace forerun {
const Kernels* float32_portable_kernels() {
  using namespace float32_portable;
  static const Kernels kTable =
      FORERUN_TABLE("float32-portable", kRowBytes, kLayout, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
