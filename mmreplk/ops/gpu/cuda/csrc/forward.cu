// The depth-wise convolution on tensor cores, both operands read in place from shared memory.
//
// An output row a of 8 columns is a sum over input rows b and chunks c (16 bytes of columns):
//   y[a][t] += x[b][chunk c][k] * core[u = b - a][c][t][k],   core = w[u][CHUNK c + k - t - skew]
// so that 8 outputs side by side are one small matrix product, whose right operand, the 8 x CHUNK
// "core" of a Toeplitz matrix, is the same for all images and all positions. Left operands have as
// rows m what shares the cores: images, patches of 8 columns, blocks of ROWS output rows.
//
// A step multiplies rows b and b + 1 of one chunk, the two halves of a product's contraction. The
// core of row b + 1 is that of row b for the output row above, so each is loaded once for both.
// Zero blocks are skipped: chunks outside of the map, by tile of 16 rows m, and output rows that do
// not see b, by pairs.
//
// Set by the host: MODE, VECTOR, TILES (of 16 rows m) and ROWS (of outputs) a warp, WARPS, STAGES
// (pairs of rows in the ring of rows in shared memory).
#define THREADS (WARPS * 32)
#ifdef EMULATED
#include "emulator.h"
#else
#include "primitives.cuh"
#endif
#include "stage.cuh"

// Filled in by plan.py, field by field.
struct Forward {
  const T *x, *w, *bias;  // bias may be null
  T *y;
  u64 image_step, out_step;  // elements from one image to the next
  int channels, images, height, width, out_height, out_width;
  int kh, kw, top, left;
  int part_kh, part_kw;          // the kernel is cut into parts that fit into shared memory
  int log_images, log_patches;   // images and patches of a block
  int tiles_i, tiles_j;          // blocks down and right
  int whole;                     // all rows that a block sees are there at once: no ring
  int clip_rows, clip_chunks;    // whether what is outside of the map is left out of there
  int chunks, chunk_bytes, row_bytes;
  int core_rows;                 // of a table: u from -1 on
  int table_bytes, x_start;      // in shared memory: tables first
  int relu;
};

// Output rows G0 to G0 + NG - 1 of each tile, counted from the last one up, from two input rows.
template <int G0, int NG>
DEVICE void products(float (&acc)[TILES][ROWS][4], const u32 (&left)[TILES], const int (&low)[TILES],
                     const int (&high)[TILES], u32 cores, u32 chunk_bytes, u32 core_step, int first,
                     int last, u32 low_part) {
#pragma unroll 1
  for (int c = first; c < last; ++c) {
    u32 x[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; ++i)
      if (c >= low[i] && c < high[i]) load_matrices(x[i], left[i] + c * chunk_bytes);
    const u32 from = cores + c * core_step;
#pragma unroll
    for (int pass = 0; pass < (MODE == 3 ? 2 : 1); ++pass) {
      u32 w[NG + 4];
#pragma unroll
      for (int g = 0; g < NG + 1; g += 4) {
        const u32 at = from + pass * low_part + g * 128;
        if (g == NG) {
          load_matrix(w[g], at);
        } else {
          u32 four[4];
          load_matrices(four, at);
#pragma unroll
          for (int q = 0; q < 4; ++q) w[g + q] = four[q];
        }
      }
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        if (c < low[i] || c >= high[i]) continue;
#if MODE >= 2
        u32 big[4];
#if MODE == 3
        u32 small[4];
#endif
#pragma unroll
        for (int q = 0; q < 4; ++q) {
#if MODE == 2
          big[q] = near_tf32(x[i][q]);
#else
          big[q] = to_tf32(x[i][q]);
          small[q] = near_tf32(bits_of(float_of(x[i][q]) - float_of(big[q])));
#endif
        }
#endif
#pragma unroll
        for (int g = 0; g < NG; ++g) {
#if MODE < 2
          multiply(acc[i][G0 + g], x[i][0], x[i][1], x[i][2], x[i][3], w[g], w[g + 1]);
#else
          multiply(acc[i][G0 + g], big[0], big[1], big[2], big[3], w[g], w[g + 1]);
#endif
        }
#if MODE == 3
        if (pass == 0) {
#pragma unroll
          for (int g = 0; g < NG; ++g)
            multiply(acc[i][G0 + g], small[0], small[1], small[2], small[3], w[g], w[g + 1]);
        }
#endif
      }
    }
  }
}

