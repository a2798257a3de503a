// What primitives.cuh promises, on a CPU: every thread of a block is a fiber, instructions of a warp
// meet all of its lanes, and whatever the hardware leaves undefined is an error or NaN.
//
// - Shared memory starts as NaN. Every access is checked for bounds and alignment, and for races:
//   between two barriers, no word is written by one thread and read or written by another.
// - An asynchronous copy turns its target into NaN at once, and lands when its thread waits for it.
// - Global memory may be touched only inside the arrays of the call, written once a place, and
//   copied from only at multiples of the copy's size.
// - Lanes of a warp that do not all come to the same instruction, and threads that do not all come
//   to a barrier, end the run.
#pragma once
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <ucontext.h>

typedef uint32_t u32;
typedef uint16_t u16;
typedef unsigned long long u64;
#define DEVICE inline
#define KERNEL(name, arguments) void name(const arguments &p)
#define BARRIER() emulator::barrier()

namespace emulator {

struct Array {
  const char *begin;
  size_t bytes;
  int writable;
};

struct Word {  // of shared memory: who touched it last, and in which interval between barriers
  int written = -1, read = -1;
  short writer = -1, reader = -1;
};

struct Copy {
  u32 to;
  char bytes[16];
  int size;
};

enum State { READY, WAITING, DONE };

struct Lane {
  jmp_buf here;
  State state;
  const void *instruction;
  u32 address;
  void *out;
  u32 in[6];
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

static std::vector<unsigned char> memory;
static std::vector<Word> words;
static std::vector<Lane> lanes;
static std::vector<Array> arrays;
static std::vector<std::vector<u32>> written;  // bits of the elements of writable arrays
static std::vector<int> arrived;               // of each warp
static int current, threads, interval, blocked, block, fill;
static jmp_buf outside;
static char message[400];
static struct {
  long products, matrices, cycles, barriers, plain_sums;
} counted;

[[noreturn]] static void fail(const char *format, ...) {
  char text[300];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  snprintf(message, sizeof message, "block %d, thread %d: %s", block, current, text);
  _longjmp(outside, 1);
}

// On to the next fiber that can run, of this warp first.
static void switch_away() {
  const int me = current, warp = me & ~31;
  int next = -1;
  for (int q = 1; q <= 32 && next < 0; ++q) {
    const int other = warp + ((me + q) & 31);
    if (lanes[other].state == READY) next = other;
  }
  for (int other = 0; other < threads && next < 0; ++other)
    if (lanes[other].state == READY) next = other;
  if (next < 0) {
    for (auto &l : lanes)
      if (l.state != DONE) fail("not all threads came to a barrier, or not all lanes to one place");
    _longjmp(outside, 2);
  }
  current = next;
  _longjmp(lanes[next].here, 1);
}

static void pause() {
  if (!_setjmp(lanes[current].here)) switch_away();
}

static void barrier() {
  const int me = current;
  lanes[me].state = WAITING;
  lanes[me].instruction = (const void *)barrier;
  if (++blocked < threads) return pause();
  for (auto &l : lanes) {
    if (l.state == DONE || l.instruction != (const void *)barrier)
      fail("a barrier that not all threads come to");
    l.state = READY;
  }
  blocked = 0;
  ++interval;
  ++counted.barriers;
}

// Runs `what` for a warp once all of its lanes are here.
template <class F> static void together(const void *instruction, F what) {
  const int me = current, warp = me >> 5;
  lanes[me].state = WAITING;
  lanes[me].instruction = instruction;
  if (++arrived[warp] < 32) return pause();
  for (int l = 0; l < 32; ++l)
    if (lanes[warp * 32 + l].instruction != instruction) fail("lanes of a warp have parted");
  arrived[warp] = 0;
  what(warp * 32);
  for (int l = 0; l < 32; ++l) lanes[warp * 32 + l].state = READY;
}

static void check_shared(u32 address, int bytes) {
  if (address % bytes) fail("shared address %u is no multiple of %d", address, bytes);
  if (address + bytes > memory.size()) fail("shared address %u of %zu", address, memory.size());
}

static void reads(u32 address, int bytes, int thread) {
  for (u32 a = address / 4; a < (address + bytes) / 4; ++a) {
    Word &w = words[a];
    if (w.written == interval && w.writer != thread)
      fail("thread %d reads what thread %d writes, at %u", thread, w.writer, a * 4);
    w.reader = w.read == interval && w.reader != thread ? -2 : thread;
    w.read = interval;
  }
}

static void writes(u32 address, int bytes) {
  for (u32 a = address / 4; a < (address + bytes) / 4; ++a) {
    Word &w = words[a];
    if (w.written == interval && w.writer != current)
      fail("two threads write at %u", a * 4);
    if (w.read == interval && w.reader != current)
      fail("written at %u while thread %d reads there", a * 4, w.reader);
    w.written = interval;
    w.writer = current;
  }
}

static size_t check_global(const void *at, size_t bytes, bool write, bool again = false) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    const Array &a = arrays[i];
    const char *p = (const char *)at;
    if (p < a.begin || p + bytes > a.begin + a.bytes) continue;
    if ((size_t)p % bytes) fail("an access of %zu bytes is not aligned", bytes);
    if (!write) return i;
    if (!a.writable) fail("array %zu is not to be written", i);
    for (size_t k = (p - a.begin) / 2; k < (p - a.begin + bytes) / 2; ++k) {
      if (!again && written[i][k / 32] >> k % 32 & 1) fail("array %zu is written twice", i);
      written[i][k / 32] |= 1u << k % 32;
    }
    return i;
  }
  fail("an access of %zu bytes outside of all arrays", bytes);
}

