// The gradient of the weights on tensor cores: sums of outer products of columns.
//
//   D[u][t][s] = sum over images, rows r, patches of 8 columns j:  g[r + top - u][j + t] x[r][j - before + s]
// and dw[u][v] = sum over t of D[u][t][t + v + skew]. All patches, rows and images add to the same D,
// so that a block keeps it in registers while it streams both maps once through shared memory.
//
// The 16 rows of a product are the 8 columns t of two kernel rows u, its 8 columns those of a chunk
// of x. It is contracted over images and patches (HALF of them) of two rows r at once. Zero blocks
// are skipped: kernel rows beside the map by fours, and chunks outside of it.
//
// Set by the host: MODE, VECTOR_X, VECTOR_G, PAIRS (of kernel rows u of a warp), CHUNKS (of 8 columns
// s), WARPS_U and WARPS_K (warps of a block: by u, and by what is summed over), STAGES.
#define WARPS (WARPS_U * WARPS_K)
#define THREADS (WARPS * 32)
#ifdef EMULATED
#include "emulator.h"
#else
#include "primitives.cuh"
#endif
#include "stage.cuh"

constexpr int HALF = CHUNK;              // what half a contraction sums over
constexpr int U = WARPS_U * 2 * PAIRS;   // kernel rows of a block

// Filled in by grad_plan.py, field by field.
struct WeightGrad {
  const T *x, *g;
  float *sums;  // [channel][split][kh][kw]
  T *y;         // the gradient itself, where nothing is split
  u64 image_step, out_step;
  int channels, images, height, width, out_height, out_width;
  int kh, kw, top, left;
  int part_kh, part_kw, parts_u, parts_v;  // the kernel is cut into parts, a block each
  int log_images, log_patches, groups, tiles_j;  // of images and of columns
  int segments, segment_rows;              // the rows are cut into
  int splits;                              // blocks that share the sum
  int clip_chunks;
  int chunks, chunk_bytes, row_bytes;      // of x in shared memory
  int g_chunks, g_chunk_bytes, g_row_bytes, ring, g_start;
};

// Where the rows of g are that the kernel rows see from a pair of rows: matrix j holds that which
// kernel row j - 1 sees from r, and j from r + 1.
struct RowsOfG {
#if MODE < 2
  int slot, ring, bytes;  // of matrix 0
  DEVICE void set(int slot_, int ring_, int bytes_) {
    slot = slot_;
    ring = ring_;
    bytes = bytes_;
  }
  DEVICE u32 of(int j) const {
    const int at = slot - j;
    return (at < 0 ? at + ring : at) * bytes;
  }
#else
  u32 at[2 * PAIRS + 1];
  DEVICE void set(int slot, int ring, int bytes) {
#pragma unroll
    for (int j = 0; j < 2 * PAIRS + 1; ++j)
      at[j] = (slot < j ? slot - j + ring : slot - j) * bytes;
  }
  DEVICE u32 of(int j) const { return at[j]; }
#endif
};

// What HALF positions (images and patches) of two rows add, for kernel rows 4 LO to 4 HI - 1.
template <int LO, int HI>
DEVICE void products(float (&acc)[PAIRS][CHUNKS][4], u32 g_place, const RowsOfG &rows, u32 x_place, u32 chunk_bytes, u32 row_bytes, int low, int high) {
#if MODE < 2
  const int lane = thread_index() & 31;
  const int matrix = (lane >> 4) ? (lane >> 3) - 2 : (lane >> 3) + 1;
  u32 a[PAIRS][4];
#pragma unroll
  for (int m = 2 * LO; m < 2 * HI; ++m) {
    load_transposed(a[m], g_place + rows.of(2 * m + matrix));
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if (c < low || c >= high) continue;
    u32 b[2];
    load_transposed_two(b, x_place + c * chunk_bytes);
#pragma unroll
    for (int m = 2 * LO; m < 2 * HI; ++m)
      multiply(acc[m][c], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
  }
#else
  u32 b[CHUNKS][2];
#if MODE == 3
  u32 b_rest[CHUNKS][2];  // what TF32 cuts off
#endif
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if (c < low || c >= high) continue;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const u32 v = load_shared(x_place + c * PATCH * chunk_bytes + q * row_bytes);
#if MODE == 2
      b[c][q] = near_tf32(v);
#else
      b[c][q] = to_tf32(v);
      b_rest[c][q] = near_tf32(bits_of(float_of(v) - float_of(b[c][q])));
#endif
    }
  }
  u32 g[3];  // matrices 2 m to 2 m + 2
#if MODE == 3
  u32 g_rest[3];
