// The kernels for aarch64, every CPU of which has NEON.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "plan.h"

#if defined(__aarch64__)
#define FASTDDPM_NEON 1
#define FASTDDPM_ISA fastddpm_neon
#include "kernels.h"

const fastddpm::Kernels fastddpm::kNeon = FASTDDPM_ISA::table("neon", [] { return true; });
#else
const fastddpm::Kernels fastddpm::kNeon = {"neon", [] { return false; }};
#endif
