// The kernels for AVX-512 (F, DQ, BW, VL).
// See isa_avx2.c for why the instructions are selected in here.
#ifdef __x86_64__
#define ISA avx512
#define VF 16
#define REGISTERS 32
#include <math.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif
#include "kernels.inc.c"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
typedef int not_empty;
