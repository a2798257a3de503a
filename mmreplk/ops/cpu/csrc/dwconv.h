// The contract between the Python module (module.c), which splits work among threads, and the
// kernels, each of which is compiled once for every instruction set (see simd.h).
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

// One depth-wise convolution of stride 1 in float32, with c the output channel:
//   y[n,c,i,j] = bias[c] + sum_{u,v} x[n, c / multiplier, i + u*dil_h - top, j + v*dil_w - left] * w[c,u,v]
// where reads outside the map are 0. Maps are dense, in NCHW order or, with channels_last, in NHWC
// order; input, output and its gradient share the order. Weights are [output channel][row][column].
// All sizes are at least 1; top, left >= 0; the padding at the bottom and right is implied by out_h
// and out_w. Element counts can exceed 2^31: every index is an int64_t.
// kernels.py packs this struct: keep the two in step.
struct geometry {
  int64_t channels_last, batch, channels, height, width, multiplier;
  int64_t kernel_h, kernel_w, top, left, dil_h, dil_w, out_h, out_w;
  // FFT kernels: points of the transform, down and right, and outputs of one tile.
  int64_t points_h, points_w, tile_h, tile_w;
  int64_t relu;  // forward: whether y is max(0, the above) instead; NaN stays NaN
  // FFT kernels, see fft_guard.inc.c: the cells of a tile's input and, for FFT_BACKWARD, of its output
  // gradient. 0: none are needed, each output sees all of a tile; -1: none serve.
  int64_t cell_h, cell_w, back_h, back_w;
  int64_t worth;  // FFT_FORWARD: the time of direct sums in that of FFT convolutions, in parts of 1024
};

struct work {
  struct geometry g;
  const float *x;
  const float *w;         // weights; for the FFT's forward, those behind the spectrum
  const float *spectrum;
  const float *bias;      // one per output channel, or NULL
  const float *gy;        // gradient of the output (weight gradients only)
  float *y;               // output map, weight gradient or spectrum
  // FFT's weight gradients: one per output channel, set to 1 if some of its planes have contrast in which taps
  // may drown (fft_guard.inc.c), else to 0. FFT_FORWARD: one per tile of each output plane, 0 before, set to 1
  // for tiles that would take more passes or that hold NaN or Inf. The caller sums such channels or tiles directly.
  float *doubt;
  const struct plan *plan_h, *plan_w;
  // Both gradients in one (FFT_BACKWARD; y is the weights' then, multiplier is 1):
  float *gx;                  // gradient of the input, 0 before
  const struct work *second;  // another kernel on the same input, with its own w, gy and y, or NULL
  atomic_int *broken;         // set to 1 if gx is wrong: NaN, Inf, or contrast (fft_guard.inc.c)
};

// A kernel is three functions of the work: how many independent items there are, how many bytes
// of 64-byte aligned scratch a thread needs, and one that does a single item. Items write disjoint
// memory and the order of additions inside an item is fixed, so the result does not depend on the
// number of threads.
struct kernel {
  int64_t (*items)(const struct work *);
  size_t (*scratch)(const struct work *);
  void (*run)(const struct work *, int64_t item, void *scratch);
};

enum {
  LANES_FORWARD, LANES_WEIGHT_GRAD,  // the direct sum with channels in the lanes
  ROWS_FORWARD, ROWS_WEIGHT_GRAD,    // the direct sum with the pixels of a row in the lanes
  FFT_SPECTRUM, FFT_FORWARD, FFT_WEIGHT_GRAD, FFT_BACKWARD,
  KERNELS
};

// What an instruction set offers.
struct isa {
  const char *name;
  int64_t lanes;
  struct kernel kernels[KERNELS];
};
extern const struct isa isa_baseline;
#ifdef __x86_64__
extern const struct isa isa_avx2, isa_avx512;
#endif

// Factors of a transform, its twiddle factors stage by stage, and where each frequency ends up.
enum { MAX_POINTS = 1 << 14, MAX_STAGES = 16 };
struct plan {
  int n, stages;
  int radix[MAX_STAGES];
  int twiddle_count;  // floats
  float *twiddles;    // per stage but the last, of block length m and radix r: [m / r][r - 1][re, im]
  int *place;       // place[k]: index of frequency k after the forward transform
};
// Made once and kept, 16 bytes a point or so; NULL if memory is short or n has a prime factor above 7. Not
// thread safe: module.c calls it with Python's lock held.
const struct plan *plan_of(int64_t n);
// The passes chosen for a length, and what they cost: see point_cost in module.c.
double plan_cost(int n, int *radix, int *stages);

// The forward pass over the taps that lie in the map, for one plane and a rectangle of outputs: slow,
// and right for every value. Where the fast kernels meet NaN or Inf.
void plain_tile(const struct geometry *g, const float *x, int64_t x_step, const float *w, float bias,
                float *y, int64_t y_step, int64_t row, int64_t row_end, int64_t column,
                int64_t column_end);
// The same for the gradient of output channel c's weights, tap rows [from, to).
void plain_grad(const struct work *k, int64_t c, int64_t from, int64_t to);

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Outputs o in [begin, end) of one axis at tap t read input o + t * dilation - before. Taps [lo, hi)
// of [0, taps) are those for which some output reads one of [0, size).
static inline void met_taps(int64_t begin, int64_t end, int64_t before, int64_t dilation, int64_t size,
                     int64_t taps, int64_t *lo, int64_t *hi) {
  int64_t low = before - (end - 1), high = size - 1 + before - begin;
  *lo = low > 0 ? ceil_div(low, dilation) : 0;
  *hi = high < 0 ? 0 : min64(taps, high / dilation + 1);
  if (*lo > *hi) *lo = *hi;
}
