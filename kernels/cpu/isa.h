// What one instruction set's file opens before it includes the kernels: the namespace and the compiler's target.
//
// All files of an extension share one set of flags, so a file opens its instruction set by pragma. Standard headers come
// before the pragma: an inline function of theirs compiled for AVX-512 could be the copy that the linker keeps for all.
#pragma once
#if defined(__x86_64__) || defined(_M_X64)
#define FASTDDPM_X86 1
#include <cpuid.h>
#include <immintrin.h>

// What __builtin_cpu_supports does not know in every compiler.
inline bool cpu_has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__clang__)
#define FASTDDPM_PRAGMA(text) _Pragma(#text)
#define FASTDDPM_TARGET_BEGIN(features) \
  FASTDDPM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTDDPM_TARGET_END FASTDDPM_PRAGMA(clang attribute pop)
#else
#define FASTDDPM_PRAGMA(text) _Pragma(#text)
#define FASTDDPM_TARGET_BEGIN(features) FASTDDPM_PRAGMA(GCC push_options) FASTDDPM_PRAGMA(GCC target(features))
#define FASTDDPM_TARGET_END FASTDDPM_PRAGMA(GCC pop_options)
#endif