// Cycles of the 32 banks for one row of 16 bytes each of 8 lanes.
static void count_row_banks(int warp, int first) {
  int load[32] = {0}, worst = 0;
  for (int l = first; l < first + 8; ++l) {
    const u32 a = lanes[warp + l].address / 4;
    bool seen = false;
    for (int other = first; other < l; ++other) seen |= lanes[warp + other].address / 4 == a;
    if (seen) continue;
    for (int k = 0; k < 4; ++k) ++load[(a + k) % 32];
  }
  for (int n : load) worst = worst < n ? n : worst;
  counted.cycles += worst;
}

template <int COUNT, bool TRANSPOSED> static void matrices_of(u32 *out, u32 address) {
  lanes[current].address = address;
  lanes[current].out = out;
  static const char here = 0;
  together(&here, [](int warp) {
    ++counted.matrices;
    for (int m = 0; m < COUNT; ++m) {
      for (int row = 0; row < 8; ++row) {
        const u32 a = lanes[warp + m * 8 + row].address;
        check_shared(a, 16);
        reads(a, 16, warp + m * 8 + row);
      }
      count_row_banks(warp, m * 8);
      for (int l = 0; l < 32; ++l) {
        u32 v;
        if (TRANSPOSED) {
          u16 low, high;
          memcpy(&low, &memory[lanes[warp + m * 8 + l % 4 * 2].address + l / 4 * 2], 2);
          memcpy(&high, &memory[lanes[warp + m * 8 + l % 4 * 2 + 1].address + l / 4 * 2], 2);
          v = low | (u32)high << 16;
        } else {
          memcpy(&v, &memory[lanes[warp + m * 8 + l / 4].address + l % 4 * 4], 4);
        }
        ((u32 *)lanes[warp + l].out)[m] = v;
      }
    }
  });
}

static u32 bits(float v) {
  u32 b;
  memcpy(&b, &v, 4);
  return b;
}

static float number(u32 b) {
  float v;
  memcpy(&v, &b, 4);
  return v;
}

static float from_half(u16 h) {
  static std::vector<float> table;
  if (table.empty())
    for (u32 v = 0; v < 65536; ++v) {
      const int e = v >> 10 & 31, m = v & 1023;
      const float size = e == 31 ? (m ? __builtin_nanf("") : __builtin_inff())
                         : e ? __builtin_ldexpf(1024 + m, e - 25) : __builtin_ldexpf(m, -24);
      table.push_back(v >> 15 ? -size : size);
    }
  return table[h];
}

static u16 to_half(float v) {
  const u16 sign = bits(v) >> 16 & 0x8000;
  const float size = __builtin_fabsf(v);
  if (size != size) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  int e = size < 6.103515625e-5f ? -14 : __builtin_ilogbf(size);
  const float steps = __builtin_rintf(__builtin_ldexpf(size, 10 - e));  // to even
  return sign + (u16)(steps < 1024.f ? steps : (e + 14) * 1024 + steps);
}

static u16 to_bfloat(float v) {
  const u32 b = bits(v);
  if (v != v) return 0x7fff;
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

#if MODE < 2
static const int DEPTH = 16;
static float operand(u32 v, int half) {
  const u16 h = v >> 16 * half;
  return MODE == 0 ? from_half(h) : number((u32)h << 16);
}
#else
static const int DEPTH = 8;
static float operand(u32 v, int) { return number(v & ~0x1fffu); }  // the rest is not looked at
#endif

static void product(float *d, const u32 (&in)[6]) {
  memcpy(lanes[current].in, in, sizeof in);
  lanes[current].out = d;
  static const char here = 0;
  together(&here, [](int warp) {
    ++counted.products;
    const int a_word = DEPTH / 8;  // elements of a register
    float a[16][DEPTH], b[DEPTH][8], sum[16][8];
    for (int l = 0; l < 32; ++l)
      for (int q = 0; q < 6; ++q)
        for (int e = 0; e < a_word; ++e) {
          const int k = l % 4 * a_word + e + DEPTH / 2 * (q < 4 ? q / 2 : q - 4);
          const float v = operand(lanes[warp + l].in[q], e);
          if (q < 4) a[l / 4 + 8 * (q % 2)][k] = v;
          else b[k][l / 4] = v;
        }
    for (int m = 0; m < 16; ++m) {
      double s[8] = {0};
      for (int k = 0; k < DEPTH; ++k)
        for (int n = 0; n < 8; ++n) s[n] += (double)a[m][k] * b[k][n];
      for (int n = 0; n < 8; ++n) sum[m][n] = (float)s[n];
    }
    for (int l = 0; l < 32; ++l)
      for (int q = 0; q < 4; ++q)
        ((float *)lanes[warp + l].out)[q] += sum[l / 4 + 8 * (q / 2)][l % 4 * 2 + q % 2];
  });
}

}  // namespace emulator