#endif
#pragma unroll
  for (int m = 2 * LO; m < 2 * HI; ++m) {
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      if (q == 0 && m > 2 * LO) {
        g[0] = g[2];
#if MODE == 3
        g_rest[0] = g_rest[2];
#endif
        continue;
      }
      const u32 v = load_shared(g_place + rows.of(2 * m + q));
#if MODE == 2
      g[q] = near_tf32(v);
#else
      g[q] = to_tf32(v);
      g_rest[q] = near_tf32(bits_of(float_of(v) - float_of(g[q])));
#endif
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (c < low || c >= high) continue;
      multiply(acc[m][c], g[1], g[2], g[0], g[1], b[c][0], b[c][1]);
#if MODE == 3
      multiply(acc[m][c], g[1], g[2], g[0], g[1], b_rest[c][0], b_rest[c][1]);
      multiply(acc[m][c], g_rest[1], g_rest[2], g_rest[0], g_rest[1], b[c][0], b[c][1]);
#endif
    }
  }
#endif
}

// `products` of the fours of kernel rows from `low` to `high`.
template <int LO, int HI> struct Choose {
  template <class... A> DEVICE static void call(int low, int high, A &...a) {
    if (low == LO && high == HI) products<LO, HI>(a...);
    else if (low == LO) Choose<LO, HI - 1>::call(low, high, a...);
    else Choose<LO + 1, PAIRS / 2>::call(low, high, a...);
  }
};
template <int LO> struct Choose<LO, LO> {
  template <class... A> DEVICE static void call(int, int, A &...) {}
};

// One weight's gradient as a plain sum, for where products have met Inf or NaN beside the map.
DEVICE float plain_sum(const WeightGrad &p, int channel, int u, int v) {
  note_plain_sum();
  float sum = 0.f;
#pragma unroll 1
  for (int image = 0; image < p.images; ++image) {
    const T *x = p.x + image * p.image_step + (u64)channel * p.height * p.width;
    const T *g = p.g + image * p.out_step + (u64)channel * p.out_height * p.out_width;
#pragma unroll 1
    for (int i = most(0, p.top - u); i < least(p.out_height, p.height + p.top - u); ++i)
#pragma unroll 1
      for (int j = most(0, p.left - v); j < least(p.out_width, p.width + p.left - v); ++j)
        sum += to_float(load(g + (u64)i * p.out_width + j))
               * to_float(load(x + (u64)(i + u - p.top) * p.width + j + v - p.left));
  }
  return sum;
}

