// The direct sum for kernels of few rows, lanes along the width: input rows stream past the sums of the
// `kh` output rows that each of them reaches. All sums stay in registers; every row is read once, and
// there is nothing to set up between one output row and the next, which is what a 3x3 kernel would
// spend its time on in the blocks of direct.inc.c.

enum { STREAM_ROWS = 7, STREAM_COLUMNS = 8 };

// Vectors of a stream: as many sums, inputs and a weight as there are registers.
#define STREAM_MOST_(kh) ((REGISTERS - 4) / ((kh) + 1))
#define STREAM_MOST(kh) (STREAM_MOST_(kh) < STREAM_COLUMNS ? STREAM_MOST_(kh) : STREAM_COLUMNS)

struct stream {
  const float *x;           // input row `first`, under output 0 and tap 0
  int64_t x_row, x_tap;     // floats from an input row, and from a tap, to the next
  const float *w;           // tap 0; those of a column lie together
  int64_t w_tap;            // floats from a tap of a row to the next
  int64_t taps;             // of a row
  int64_t first, last;      // input rows, counted from that under output row 0 and tap row 0
  int64_t rows;             // of outputs
  float *y;
  int64_t y_row;            // floats from an output row to the next
  int64_t end;              // lanes of the last vector that are stored
  int relu;
  vf bias;
};

INLINE void stream_store(const int columns, const struct stream *k, int64_t row, const vf *sum) {
  float *y = k->y + row * k->y_row;
  UNROLL for (int c = 0; c < columns - 1; c++) store(y + c * VF, relu_if(k->relu, sum[c] + k->bias));
  store_part(y + (columns - 1) * VF, relu_if(k->relu, sum[columns - 1] + k->bias), k->end);
}

INLINE void stream_rows(const int kh, const int columns, const struct stream *k) {
  if (columns > STREAM_MOST(kh)) return;  // never called: nothing to compile
  vf sum[STREAM_ROWS][STREAM_COLUMNS];    // sum[u]: the output row that the current input row reaches at tap u
  UNROLL for (int u = 0; u < kh; u++)
    UNROLL for (int c = 0; c < columns; c++) sum[u][c] = zero();
  int64_t done = 0;  // the output row in sum[kh - 1]
  if (k->first < k->last) {
    done = k->first - kh + 1;
    for (int64_t r = 0; r < done; r++) stream_store(columns, k, r, sum[0]);  // above the map: 0
  }
  const float *row = k->x;
  for (int64_t t = k->first; t < k->last; t++, done++, row += k->x_row) {
    const float *x = row, *w = k->w;
    for (int64_t v = 0; v < k->taps; v++, x += k->x_tap, w += k->w_tap) {
      vf in[STREAM_COLUMNS];
      UNROLL for (int c = 0; c < columns; c++) in[c] = load(x + c * VF);
      UNROLL for (int c = 0; c < columns; c++) HOLD(in[c]);
      UNROLL for (int u = 0; u < kh; u++) {
        vf tap = splat(w[u]);
        UNROLL for (int c = 0; c < columns; c++) sum[u][c] += in[c] * tap;
      }
    }
    if (done >= 0) stream_store(columns, k, done, sum[kh - 1]);
    UNROLL for (int u = kh - 1; u > 0; u--)
      UNROLL for (int c = 0; c < columns; c++) sum[u][c] = sum[u - 1][c];
    UNROLL for (int c = 0; c < columns; c++) sum[0][c] = zero();
  }
  for (; done < k->rows; done++) {
    if (done >= 0) stream_store(columns, k, done, sum[kh - 1]);
    UNROLL for (int u = kh - 1; u > 0; u--)
      UNROLL for (int c = 0; c < columns; c++) sum[u][c] = sum[u - 1][c];
    UNROLL for (int c = 0; c < columns; c++) sum[0][c] = zero();
  }
}

// A single row of taps: output rows are independent, and several at once make up for short ones.
INLINE void stream_together(const int rows, const int columns, const struct stream *k, int64_t r) {
  vf sum[STREAM_COLUMNS][STREAM_COLUMNS];
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int c = 0; c < columns; c++) sum[i][c] = zero();
  const float *x = k->x + (r - k->first) * k->x_row, *w = k->w;
  for (int64_t v = 0; v < k->taps; v++, x += k->x_tap, w += k->w_tap) {
    vf tap = splat(*w);
    UNROLL for (int i = 0; i < rows; i++)
      UNROLL for (int c = 0; c < columns; c++) sum[i][c] += load(x + i * k->x_row + c * VF) * tap;
  }
  UNROLL for (int i = 0; i < rows; i++) stream_store(columns, k, r + i, sum[i]);
}

