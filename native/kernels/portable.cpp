// The reference path: scalar C++, correct on any CPU, slow where fma is a library call.
#include "../arith.h"
#include "kernels.h"

namespace forerun::portable {

#include "noise.inc"
#include "ops.inc"

using Operand = uint16_t;
#include "scalar.inc"

}  // namespace forerun::portable

namespace forerun {
const Kernels* portable_kernels() {
  using namespace portable;
  static const Kernels kTable =
      FORERUN_TABLE("portable", kRowBytes, PairOrder::kNatural, begin_nothing, begin_nothing);
  return &kTable;
}
}  // namespace forerun
