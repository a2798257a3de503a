// The direct sum. Forward pass and weight gradient, with lanes along channels (direct_lanes.inc.c)
// or along the width (direct_rows.inc.c), are one and the same loop: a block of outputs, up to ROWS
// rows by COLUMNS vectors, stays in registers while input rows pass by. An input vector, once
// loaded, serves every output row of the block that it reaches, each with its own row of taps, and
// a weight serves every column. In a weight gradient the outputs are taps, and the output's
// gradient takes the place of the weights.
//
// Rows outside of the map are skipped; beside the map there are as many zeros in scratch as the
// lanes or columns of one block need, for taps that no output of the block needs are skipped too.
// Zeros must not meet an infinite factor (0 * Inf is NaN): such channels are done again, plainly.
//
// Dilation: outputs whose row differs by a multiple of dil_h share input rows. The rows of one such
// class, a phase, are treated like adjacent ones.

enum { ROWS = 6, COLUMNS = REGISTERS >= 32 ? 4 : 2 };

struct block {
  const float *x;           // output (0, 0), tap 0, input row `first`
  int64_t x_row, x_tap;     // floats from an input row, and from a tap, to the next
  const float *w;           // tap row `first`, tap 0; tap rows are adjacent: VF floats, or one
  int64_t w_tap;            // floats from a tap of a row to the next
  int64_t first, last;      // input rows, counted from that under output row 0 and tap row 0
  int64_t tap_rows, taps;
  int64_t rows;             // of outputs
  float *y;
  int64_t y_row, y_column;  // floats from an output to the next
  int add;                  // to what is in y, instead of to the bias
  int relu;                 // of the sum
  vf bias;
};

// One input row into output rows [a, b).
INLINE void pass_row(const int a, const int b, const int columns, const int across,
                     const int spread, vf *sum, const float *x, int64_t x_tap, const float *w,
                     int64_t w_tap, int64_t taps) {
  for (int64_t v = 0; v < taps; v++, x += x_tap, w += w_tap) {
    vf in[COLUMNS];
    UNROLL for (int c = 0; c < columns; c++) in[c] = load(x + c * across);
    if (b - a > 1)
      UNROLL for (int c = 0; c < columns; c++) HOLD(in[c]);
    UNROLL for (int r = a; r < b; r++) {
      vf t = spread ? splat(w[-r]) : load(w - r * VF);
      UNROLL for (int c = 0; c < columns; c++) sum[r * COLUMNS + c] += in[c] * t;
    }
  }
}

// A block of `columns` vectors `across` floats apart in x; spread: a weight is one float for all
// lanes. Which output rows an input row reaches differs at the top and bottom of the block: there
// is a loop for each case, so that sums never leave their registers.
INLINE void pass_block(const int columns, const int across, const int spread,
                       const struct block *k) {
  vf sum[ROWS * COLUMNS];
  // Two loops: a single one of 24 turns is not unrolled as a whole, which puts the sums into memory.
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int c = 0; c < COLUMNS; c++) sum[r * COLUMNS + c] = zero();
  const float *x = k->x, *w = k->w;
  for (int64_t t = k->first; t < k->last; t++, x += k->x_row, w += spread ? 1 : VF) {
    int a = (int)max64(0, t - k->tap_rows + 1), b = (int)min64(k->rows, t + 1);
#define CASE(a, b)                                                                          \
  case a * 8 + b:                                                                           \
    pass_row(a, b, columns, across, spread, sum, x, k->x_tap, w, k->w_tap, k->taps);        \
    break;
    switch (a * 8 + b) {
      CASE(0, 1) CASE(0, 2) CASE(0, 3) CASE(0, 4) CASE(0, 5) CASE(0, 6)
      CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5) CASE(1, 6)
      CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6)
      CASE(3, 4) CASE(3, 5) CASE(3, 6)
      CASE(4, 5) CASE(4, 6)
      CASE(5, 6)
    }
#undef CASE
  }
  UNROLL for (int r = 0; r < ROWS; r++) {
    if (r >= k->rows) break;
    UNROLL for (int c = 0; c < columns; c++) {
      float *y = k->y + r * k->y_row + c * k->y_column;
      store(y, relu_if(k->relu, sum[r * COLUMNS + c] + (k->add ? load(y) : k->bias)));
    }
  }
}

#define BLOCKS(name, across, spread)                                                        \
  NOINLINE void name##_1(const struct block *k) { pass_block(1, across, spread, k); }       \
  NOINLINE void name##_2(const struct block *k) { pass_block(2, across, spread, k); }       \
  NOINLINE void name##_3(const struct block *k) {                                           \
    pass_block(COLUMNS > 2 ? 3 : 1, across, spread, k);                                     \
  }                                                                                         \
  NOINLINE void name##_4(const struct block *k) {                                           \
    pass_block(COLUMNS > 3 ? 4 : 1, across, spread, k);                                     \
  }                                                                                         \
  static void (*const name[])(const struct block *) = {NULL, name##_1, name##_2, name##_3, name##_4}
BLOCKS(lanes_block, VF, 0);
BLOCKS(rows_block, VF, 1);
BLOCKS(rows_grad_block, 1, 0);

// -- geometry that both layouts share --------------------------------------------------------------

// Rows of one phase: row q stands for q * dilation + phase - before of the input, and rows
// [*lo, *hi) lie in the map.
INLINE void phase_rows(const struct geometry *g, int64_t phase, int64_t *lo, int64_t *hi) {
  int64_t gap = g->top - phase, end = g->height + gap;
  *lo = gap > 0 ? ceil_div(gap, g->dil_h) : 0;
  *hi = end > 0 ? ceil_div(end, g->dil_h) : 0;
  if (*hi < *lo) *hi = *lo;
}

INLINE int64_t split(int64_t size, int64_t parts, int64_t part) { return size * part / parts; }

// Whether a sum of the values times 0 is 0: no NaN, no Inf.
static int all_finite(const float *p, int64_t count) {
  vf seen = zero();
  int64_t i = 0;
  for (; i + VF <= count; i += VF) seen += load(p + i) * 0.0f;
  float rest = 0.0f;
  for (; i < count; i++) rest += p[i] * 0.0f;
  for (int l = 0; l < VF; l++) rest += seen[l];
  return rest == 0.0f;
}
