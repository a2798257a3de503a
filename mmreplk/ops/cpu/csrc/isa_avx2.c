// The kernels for AVX2 with FMA. The attribute is set in here, for no compiler flag of setuptools
// concerns one file alone.
#ifdef __x86_64__
#define ISA avx2
#define VF 8
#define REGISTERS 16
#include <math.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "kernels.inc.c"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
typedef int not_empty;