#if VF == 16
// As stream_together for taps, at least one, that lie side by side. Fifteen of sixteen loads of a vector lie across a
// cache line and take the time of two: every other vector is put together from the two lines that hold
// it instead, which another port of the CPU does.
INLINE void stream_aligned(const int rows, const int columns, const struct stream *k, int64_t r) {
  vf sum[STREAM_COLUMNS][STREAM_COLUMNS], line[STREAM_COLUMNS][STREAM_COLUMNS + 1];
  const float *x = k->x + (r - k->first) * k->x_row, *w = k->w, *end = w + k->taps * k->w_tap;
  int64_t from = (int64_t)((uintptr_t)x / sizeof(float) % VF);
  x -= from;
  UNROLL for (int i = 0; i < rows; i++) {
    UNROLL for (int c = 0; c < columns; c++) sum[i][c] = zero();
    UNROLL for (int c = 0; c <= columns; c++) line[i][c] = load(x + i * k->x_row + c * VF);
  }
#define STREAM_TAP(s)                                                                               \
  case s: {                                                                                         \
    vf tap = splat(*w);                                                                             \
    UNROLL for (int i = 0; i < rows; i++)                                                           \
      UNROLL for (int c = 0; c < columns; c++) {                                                    \
        vf in = s == 0 ? line[i][c] : s % 2 ? load(x + i * k->x_row + c * VF + s)                   \
                : (vf)_mm512_alignr_epi32((__m512i)line[i][c + 1], (__m512i)line[i][c], s);         \
        sum[i][c] += in * tap;                                                                      \
      }                                                                                             \
    if (++w == end) break;                                                                          \
  }
  for (;; from = 0) {
    switch (from) {
      STREAM_TAP(0) STREAM_TAP(1) STREAM_TAP(2) STREAM_TAP(3) STREAM_TAP(4) STREAM_TAP(5)
      STREAM_TAP(6) STREAM_TAP(7) STREAM_TAP(8) STREAM_TAP(9) STREAM_TAP(10) STREAM_TAP(11)
      STREAM_TAP(12) STREAM_TAP(13) STREAM_TAP(14) STREAM_TAP(15)
    }
    if (w == end) break;
    x += VF;
    UNROLL for (int i = 0; i < rows; i++) {
      UNROLL for (int c = 0; c < columns; c++) line[i][c] = line[i][c + 1];
      line[i][columns] = load(x + i * k->x_row + columns * VF);
    }
  }
#undef STREAM_TAP
  UNROLL for (int i = 0; i < rows; i++) stream_store(columns, k, r + i, sum[i]);
}
#endif

INLINE void stream_block(const int rows, const int columns, const struct stream *k, int64_t r) {
#if VF == 16
  if (k->x_tap == 1 && k->taps > 0) {
    stream_aligned(rows, columns, k, r);
    return;
  }
#endif
  stream_together(rows, columns, k, r);
}

INLINE void stream_row(const int columns, const struct stream *k) {
  const int rows = STREAM_COLUMNS / columns;
  const vf nothing[STREAM_COLUMNS] = {{0}};
  int64_t r = 0;
  for (; r < min64(k->first, k->rows); r++) stream_store(columns, k, r, nothing);  // above the map
  for (; r + rows <= k->last; r += rows) stream_block(rows, columns, k, r);
  // The last ones once more with those before them, rather than one at a time.
  if (r < k->last && k->last - rows >= max64(k->first, 0)) {
    stream_block(rows, columns, k, k->last - rows);
    r = k->last;
  }
  for (; r < k->last; r++) stream_block(1, columns, k, r);
  for (; r < k->rows; r++) stream_store(columns, k, r, nothing);
}

#define STREAM(kh, c)                                                          \
  NOINLINE void stream_##kh##_##c(const struct stream *k) {                    \
    if (kh == 1) stream_row(c, k);                                             \
    else stream_rows(kh, c, k);                                                \
  }
#define STREAMS(kh) STREAM(kh, 1) STREAM(kh, 2) STREAM(kh, 3) STREAM(kh, 4) STREAM(kh, 5) STREAM(kh, 6) \
    STREAM(kh, 7) STREAM(kh, 8)
STREAMS(1) STREAMS(2) STREAMS(3) STREAMS(4) STREAMS(5) STREAMS(6) STREAMS(7)
#define ENTRIES(kh)                                                                             \
  {NULL, stream_##kh##_1, stream_##kh##_2, stream_##kh##_3, stream_##kh##_4, stream_##kh##_5,   \
   stream_##kh##_6, stream_##kh##_7, stream_##kh##_8}
static void (*const streams[STREAM_ROWS + 1][STREAM_COLUMNS + 1])(const struct stream *) = {
  {NULL}, ENTRIES(1), ENTRIES(2), ENTRIES(3), ENTRIES(4), ENTRIES(5), ENTRIES(6), ENTRIES(7)};
#undef ENTRIES

// Whether a geometry is served by a stream, and in how many vectors at most.
INLINE int64_t stream_most(const struct geometry *g) {
  return g->kernel_h > STREAM_ROWS || g->channels_last ? 0 : STREAM_MOST(g->kernel_h);
}