KERNEL(weight_grad, WeightGrad) {
  const u32 base = shared_start();
  const int lane = thread_index() & 31, warp = warp_index();
  // Warps of all u are beside each other on a quarter of the processor: at the edges of the map,
  // some have less to do than others.
  const int warp_k = warp % WARPS_K, u_warp = warp / WARPS_K * 2 * PAIRS;
  int id = block_index();
  const int v0 = id % p.parts_v * p.part_kw; id /= p.parts_v;
  const int u0 = id % p.parts_u * p.part_kh; id /= p.parts_u;
  const int split = id % p.splits, channel = id / p.splits;
  const int kh = least(p.part_kh, p.kh - u0), kw = least(p.part_kw, p.kw - v0);
  const int top = p.top - u0, before = multiple(p.left - v0, 8), skew = before - (p.left - v0);
  const int window = (8 + kw - 1 + skew + 7) / 8;
  const int patches = 1 << p.log_patches;
  const int steps = (1 << (p.log_images + p.log_patches)) / HALF;
  const Stage stage = {p.log_images, p.chunks, p.chunk_bytes, p.row_bytes};
  const Stage g_stage = {p.log_images, p.g_chunks, p.g_chunk_bytes, p.g_row_bytes};
  const u32 g_rows = base + p.g_start;

  float acc[PAIRS][CHUNKS][4];
#pragma unroll
  for (int m = 0; m < PAIRS; ++m)
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int q = 0; q < 4; ++q) acc[m][c][q] = 0.f;

  const int items = p.groups * p.tiles_j * p.segments;
  const int item_end = (int)((u64)items * (split + 1) / p.splits);
  for (int item = (int)((u64)items * split / p.splits); item < item_end; ++item) {
    int rest = item;
    const int segment = rest % p.segments; rest /= p.segments;
    const int j0 = rest % p.tiles_j * patches * 8, image0 = rest / p.tiles_j << p.log_images;
    const int images = p.images - image0;
    const T *x = p.x + image0 * p.image_step + (u64)channel * p.height * p.width;
    const T *g = p.g + image0 * p.out_step + (u64)channel * p.out_height * p.out_width;
    // Rows of x that meet rows of g.
    const int first = most(0, -top) + segment * p.segment_rows;
    const int end = least(least(p.height, p.out_height + kh - 1 - top), first + p.segment_rows);
    const int skipped = p.clip_chunks ? most(0, (before - j0) / 8) * PATCH : 0;
    if (first >= end) continue;

    BARRIER();  // nobody reads the last item's rows any more
    int x_head = 0, g_head = 0, next = first;  // where the next rows go
    auto fetch = [&](int g_count) {
      stage_rows<THREADS, VECTOR_X>(stage, base + x_head * p.row_bytes, x, p.image_step, images, end,
                                    p.width, next, 2, j0 - before + skipped * CHUNK);
      stage_rows<THREADS, VECTOR_G>(g_stage, g_rows + g_head * p.g_row_bytes, g, p.out_step, images,
                                    p.out_height, p.out_width, next + 2 + top - g_count, g_count, j0);
      copies_end();
      next += 2;
      x_head = x_head + 2 == 2 * STAGES ? 0 : x_head + 2;
      g_head = g_head + g_count >= p.ring ? g_head + g_count - p.ring : g_head + g_count;
    };
    fetch(U + 2);
    for (int q = 1; q < STAGES - 1; ++q) fetch(2);
    // The ring's place of row r + 1 + top - u_warp of g, and of row r of x.
    int slot = U + 1 - u_warp, x_slot = 0;
    for (int r = first; r < end; r += 2) {
      copies_wait<STAGES - 2>();
      BARRIER();
      fetch(2);
      // Kernel rows that see this pair of rows somewhere.
      const int low = most(0, r + top - p.out_height + 1 - u_warp) / 4;
      const int high = (least(least(2 * PAIRS, kh - u_warp), r + 2 + top - u_warp) + 3) / 4;
      if (low < high && r + 2 + top > u_warp) {
        RowsOfG rows_of_g;
        rows_of_g.set(slot, p.ring, p.g_row_bytes);
        for (int k = warp_k; k < steps; k += WARPS_K) {
          const int mine = k * HALF + (lane & (HALF - 1));
          const int image = mine & ((1 << p.log_images) - 1), patch = mine >> p.log_images;
          int c_low = 0, c_high = window;
          if (p.clip_chunks) {  // all positions are in one patch
            const int j = j0 + 8 * (k * HALF >> p.log_images);
            c_low = most(0, (before - j) / 8);
            c_high = least(window, (p.width - j + before + 7) / 8);
            if (j >= p.out_width || p.width - j + before <= 0) c_high = 0;
          }
          u32 g_place = g_rows + image * 16, x_place = base + x_slot * p.row_bytes + image * 16;
#if MODE < 2
          g_place += patch * p.g_chunk_bytes;
          x_place += (patch - skipped) * p.chunk_bytes + ((lane >> 3) & 1) * p.row_bytes;
#else
          const u32 column = (lane >> 2 & 3) * 4;
          g_place += (patch * PATCH + (lane >> 4)) * p.g_chunk_bytes + column;
          x_place += (patch * PATCH + (lane >> 4) - skipped) * p.chunk_bytes + column;
#endif
          u32 chunk_bytes = p.chunk_bytes, row_bytes = p.row_bytes;
          int from = low, to = high;
          Choose<0, PAIRS / 2>::call(from, to, acc, g_place, rows_of_g, x_place, chunk_bytes,
                                     row_bytes, c_low, c_high);
        }
      }
      slot = slot + 2 >= p.ring ? slot + 2 - p.ring : slot + 2;
      x_slot = x_slot + 2 == 2 * STAGES ? 0 : x_slot + 2;
    }
    copies_wait<0>();
  }

  // The warps' D, one added to the other, and then its diagonals.
  constexpr int PITCH = CHUNKS * 8 + 4;
  for (int turn = 0; turn < WARPS_K; ++turn) {
    BARRIER();
    if (warp_k != turn) continue;
#pragma unroll
    for (int m = 0; m < PAIRS; ++m)
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const u32 at = base + (((u_warp + 2 * m + (q >> 1)) * 8 + (lane >> 2)) * PITCH + c * 8
                                 + (lane & 3) * 2 + (q & 1)) * 4;
          const float before_me = turn ? float_of(load_shared(at)) : 0.f;
          store_shared(at, bits_of(acc[m][c][q] + before_me));
        }
  }
  BARRIER();
  for (int u = warp; u < kh; u += WARPS)
    for (int v = lane; v < kw; v += 32) {
      float sum = 0.f;
#pragma unroll
      for (int t = 0; t < 8; ++t)
        sum += float_of(load_shared(base + ((u * 8 + t) * PITCH + t + v + skew) * 4));
      const int tap = (u0 + u) * p.kw + v0 + v;
      if (p.splits > 1) {
        store(p.sums + ((u64)channel * p.splits + split) * p.kh * p.kw + tap, sum);
      } else {
        if (!is_finite(sum)) sum = plain_sum(p, channel, u0 + u, v0 + v);
        store(p.y + (u64)channel * p.kh * p.kw + tap, rounded(sum));
      }
    }
}

// Adds what the blocks of `weight_grad` have written to `sums`, in their order.
KERNEL(sum_parts, WeightGrad) {
  const int taps = p.kh * p.kw, blocks = (taps + THREADS - 1) / THREADS;
  const int channel = block_index() / blocks;
  const int tap = block_index() % blocks * THREADS + thread_index();
  if (tap >= taps) return;
  float sum = 0.f;
  for (int s = 0; s < p.splits; ++s)
    sum += load((const float *)p.sums + ((u64)channel * p.splits + s) * taps + tap);
  if (!is_finite(sum)) sum = plain_sum(p, channel, tap / p.kw, tap % p.kw);
  store(p.y + (u64)channel * taps + tap, rounded(sum));
}