// `products` of the groups that see a pair of rows: from the first (up to NG) or the last ones.
template <int NG> struct Choose {
  template <class... A> DEVICE static void up(int n, A &...a) {
    if (n == NG) products<ROWS - NG, NG>(a...); else Choose<NG - 2>::up(n, a...);
  }
  template <class... A> DEVICE static void down(int n, A &...a) {
    if (n == NG) products<0, NG>(a...); else Choose<NG - 2>::down(n, a...);
  }
};
template <> struct Choose<0> {
  template <class... A> DEVICE static void up(int, A &...) {}
  template <class... A> DEVICE static void down(int, A &...) {}
};

// The cores of a part of the kernel, and behind them what TF32 cuts off of them.
DEVICE void build_cores(const Forward &p, u32 to, const T *w, int u0, int v0, int kh, int kw,
                        int chunks, int skew) {
  for (int c = 0; c < chunks; ++c)
    for (int q = thread_index(); q < p.core_rows * 8; q += THREADS) {
      const int u = (q >> 3) - 1, first = CHUNK * c - (q & 7) - skew;
      float values[CHUNK];
      u32 words[4];
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const int v = first + k;
        const bool inside = u >= 0 && u < kh && v >= 0 && v < kw;
        values[k] = inside ? to_float(load(w + (u0 + u) * p.kw + v0 + v)) : 0.f;
      }
      const u32 at = to + (c * p.core_rows * 8 + q) * 16;
#if MODE < 2
#pragma unroll
      for (int k = 0; k < 4; ++k) words[k] = pack(values[2 * k], values[2 * k + 1]);
#else
#pragma unroll
      for (int k = 0; k < 4; ++k) words[k] = to_tf32(bits_of(values[k]));
#if MODE == 3
      u32 rest[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        rest[k] = to_tf32(bits_of(values[k] - float_of(words[k])));
      store_shared4(at + p.table_bytes, rest);
#endif
#endif
      store_shared4(at, words);
    }
}

DEVICE float finished(const Forward &p, float v, float bias) {
  v += bias;
  return p.relu && v < 0.f ? 0.f : v;
}

// One output as a plain sum, for where zero blocks have met Inf or NaN.
DEVICE float plain_sum(const Forward &p, const T *x, const T *w, int row, int column) {
  float sum = 0.f;
#pragma unroll 1
  for (int u = 0; u < p.kh; ++u) {
    const int r = row + u - p.top;
    if (r < 0 || r >= p.height) continue;
#pragma unroll 1
    for (int v = most(0, p.left - column); v < least(p.kw, p.width + p.left - column); ++v)
      sum += to_float(load(x + (u64)r * p.width + column + v - p.left))
             * to_float(load(w + u * p.kw + v));
  }
  return sum;
}

