// The floating point mode of the canonical arithmetic, for the length of a scope.
#pragma once

#include <xmmintrin.h>

namespace forerun {

// Round to nearest even, denormals read and written as zero, no traps; restored at the end,
// whatever the caller (or another library) had set.
class CanonicalMode {
 public:
  CanonicalMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }
  ~CanonicalMode() { _mm_setcsr(saved_); }
  CanonicalMode(const CanonicalMode&) = delete;
  CanonicalMode& operator=(const CanonicalMode&) = delete;

 private:
  unsigned saved_;
};

}  // namespace forerun
