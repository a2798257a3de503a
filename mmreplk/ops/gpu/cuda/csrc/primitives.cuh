// What the kernels ask of the hardware: one name for each instruction, in PTX.
//
// tests/ops/gpu/cuda/emulator.h has the same names for a CPU. MODE, the arithmetic, is given by the
// host: 0 float16, 1 bfloat16, 2 float32 in TF32, 3 float32 as three products in TF32. So is BLOCKS,
// how many blocks a multiprocessor has registers for; unsaid, some are spilled for more blocks.
#pragma once
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define KERNEL(name, arguments) \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name( \
    const __grid_constant__ arguments p)
#define BARRIER() __syncthreads()

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
// For the emulator alone: a result is computed anew as a plain sum.
DEVICE void note_plain_sum() {}
// The same for all lanes of a warp, in a way that the compiler can tell.
DEVICE int warp_index() { return __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0); }

extern __shared__ __align__(128) unsigned char shared_bytes[];

DEVICE u32 shared_start() {
  u32 address;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(address)
      : "l"(shared_bytes));
  return address;
}

// -- shared memory --------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16 bits (8 x 4 of 32 bits); lane l has the address of row l % 8 of matrix
// l / 8.
DEVICE void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// The first of them alone; lanes 0 to 7 have the addresses.
DEVICE void load_matrix(u32 &r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r) : "r"(address) : "memory");
}

// The same, transposed: of 16 bits alone.
DEVICE void load_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

DEVICE void load_transposed_two(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

DEVICE u32 load_shared(u32 address) {
  u32 v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

DEVICE void store_shared(u32 address, u32 v) {
  asm volatile("st.shared.b32 [%0], %1;" :: "r"(address), "r"(v) : "memory");
}

DEVICE void store_shared4(u32 address, const u32 (&v)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
               :: "r"(address), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// Copies BYTES (4, 8 or 16) from global to shared memory behind our back; zeros where not `inside`.
template <int BYTES> DEVICE void copy_async(u32 to, const void *from, bool inside) {
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :: "r"(to), "l"(from), "n"(BYTES), "r"(inside ? BYTES : 0) : "memory");
}

DEVICE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of copies of this thread but the last N.
template <int N> DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

// -- numbers --------------------------------------------------------------------------------------

DEVICE u32 bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(u32 v) { return __uint_as_float(v); }

#if MODE < 2
typedef u16 T;
// The first in the lower half.
DEVICE u32 pack(float a, float b) {
  u32 v;
#if MODE == 0
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(b), "f"(a));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(b), "f"(a));
#endif
  return v;
}
DEVICE T rounded(float v) { return (T)pack(v, 0.f); }
DEVICE float to_float(T v) {
#if MODE == 0
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
#else
  return __uint_as_float((u32)v << 16);
#endif
}
#else
typedef float T;
DEVICE T rounded(float v) { return v; }
DEVICE float to_float(T v) { return v; }
// To TF32, nearest.
DEVICE u32 to_tf32(u32 v) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v)));
  return r;
}
#endif

#if MODE >= 2
// As `to_tf32`, but for the lower bits, which products do not look at.
DEVICE u32 near_tf32(u32 v) {
  return __uint_as_float(v & 0x7fffffffu) < __int_as_float(0x7f800000) ? v + 0x1000u : v;
}
#endif

// d += a b for a of 16 rows, b of 8 columns, contracted over 16 (8 of 32 bits).
DEVICE void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if MODE == 0
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#elif MODE == 1
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
#endif
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// -- global memory --------------------------------------------------------------------------------

template <class V> DEVICE V load(const V *from) { return __ldg(from); }
// What this thread has stored itself.
template <class V> DEVICE V load_back(const V *from) { return *(const volatile V *)from; }
template <class V> DEVICE void store(V *to, V v) { *to = v; }
template <class V> DEVICE void store_again(V *to, V v) { *to = v; }
// Two neighbors at once.
DEVICE void store_pair(T *to, float a, float b) {
#if MODE < 2
  *(u32 *)to = pack(a, b);
#else
  *(float2 *)to = make_float2(a, b);
#endif
}