KERNEL(forward, Forward) {
  const u32 base = shared_start();
  const int lane = thread_index() & 31, warp = warp_index();
  int id = block_index();
  const int tile_j = id % p.tiles_j; id /= p.tiles_j;
  const int tile_i = id % p.tiles_i; id /= p.tiles_i;
  const int channel = id % p.channels, image0 = id / p.channels << p.log_images;
  const int patches = 1 << p.log_patches;
  const int blocks = (TILES * 16 * WARPS) >> (p.log_images + p.log_patches);
  const int i0 = tile_i * blocks * ROWS, j0 = tile_j * patches * 8;
  const T *x = p.x + image0 * p.image_step + (u64)channel * p.height * p.width;
  const T *w = p.w + (u64)channel * p.kh * p.kw;

  // What the 16 rows of each tile are. Every other tile takes the patches in the other direction,
  // as those at the edges of the map have less to do.
  const bool mirrored = p.log_images >= 5 && TILES > 1;
  int patch_low[TILES], patch_high[TILES], block_low[TILES];
  u32 place[TILES];  // of the lane's row m in shared memory
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const int m = (warp * TILES + i) * 16, turn = mirrored && i & 1 ? patches - 1 : 0;
    const int mine = m + (lane & 15), end = m + 15;
    patch_low[i] = ((m >> p.log_images) & (patches - 1)) ^ turn;
    patch_high[i] = ((end >> p.log_images) & (patches - 1)) ^ turn;
    block_low[i] = m >> (p.log_images + p.log_patches);
    const int patch = ((mine >> p.log_images) & (patches - 1)) ^ turn;
    place[i] = (mine & ((1 << p.log_images) - 1)) * 16 + patch * PATCH * p.chunk_bytes
               + ((mine >> (p.log_images + p.log_patches)) * ROWS + (lane >> 4)) * p.row_bytes;
  }

  float acc[TILES][ROWS][4];
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int g = 0; g < ROWS; ++g)
#pragma unroll
      for (int q = 0; q < 4; ++q) acc[i][g][q] = 0.f;

  const u32 rows = base + p.x_start;
  const Stage stage = {p.log_images, p.chunks, p.chunk_bytes, p.row_bytes};
  const int images = p.images - image0;
  for (int u0 = 0; u0 < p.kh; u0 += p.part_kh)
    for (int v0 = 0; v0 < p.kw; v0 += p.part_kw) {
      const int kh = least(p.part_kh, p.kh - u0), kw = least(p.part_kw, p.kw - v0);
      const int before = multiple(p.left - v0, CHUNK), skew = before - (p.left - v0);
      const int chunks = (8 + kw - 1 + skew + CHUNK - 1) / CHUNK;
      const int r0 = i0 - (p.top - u0);  // the first input row
      // Rows are counted by b = r - r0, and start at an even one.
      const int begin = p.clip_rows ? most(0, -r0) & ~1 : 0;
      const int end = least(blocks * ROWS + kh - 1, p.clip_rows ? p.height - r0 : 1 << 30);
      const int skipped = p.clip_chunks ? most(0, (before - j0) / CHUNK) : 0;  // chunks on the left
      const int column = j0 - before + skipped * CHUNK;

      BARRIER();  // nobody reads the last part's rows and cores any more
      auto fetch = [&](int b, int slot, int count) {
        stage_rows<THREADS, VECTOR>(stage, rows + slot * p.row_bytes, x, p.image_step, images,
                            least(p.height, r0 + end), p.width, r0 + b, count, column);
        copies_end();
      };
      int first = begin, last = end, head = 2 * STAGES - 2;
      if (p.whole) {
        if (end > begin) fetch(begin, 0, (end - begin + 1) & ~1);
      } else {
        for (int q = 0; q < STAGES - 1; ++q) fetch(begin + 2 * q, 2 * q, 2);
      }
      build_cores(p, base, w, u0, v0, kh, kw, chunks, skew);
      if (p.whole) {
        copies_wait<0>();
        BARRIER();
        if (p.clip_rows) {  // of this warp's block of rows
          first = most(0, -(r0 + block_low[0] * ROWS)) & ~1;
          last = p.height - r0 - block_low[0] * ROWS;
        }
        last = least(last, ROWS + kh - 1);
      }

      // Chunks that each tile sees.
      int low[TILES], high[TILES], c_low = chunks, c_high = 0;
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        const int ja = j0 + 8 * least(patch_low[i], patch_high[i]);
        // Patches behind the last column have nothing to compute.
        const int jb = least(j0 + 8 * most(patch_low[i], patch_high[i]),
                             (p.out_width - 1) & ~7);
        low[i] = most(0, (before - jb) / CHUNK);
        high[i] = least(chunks, (p.width - ja + before + CHUNK - 1) / CHUNK);
        if (ja >= p.out_width || p.width - ja + before <= 0) low[i] = high[i] = 0;
        if (low[i] < high[i]) {
          c_low = least(c_low, low[i]);
          c_high = most(c_high, high[i]);
        }
      }

      const u32 core_step = p.core_rows * 128;
      int slot = p.whole ? first - begin : 0;
      for (int b = first; b < last; b += 2) {
        if (!p.whole) {
          copies_wait<STAGES - 2>();
          BARRIER();
          fetch(b + 2 * (STAGES - 1), head, 2);
          head = head + 2 == 2 * STAGES ? 0 : head + 2;
        }
        // Output rows that see b or b + 1.
        const int a_high = least(ROWS - 1, b + 1);
        const int a_low = a_high < ROWS - 1 ? 0 : most(0, b - kh + 1) & ~1;
        u32 left[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i)
          left[i] = rows + slot * p.row_bytes + place[i] - skipped * p.chunk_bytes;
        u32 cores = base + (b - a_high + 1) * 128 + (lane & 7) * 16 + (lane >> 3) * 128;
        const int n = a_high - a_low + 1;
        u32 chunk_bytes = p.chunk_bytes, low_part = p.table_bytes;
        if (a_low == 0)
          Choose<ROWS>::up(n, acc, left, low, high, cores, chunk_bytes, core_step, c_low, c_high,
                           low_part);
        else
          Choose<ROWS - 2>::down(n, acc, left, low, high, cores, chunk_bytes, core_step, c_low,
                                 c_high, low_part);
        slot += 2;
        if (!p.whole && slot == 2 * STAGES) slot = 0;
      }
      copies_wait<0>();
    }

  const float bias = p.bias ? to_float(load(p.bias + channel)) : 0.f;
  T *y = p.y + image0 * p.out_step + (u64)channel * p.out_height * p.out_width;
  const bool pairs = (p.out_width & 1) == 0;
  bool bad = false;
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int m = (warp * TILES + i) * 16 + h * 8 + (lane >> 2);
      const int turn = mirrored && i & 1 ? patches - 1 : 0;
      const int image = m & ((1 << p.log_images) - 1);
      const int j = j0 + 8 * (((m >> p.log_images) & (patches - 1)) ^ turn) + (lane & 3) * 2;
      const int block = i0 + (m >> (p.log_images + p.log_patches)) * ROWS;
      if (image >= images || j >= p.out_width) continue;
      T *to = y + image * p.out_step + j;
