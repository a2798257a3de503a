// The direct sum with channels in the lanes. Outputs are computed in blocks of two rows and a few
// columns whose sums stay in registers: an input vector, once loaded, serves both rows, and a weight
// vector serves all columns. Rows outside of the map are skipped; columns beside it are zeros in
// scratch. The gradient of the weights is the same sum with the output's gradient as the kernel.

#define JMAX ((REGISTERS - 4) / 2)

// One row of JB outputs: for each tap row a step of x_step in x and of w_step in w.
static inline __attribute__((always_inline)) void one_row(
    const int JB, const vf *x, int64_t x_step, const vf *w, int64_t w_step, int64_t rows,
    int64_t taps, int64_t dilation, vf *out) {
  vf a[JMAX];
#pragma GCC unroll 14
  for (int j = 0; j < JB; j++) a[j] = out[j];
  for (int64_t u = 0; u < rows; u++, x += x_step, w += w_step) {
    const vf *p = x;
    for (int64_t v = 0; v < taps; v++, p += dilation) {
      vf t = w[v];
#pragma GCC unroll 14
      for (int j = 0; j < JB; j++) a[j] += p[j] * t;
    }
  }
#pragma GCC unroll 14
  for (int j = 0; j < JB; j++) out[j] = a[j];
}

// Two rows: w points at the weights of the first for the first input row; those of the second lie
// one tap row before.
static inline __attribute__((always_inline)) void two_rows(
    const int JB, const vf *x, int64_t x_step, const vf *w, int64_t w_step, int64_t rows,
    int64_t taps, int64_t dilation, vf *out, vf *below) {
  vf a[JMAX], b[JMAX];
#pragma GCC unroll 14
  for (int j = 0; j < JB; j++) a[j] = out[j], b[j] = below[j];
  for (int64_t u = 0; u < rows; u++, x += x_step, w += w_step) {
    const vf *p = x, *q = w - w_step;
    for (int64_t v = 0; v < taps; v++, p += dilation) {
      vf s = w[v], t = q[v];
#pragma GCC unroll 14
      for (int j = 0; j < JB; j++) {
        vf r = p[j];
        a[j] += r * s;
        b[j] += r * t;
      }
    }
  }
#pragma GCC unroll 14
  for (int j = 0; j < JB; j++) out[j] = a[j], below[j] = b[j];
}

#define CASES(M) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14)
static void one_row_any(int jb, const vf *x, int64_t xs, const vf *w, int64_t ws,
                                  int64_t rows, int64_t taps, int64_t dilation, vf *out) {
#define CASE(n) case n: if (n <= JMAX) one_row(n <= JMAX ? n : 1, x, xs, w, ws, rows, taps, dilation, out); break;
  switch (jb) { CASES(CASE) }
}
static void two_rows_any(int jb, const vf *x, int64_t xs, const vf *w, int64_t ws,
                                   int64_t rows, int64_t taps, int64_t dilation, vf *out,
                                   vf *below) {
#define CASE(n) case n: if (n <= JMAX) two_rows(n <= JMAX ? n : 1, x, xs, w, ws, rows, taps, dilation, out, below); break;
  switch (jb) { CASES(CASE) }
}

// The sum over a band. x holds input rows [row0, row0 + rows) with zeros beside them, column
// j + v * dil_w of a row for output column j and tap v. Adds to y[(i - first) * out_w + j].
struct correlation {
  const vf *x, *w;
  vf *y;
  int64_t pitch, row0, rows, width;                 // of x; width: of the map, without zeros
  int64_t kernel_h, kernel_w, top, left, dil_h, dil_w;
  int64_t first, last, out_w;                       // output rows [first, last)
};

// Tap rows [*lo, *hi) of [0, count) whose input row exists, for output row i.
static inline void met_rows(const struct correlation *k, int64_t i, int64_t count,
                                      int64_t *lo, int64_t *hi) {
  int64_t base = i - k->top - k->row0;  // input row of tap row 0, within x
  *lo = base < 0 ? ceil_div(-base, k->dil_h) : 0;
  *hi = base >= k->rows ? 0 : min64(count, (k->rows - 1 - base) / k->dil_h + 1);
  *lo = min64(*lo, *hi < 0 ? 0 : *hi);
}

