// The kernels for x86-64 with AVX2, FMA and F16C (Haswell, 2013, and later).
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "plan.h"

#if defined(FASTDDPM_X86)
#define FASTDDPM_AVX2 1
#define FASTDDPM_ISA fastddpm_avx2
FASTDDPM_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels.h"
FASTDDPM_TARGET_END

static bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
}
const fastddpm::Kernels fastddpm::kAvx2 = FASTDDPM_ISA::table("avx2", runs_here);
#else
const fastddpm::Kernels fastddpm::kAvx2 = {"avx2", [] { return false; }};
#endif
