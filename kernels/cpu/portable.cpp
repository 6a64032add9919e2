// The kernels for any CPU: plain loops and std fma, the same bits as the vector ones, slower.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "plan.h"

#define FASTDDPM_ISA fastddpm_portable
#include "kernels.h"

const fastddpm::Kernels fastddpm::kPortable = FASTDDPM_ISA::table("portable", [] { return true; });
