// The kernels for x86-64 with AVX-512 F, BW, DQ and VL (Skylake-SP, Zen 4, and later).
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "plan.h"

#if defined(FASTDDPM_X86)
#define FASTDDPM_AVX512 1
#define FASTDDPM_ISA fastddpm_avx512
FASTDDPM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "kernels.h"
FASTDDPM_TARGET_END

static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         cpu_has_f16c();
}
const fastddpm::Kernels fastddpm::kAvx512 = FASTDDPM_ISA::table("avx512", runs_here);
#else
const fastddpm::Kernels fastddpm::kAvx512 = {"avx512", [] { return false; }};
#endif