inline int thread_index() { return emulator::current; }
inline int block_index() { return emulator::block; }
inline void note_plain_sum() { ++emulator::counted.plain_sums; }
inline int warp_index() { return emulator::current >> 5; }
inline u32 shared_start() { return 0; }

inline void load_matrices(u32 (&r)[4], u32 address) { emulator::matrices_of<4, false>(r, address); }
inline void load_matrix(u32 &r, u32 address) { emulator::matrices_of<1, false>(&r, address); }
inline void load_transposed(u32 (&r)[4], u32 address) {
  emulator::matrices_of<4, true>(r, address);
}
inline void load_transposed_two(u32 (&r)[2], u32 address) {
  emulator::matrices_of<2, true>(r, address);
}

inline u32 load_shared(u32 address) {
  emulator::check_shared(address, 4);
  emulator::reads(address, 4, emulator::current);
  u32 v;
  memcpy(&v, &emulator::memory[address], 4);
  return v;
}

inline void store_shared(u32 address, u32 v) {
  emulator::check_shared(address, 4);
  emulator::writes(address, 4);
  memcpy(&emulator::memory[address], &v, 4);
}

inline void store_shared4(u32 address, const u32 (&v)[4]) {
  emulator::check_shared(address, 16);
  emulator::writes(address, 16);
  memcpy(&emulator::memory[address], v, 16);
}

template <int BYTES> inline void copy_async(u32 to, const void *from, bool inside) {
  using namespace emulator;
  check_shared(to, BYTES);
  writes(to, BYTES);
  Copy copy = {to, {0}, BYTES};
  if (inside) {
    check_global(from, BYTES, false);
    memcpy(copy.bytes, from, BYTES);
  }
  memset(&memory[to], fill, BYTES);
  lanes[current].open.push_back(copy);
}

inline void copies_end() {
  auto &l = emulator::lanes[emulator::current];
  l.groups.push_back(l.open);
  l.open.clear();
}

template <int N> inline void copies_wait() {
  using namespace emulator;
  auto &groups = lanes[current].groups;
  while (groups.size() > N) {
    for (auto &copy : groups.front()) {
      writes(copy.to, copy.size);
      memcpy(&memory[copy.to], copy.bytes, copy.size);
    }
    groups.erase(groups.begin());
  }
}

inline u32 bits_of(float v) { return emulator::bits(v); }
inline float float_of(u32 v) { return emulator::number(v); }

#if MODE < 2
typedef u16 T;
inline T rounded(float v) { return MODE == 0 ? emulator::to_half(v) : emulator::to_bfloat(v); }
inline u32 pack(float a, float b) { return rounded(a) | (u32)rounded(b) << 16; }
inline float to_float(T v) {
  return MODE == 0 ? emulator::from_half(v) : emulator::number((u32)v << 16);
}
#else
typedef float T;
inline T rounded(float v) { return v; }
inline float to_float(T v) { return v; }
inline u32 to_tf32(u32 v) {
  return (v & 0x7f800000u) == 0x7f800000u ? v : (v + 0x1000u) & ~0x1fffu;
}
inline u32 near_tf32(u32 v) { return (v & 0x7f800000u) == 0x7f800000u ? v : v + 0x1000u; }
#endif

inline void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const u32 in[6] = {a0, a1, a2, a3, b0, b1};
  emulator::product(d, in);
}

template <class V> inline V load(const V *from) {
  emulator::check_global(from, sizeof(V), false);
  return *from;
}
template <class V> inline V load_back(const V *from) { return load(from); }
template <class V> inline void store(V *to, V v) {
  emulator::check_global(to, sizeof(V), true);
  *to = v;
}
template <class V> inline void store_again(V *to, V v) {
  emulator::check_global(to, sizeof(V), true, true);
  *to = v;
}
inline void store_pair(T *to, float a, float b) {
  emulator::check_global(to, 2 * sizeof(T), true);
  to[0] = rounded(a);
  to[1] = rounded(b);
}