#pragma unroll
      for (int g = 0; g < ROWS; ++g) {
        const int row = block + ROWS - 1 - g;
        if (row >= p.out_height) continue;
        const float one = acc[i][g][2 * h], two = acc[i][g][2 * h + 1];
        bad |= !is_finite(one) || !is_finite(two);
        const float a = finished(p, one, bias), b = finished(p, two, bias);
        if (pairs) {
          store_pair(to + row * p.out_width, a, b);
        } else {
          store(to + row * p.out_width, rounded(a));
          if (j + 1 < p.out_width) store(to + row * p.out_width + 1, rounded(b));
        }
      }
    }
  if (!bad) return;
  // Inf or NaN in this thread's outputs: each is computed anew.
#pragma unroll 1
  for (int e = 0; e < TILES * 2 * ROWS * 2; ++e) {
    const int i = e / (4 * ROWS), h = e / (2 * ROWS) & 1, g = e / 2 % ROWS;
    const int m = (warp * TILES + i) * 16 + h * 8 + (lane >> 2);
    const int turn = mirrored && i & 1 ? patches - 1 : 0;
    const int image = m & ((1 << p.log_images) - 1);
    const int j = j0 + 8 * (((m >> p.log_images) & (patches - 1)) ^ turn) + (lane & 3) * 2 + (e & 1);
    const int row = i0 + (m >> (p.log_images + p.log_patches)) * ROWS + ROWS - 1 - g;
    if (image >= images || j >= p.out_width || row >= p.out_height) continue;
    T *to = y + image * p.out_step + row * p.out_width + j;
    if (is_finite(to_float(load_back(to)))) continue;
    note_plain_sum();
    store_again(to, rounded(finished(p, plain_sum(p, x + image * p.image_step, w, row, j), bias)));
  }
}
