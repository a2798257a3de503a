// Vectors of VF floats in the vector extensions that GCC and Clang share: one source serves every
// instruction set. A translation unit defines ISA (a name) and VF (4, 8 or 16) and selects the
// instructions (see isa_avx2.c), then includes this file and the kernels, once. Everything here and
// in the kernels is static; SUFFIXED(name) makes the names of the few tables that are not.
//
// Arithmetic is written with operators: a * b + c becomes a fused multiply-add where there is one
// (-ffp-contract=fast), and a float is spread over the lanes by splat().
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SUFFIXED_(name, isa) name##_##isa
#define SUFFIXED__(name, isa) SUFFIXED_(name, isa)
#define SUFFIXED(name) SUFFIXED__(name, ISA)

#define INLINE static inline __attribute__((always_inline, unused))
#define NOINLINE static __attribute__((noinline, unused))
// Asks for a loop of constant length to be unrolled: arrays of vectors then live in registers.
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(4 * VF)));
typedef int32_t vi __attribute__((vector_size(4 * VF)));
typedef float vf_mem __attribute__((vector_size(4 * VF), aligned(4), may_alias));

// Loads and stores need no alignment beyond that of a float.
INLINE vf load(const float *p) { return *(const vf_mem *)p; }
INLINE void store(float *p, vf v) { *(vf_mem *)p = v; }
INLINE vf splat(float s) { return s - (vf){0}; }
INLINE vf zero(void) { return (vf){0}; }

// Keeps a loaded vector in its register: GCC would rather load it again for each use, as an operand of
// the instruction, and loads across cache lines are what the direct sums have the least room for.
#if defined(__x86_64__)
#define HOLD(v) __asm__("" : "+" VECTOR_REGISTER(v))
#if VF == 16
#define VECTOR_REGISTER "v"
#else
#define VECTOR_REGISTER "x"
#endif
#elif defined(__aarch64__)
#define HOLD(v) __asm__("" : "+w"(v))
#else
#define HOLD(v) (void)(v)
#endif

// The first n lanes (1 <= n <= VF) from or to memory; nothing beyond them is touched, the other
// lanes read as 0.
#if defined(__x86_64__) && VF >= 8
#include <immintrin.h>
#if VF == 16
INLINE vf load_part(const float *p, int64_t n) {
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
INLINE void store_part(float *p, vf v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#else
INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf load_part(const float *p, int64_t n) { return (vf)_mm256_maskload_ps(p, first_lanes(n)); }
INLINE void store_part(float *p, vf v, int64_t n) {
  if (n == VF)
    store(p, v);
  else
    _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
#endif
#else
INLINE vf load_part(const float *p, int64_t n) {
  vf v = {0};
  memcpy(&v, p, (size_t)n * sizeof(float));
  return v;
}
INLINE void store_part(float *p, vf v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }
#endif

// max(v, 0) if asked for; NaN stays NaN.
INLINE vf relu_if(int asked, vf v) { return asked ? (vf)((vi)v & ~(vi)(v < zero())) : v; }

INLINE float sum_lanes(vf v) {
  // Pairwise, always in the same order.
  float part[VF];
  memcpy(part, &v, sizeof v);
  for (int width = VF / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

// Transposes VF vectors of VF lanes in registers. Each stage is one shuffle a vector, of a kind
// that every instruction set has: neighbors are interleaved inside groups of 4 lanes, then the
// groups are exchanged.
INLINE void transpose(vf r[VF]) {
  vf t[VF];
#if VF == 4
  for (int i = 0; i < 4; i += 2) {
    t[i] = SHUFFLE(r[i], r[i + 1], 0, 4, 1, 5);
    t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 6, 3, 7);
  }
  for (int i = 0; i < 2; i++) {
    r[2 * i] = SHUFFLE(t[i], t[i + 2], 0, 1, 4, 5);
    r[2 * i + 1] = SHUFFLE(t[i], t[i + 2], 2, 3, 6, 7);
  }
#elif VF == 8
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    UNROLL for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
#else
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = SHUFFLE(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    UNROLL for (int j = 0; j < 2; j++) {
      vf a = t[i + j], b = t[i + j + 2];
      r[i + 2 * j] = SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[i + 2 * j + 1] = SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }
  // Now group g of r[i + j] is part i / 4 of row 4 g + j.
  UNROLL for (int j = 0; j < 4; j++) {
    vf a = r[j], b = r[j + 4], c = r[j + 8], d = r[j + 12];
    t[j] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    t[j + 4] = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    t[j + 8] = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    t[j + 12] = SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  UNROLL for (int j = 0; j < 4; j++) {
    vf a = t[j], b = t[j + 4], c = t[j + 8], d = t[j + 12];
    r[j] = SHUFFLE(a, c, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    r[j + 8] = SHUFFLE(a, c, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    r[j + 4] = SHUFFLE(b, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    r[j + 12] = SHUFFLE(b, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
#endif
}