static void correlate(const struct correlation *k) {
  int64_t blocks = ceil_div(k->out_w, JMAX), step = k->dil_h * k->pitch;
  for (int64_t n = 0; n < blocks; n++) {
    int64_t j = n * k->out_w / blocks;
    int jb = (int)((n + 1) * k->out_w / blocks - j);
    // Taps for which some column of the block lies in the map.
    int64_t va = ceil_div(max64(0, k->left - j - jb + 1), k->dil_w);
    int64_t reach = k->width - 1 + k->left - j;
    int64_t vb = reach < 0 ? 0 : min64(k->kernel_w, reach / k->dil_w + 1);
    if (va >= vb) continue;
    const vf *w = k->w + va;
    for (int64_t residue = 0; residue < k->dil_h; residue++)
      for (int64_t i = k->first + residue; i < k->last; i += 2 * k->dil_h) {
        int pair = i + k->dil_h < k->last;
        vf *out = k->y + (i - k->first) * k->out_w + j, *below = out + k->dil_h * k->out_w;
        int64_t lo, hi;
        met_rows(k, i, k->kernel_h + pair, &lo, &hi);
        const vf *x = k->x + (i - k->top - k->row0) * k->pitch + j + va * k->dil_w;
        if (!pair) {
          one_row_any(jb, x + lo * step, step, w + lo * k->kernel_w, k->kernel_w,
                                hi - lo, vb - va, k->dil_w, out);
          continue;
        }
        // Row 0 of the taps belongs to the first output row alone, row kernel_h to the second.
        if (lo == 0 && hi > 0) {
          one_row_any(jb, x, step, w, k->kernel_w, 1, vb - va, k->dil_w, out);
          lo = 1;
        }
        int64_t both = min64(hi, k->kernel_h);
        if (lo < both)
          two_rows_any(jb, x + lo * step, step, w + lo * k->kernel_w, k->kernel_w,
                                 both - lo, vb - va, k->dil_w, out, below);
        if (hi > k->kernel_h && k->kernel_h >= lo)
          one_row_any(jb, x + k->kernel_h * step, step,
                                w + (k->kernel_h - 1) * k->kernel_w, k->kernel_w, 1, vb - va,
                                k->dil_w, below);
      }
  }
}

// Input rows [from, to) into x with zeros beside them; room is for (to - from) * width vectors.
static void gather_rows(const struct geometry *g, const struct view *v, int64_t from,
                                  int64_t to, int64_t pitch, vf *x, vf *room) {
  int64_t count = max64(0, min64(g->width, pitch - g->left));
  int narrow = g->width < 4 * VF && !v->together;  // then one long gather wastes fewer lanes
  if (narrow) gather(v, from * g->width, (to - from) * g->width, room);
  for (int64_t r = from; r < to; r++, x += pitch) {
    int64_t before = min64(g->left, pitch);
    for (int64_t c = 0; c < before; c++) x[c] = (vf){};
    if (narrow)
      for (int64_t c = 0; c < count; c++) x[g->left + c] = room[(r - from) * g->width + c];
    else if (count)
      gather(v, r * g->width, count, x + g->left);
    for (int64_t c = before + count; c < pitch; c++) x[c] = (vf){};
  }
}

static inline int64_t row_pitch(const struct geometry *g) {
  return g->out_w + (g->kernel_w - 1) * g->dil_w;
}
static inline int64_t band_rows(const struct geometry *g) {
  return min64(g->height, g->band + (g->kernel_h - 1) * g->dil_h);
}
static inline int64_t narrow_room(const struct geometry *g, int64_t rows) {
  return g->width < 4 * VF ? rows * g->width : 0;
}

// -- forward: an item is an image, VF channels and a band of output rows ---------------------------

static int64_t forward_items(const struct work *k) {
  const struct geometry *g = &k->g;
  return g->batch * ceil_div(g->channels * g->multiplier, VF) * ceil_div(g->out_h, g->band);
}

static size_t forward_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  int64_t rows = band_rows(g);
  return sizeof(vf) * (g->kernel_h * g->kernel_w + rows * row_pitch(g) +
                       g->band * g->out_w + narrow_room(g, rows));
}

static void forward_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier;
  int64_t bands = ceil_div(g->out_h, g->band), groups = ceil_div(outputs, VF);
  int64_t band = item % bands, group = item / bands % groups, image = item / bands / groups;
  int64_t first = band * g->band, last = min64(first + g->band, g->out_h);
  int64_t pitch = row_pitch(g), taps = g->kernel_h * g->kernel_w;

  vf *w = scratch, *y = w + taps, *x = y + g->band * g->out_w;
  vf *room = x + band_rows(g) * pitch;
  struct view in = view_of(g, k->x, image, group * VF, g->channels, g->multiplier,
                           g->height * g->width);
  struct view out = view_of(g, k->y, image, group * VF, outputs, 1, g->out_h * g->out_w);
  gather_weights(k->w, group * VF, outputs, taps, w);

  // Zeros beside the map must not meet an infinite weight, for 0 * Inf is NaN.
  vf finite = {};
  for (int64_t t = 0; t < taps; t++) finite += w[t] * 0.0f;
  for (int l = 0; l < in.lanes; l++)
    if (finite[l] != 0.0f) {
      for (l = 0; l < in.lanes; l++) {
        int64_t c = group * VF + l;
        plain_tile(g, in.lane[l], in.step, k->w + c * taps, k->bias ? k->bias[c] : 0.0f,
                   (float *)out.lane[l], out.step, first, last, 0, g->out_w);
      }
      return;
    }

  vf bias = {};
  if (k->bias) memcpy(&bias, k->bias + group * VF, sizeof(float) * in.lanes);
  for (int64_t t = 0; t < (last - first) * g->out_w; t++) y[t] = bias;
  int64_t from = max64(0, first - g->top);
  int64_t to = min64(g->height, last - 1 - g->top + (g->kernel_h - 1) * g->dil_h + 1);
  if (from < to) {
    gather_rows(g, &in, from, to, pitch, x, room);
    struct correlation sum = {x, w, y, pitch, from, to - from, g->width, g->kernel_h, g->kernel_w,
                              g->top, g->left, g->dil_h, g->dil_w, first, last, g->out_w};
    correlate(&sum);
  }
  scatter(&out, first * g->out_w, (last - first) * g->out_w, y);
}

// -- weight gradient, dilation 1: an item is VF channels ------------------------------------------

static int64_t weight_grad_items(const struct work *k) {
  return ceil_div(k->g.channels * k->g.multiplier, VF);
}

static size_t weight_grad_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  int64_t rows = band_rows(g);
  return sizeof(vf) * (g->kernel_h * g->kernel_w + rows * row_pitch(g) +
                       g->band * g->out_w + narrow_room(g, rows));
}

static void weight_grad_run(const struct work *k, int64_t group, void *scratch) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t pitch = row_pitch(g);
  vf *sums = scratch, *grad = sums + taps, *x = grad + g->band * g->out_w;
  vf *room = x + band_rows(g) * pitch;
  for (int64_t t = 0; t < taps; t++) sums[t] = (vf){};
  for (int64_t image = 0; image < g->batch; image++) {
    struct view in = view_of(g, k->x, image, group * VF, g->channels, g->multiplier,
                             g->height * g->width);
    struct view out = view_of(g, k->gy, image, group * VF, outputs, 1, g->out_h * g->out_w);
    // Bands bound the scratch, and the number of terms that are added up in one register.
    for (int64_t first = 0; first < g->out_h; first += g->band) {
      int64_t last = min64(first + g->band, g->out_h);
      int64_t from = max64(0, first - g->top);
      int64_t to = min64(g->height, last - 1 - g->top + g->kernel_h);
      if (from >= to) continue;
      gather_rows(g, &in, from, to, pitch, x, room);
      gather(&out, first * g->out_w, (last - first) * g->out_w, grad);
      struct correlation sum = {x, grad, sums, pitch, from, to - from, g->width, last - first,
                                g->out_w, g->top - first, g->left, 1, 1, 0, g->kernel_h,
                                g->kernel_w};
      correlate(&sum);
    }
  }
  struct geometry flat = {0};  // the gradient is [channel][tap]
  struct view w = view_of(&flat, k->y, 0, group * VF, outputs, 1, taps);
  scatter(&w, 0, taps, sums);
}
