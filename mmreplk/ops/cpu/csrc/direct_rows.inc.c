// The direct sum with lanes along the width: for maps in NCHW order at least about a vector wide, or
// with too few channels to fill a vector.

// Bytes of input rows that are copied at once; the latter where rows of outputs share none.
enum { ROWS_TILE = 160 << 10, ROWS_FEW = 8 << 10 };

// `count` floats, `step` apart in x, to y and back. Rows are short: a call of memcpy would cost more.
INLINE void row_copy(const float *x, int64_t count, float *y) {
  int64_t i = 0;
  for (; i + VF <= count; i += VF) store(y + i, load(x + i));
  if (i < count) store_part(y + i, load_part(x + i, count - i), count - i);
}
INLINE void row_in(const float *x, int64_t step, int64_t count, float *y) {
  if (step == 1) row_copy(x, count, y);
  else
    for (int64_t i = 0; i < count; i++) y[i] = x[i * step];
}
INLINE void row_out(const float *x, int64_t count, float *y, int64_t step) {
  if (step == 1) row_copy(x, count, y);
  else
    for (int64_t i = 0; i < count; i++) y[i * step] = x[i];
}

// One plane of a map, in either order.
INLINE const float *plane(const struct geometry *g, const float *x, int64_t image, int64_t channel,
                          int64_t channels, int64_t pixels) {
  return x + (g->channels_last ? image * pixels * channels + channel
                               : (image * channels + channel) * pixels);
}

// Where an input row lies in scratch: `left` zeros, the map, zeros to the end.
struct padded {
  int64_t left, pitch;
};

// `spare`: lanes that a block may read beyond the columns that it needs, on either side.
static struct padded padded(const struct geometry *g, int64_t vectors, int64_t spare) {
  struct padded p;
  int64_t end = vectors * VF - g->left + (g->kernel_w - 1) * g->dil_w;
  p.left = min64(g->left, spare);
  p.pitch = p.left + max64(g->width, min64(end, g->width + spare));
  p.pitch = (ceil_div(p.pitch, 16) | 1) * 16;  // odd: see lanes_plan()
  return p;
}

// Input rows [lo, hi) of a phase.
static void band_in(const struct geometry *g, const float *x, struct padded p, int64_t phase,
                    int64_t lo, int64_t hi, float *to) {
  int64_t step = g->channels_last ? g->channels : 1;
  for (int64_t t = lo; t < hi; t++, to += p.pitch) {
    clear(to, p.left);
    row_in(x + (t * g->dil_h + phase - g->top) * g->width * step, step, g->width, to + p.left);
    clear(to + p.left + g->width, p.pitch - p.left - g->width);
  }
}

// -- forward: an item is a band of rows of one plane -----------------------------------------------

struct rows_plan {
  int64_t planes, phases, bands, band, vectors, blocks, columns, x_rows;
  struct padded pad;
};

static struct rows_plan rows_plan(const struct geometry *g) {
  struct rows_plan p;
  p.planes = g->batch * g->channels * g->multiplier;
  p.phases = min64(g->dil_h, g->out_h);
  p.vectors = ceil_div(g->out_w, VF);
  int64_t most = stream_most(g);
  p.blocks = ceil_div(p.vectors, most ? most : COLUMNS);
  p.columns = ceil_div(p.vectors, p.blocks);
  p.pad = padded(g, p.vectors, p.columns * VF);
  int64_t rows = ceil_div(g->out_h, g->dil_h);
  int64_t fits = max64(ROWS_TILE / (4 * p.pad.pitch) - g->kernel_h + 1, 2 * ROWS);
  int64_t others = p.planes * p.phases, work = others * rows * p.vectors * g->kernel_h * g->kernel_w;
  int64_t wanted = min64(16, work >> 14);
  p.bands = ceil_div(rows, fits);
  if (others * p.bands < wanted)
    p.bands = max64(p.bands, min64(ceil_div(rows, 2 * ROWS), ceil_div(wanted, others)));
  // Bands of whole blocks.
  p.band = min64(rows, ceil_div(ceil_div(rows, p.bands), ROWS) * ROWS);
  p.bands = ceil_div(rows, p.band);
  p.x_rows = p.band + g->kernel_h - 1;
  return p;
}

static int64_t rows_items(const struct work *k) {
  struct rows_plan p = rows_plan(&k->g);
  return p.planes * p.phases * p.bands;
}

static size_t rows_scratch(const struct work *k) {
  struct rows_plan p = rows_plan(&k->g);
  // stream_aligned() reads whole lines, up to one on either side.
  return 4 * (p.x_rows * p.pad.pitch + ROWS * COLUMNS * VF + k->g.kernel_h * k->g.kernel_w + 2 * VF);
}

// A band by streams: output rows [top, bottom) from input rows [lo, hi), which x holds.
static void rows_stream(const struct geometry *g, const struct rows_plan *p, int64_t top, int64_t bottom,
                        int64_t lo, int64_t hi, const float *x, const float *w, vf bias, float *out,
                        int64_t row) {
  struct stream s = {.x_row = p->pad.pitch, .x_tap = g->dil_w, .w_tap = g->kernel_h, .first = lo - top,
                     .last = hi - top, .rows = bottom - top, .y_row = row, .relu = g->relu != 0,
                     .bias = bias};
  for (int64_t n = 0; n < p->blocks; n++) {
    int64_t j = split(p->vectors, p->blocks, n) * VF, end = split(p->vectors, p->blocks, n + 1) * VF;
    int64_t va, vb;
    met_taps(j, end, g->left, g->dil_w, g->width, g->kernel_w, &va, &vb);
    s.taps = vb - va;
    s.x = x + j + va * g->dil_w - g->left + p->pad.left;
    s.w = w + va * s.w_tap;
    s.y = out + j;
    s.end = min64(VF, g->out_w - (end - VF));
    streams[g->kernel_h][(end - j) / VF](&s);
  }
}

static void rows_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  struct rows_plan p = rows_plan(g);
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t band = item % p.bands, phase = item / p.bands % p.phases;
  int64_t channel = item / p.bands / p.phases % outputs, image = item / p.bands / p.phases / outputs;
  int64_t step = g->channels_last ? outputs : 1;
  const float *in = plane(g, k->x, image, channel / g->multiplier, g->channels, g->height * g->width);
  float *out = (float *)plane(g, k->y, image, channel, outputs, g->out_h * g->out_w);
  float *part = scratch, *x = part + ROWS * COLUMNS * VF, *w = x + p.x_rows * p.pad.pitch;
  const float *weights = k->w + channel * taps;
  float bias = k->bias ? k->bias[channel] : 0.0f;

  int64_t top = band * p.band;
  int64_t bottom = min64(top + p.band, ceil_div(g->out_h - phase, g->dil_h));
  if (top >= bottom) return;
  if (!all_finite(weights, taps)) {
    for (int64_t i = top * g->dil_h + phase; i <= (bottom - 1) * g->dil_h + phase; i += g->dil_h)
      plain_tile(g, in, g->channels_last ? g->channels : 1, weights, bias, out, step, i, i + 1, 0,
                 g->out_w);
    return;
  }
  for (int64_t u = 0; u < g->kernel_h; u++)
    for (int64_t v = 0; v < g->kernel_w; v++) w[v * g->kernel_h + u] = weights[u * g->kernel_w + v];
  int64_t lo, hi;
  phase_rows(g, phase, &lo, &hi);
  int64_t row = g->dil_h * g->out_w * step;
  out += (top * g->dil_h + phase) * g->out_w * step;
  if (stream_most(g) && g->kernel_h == 1) {
    // Rows do not share any input: a few at a time, while the next ones come from memory.
    int64_t few = ceil_div(ROWS_FEW / (4 * p.pad.pitch), STREAM_COLUMNS) * STREAM_COLUMNS;
    for (int64_t i = top; i < bottom; i += few, out += few * row) {
      int64_t end = min64(i + few, bottom), first = max64(lo, i), last = max64(min64(hi, end), first);
      band_in(g, in, p.pad, phase, first, last, x);
      if (g->dil_h == 1) {
        const float *next = in + (last - g->top) * g->width;
        for (int64_t n = 0; n < few * g->width; n += 16) __builtin_prefetch(next + n);
      }
      rows_stream(g, &p, i, end, first, last, x, w, splat(bias), out, row);
    }
    return;
  }
  lo = max64(lo, top);
  hi = min64(hi, bottom - 1 + g->kernel_h);
  band_in(g, in, p.pad, phase, lo, hi, x);
  if (stream_most(g)) {
    rows_stream(g, &p, top, bottom, lo, hi, x, w, splat(bias), out, row);
    return;
  }
  struct block b = {.x_row = p.pad.pitch, .x_tap = g->dil_w, .w_tap = g->kernel_h,
                    .tap_rows = g->kernel_h, .y_column = VF, .relu = g->relu != 0, .bias = splat(bias)};
  for (int64_t i = top; i < bottom; i += ROWS, out += ROWS * row) {
    b.rows = min64(ROWS, bottom - i);
    int64_t first = max64(lo, i);
    b.first = first - i;
    b.last = min64(hi, i + b.rows - 1 + g->kernel_h) - i;
    for (int64_t n = 0; n < p.blocks; n++) {
      int64_t j = split(p.vectors, p.blocks, n) * VF, end = split(p.vectors, p.blocks, n + 1) * VF;
      int64_t va, vb, count = min64(end, g->out_w) - j;
      met_taps(j, end, g->left, g->dil_w, g->width, g->kernel_w, &va, &vb);
      b.taps = vb - va;
      b.x = x + (first - lo) * b.x_row + j + va * g->dil_w - g->left + p.pad.left;
      b.w = w + va * b.w_tap + b.first;
      int whole = step == 1 && count == end - j;
      b.y = whole ? out + j : part;
      b.y_row = whole ? row : end - j;
      rows_block[(end - j) / VF](&b);
      if (!whole)
        for (int64_t r = 0; r < b.rows; r++)
          row_out(part + r * b.y_row, count, out + r * row + j * step, step);
    }
  }
}

// -- weight gradient: an item is one channel and some tap rows -------------------------------------

struct rows_grad_plan {
  int64_t channels, phases, bands, band, vectors, parts, part_rows, x_rows, g_tap;
  struct padded pad;
};

static struct rows_grad_plan rows_grad_plan(const struct geometry *g) {
  struct rows_grad_plan p;
  p.channels = g->channels * g->multiplier;
  p.phases = min64(g->dil_h, g->out_h);
  p.vectors = ceil_div(g->out_w, VF);
  p.pad = padded(g, p.vectors, VF + COLUMNS - 1);
  p.parts = min64(ceil_div(g->kernel_h, ROWS), ceil_div(8, p.channels));
  p.part_rows = ceil_div(g->kernel_h, p.parts);
  p.parts = ceil_div(g->kernel_h, p.part_rows);
  int64_t rows = ceil_div(g->out_h, g->dil_h);
  int64_t fits = (ROWS_TILE / 4 - p.part_rows * p.pad.pitch) / (p.pad.pitch + p.vectors * VF);
  // Few terms are added up in one register: see lanes_grad_plan().
  fits = min64(max64(fits, 2 * ROWS), ceil_div(1024, p.vectors));
  p.bands = ceil_div(rows, fits);
  p.band = ceil_div(rows, p.bands);
  p.bands = ceil_div(rows, p.band);
  p.x_rows = p.band + p.part_rows - 1;
  p.g_tap = (p.band | 1) * VF;
  return p;
}

static int64_t rows_grad_items(const struct work *k) {
  struct rows_grad_plan p = rows_grad_plan(&k->g);
  return p.channels * p.parts;
}

static size_t rows_grad_scratch(const struct work *k) {
  struct rows_grad_plan p = rows_grad_plan(&k->g);
  return 4 * (p.g_tap * p.vectors + p.part_rows * k->g.kernel_w * VF + p.x_rows * p.pad.pitch);
}

static void rows_grad_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  struct rows_grad_plan p = rows_grad_plan(g);
  int64_t outputs = p.channels, channel = item / p.parts;
  int64_t from = item % p.parts * p.part_rows, to = min64(from + p.part_rows, g->kernel_h);
  int64_t step = g->channels_last ? outputs : 1, count = (to - from) * g->kernel_w;
  float *sums = scratch, *gy = sums + p.part_rows * g->kernel_w * VF, *x = gy + p.g_tap * p.vectors;
  clear(sums, count * VF);
  int columns = g->dil_w > 1 ? 1 : (int)min64(COLUMNS, g->kernel_w);
  int64_t down_blocks = ceil_div(to - from, ROWS), across_blocks = ceil_div(g->kernel_w, columns);
  for (int64_t tile = 0; tile < g->batch * p.phases * p.bands; tile++) {
    int64_t band = tile % p.bands, phase = tile / p.bands % p.phases;
    int64_t image = tile / p.bands / p.phases;
    const float *in = plane(g, k->x, image, channel / g->multiplier, g->channels,
                            g->height * g->width);
    const float *grad = plane(g, k->gy, image, channel, outputs, g->out_h * g->out_w);
    int64_t top = band * p.band;
    int64_t bottom = min64(top + p.band, ceil_div(g->out_h - phase, g->dil_h));
    if (top >= bottom) continue;
    int64_t lo, hi;
    phase_rows(g, phase, &lo, &hi);
    lo = max64(lo, top + from);
    hi = min64(hi, bottom - 1 + to);
    if (lo >= hi) continue;
    band_in(g, in, p.pad, phase, lo, hi, x);
    // Vector n of gradient row i goes to gy[n][i]: a row of vectors is the column of "taps".
    for (int64_t i = top; i < bottom; i++) {
      const float *row = grad + (i * g->dil_h + phase) * g->out_w * step;
      for (int64_t n = 0; n < p.vectors; n++) {
        float *q = gy + n * p.g_tap + (i - top) * VF;
        int64_t here = min64(VF, g->out_w - n * VF);
        row_in(row + n * VF * step, step, here, q);
        clear(q + here, VF - here);
      }
    }
    struct block b = {.x_row = p.pad.pitch, .x_tap = VF, .w_tap = p.g_tap, .tap_rows = bottom - top,
                      .add = 1, .y_row = g->kernel_w * VF, .y_column = VF};
    for (int64_t r = 0; r < down_blocks; r++) {
      int64_t u = from + split(to - from, down_blocks, r);
      b.rows = from + split(to - from, down_blocks, r + 1) - u;
      int64_t first = max64(lo, u + top);
      b.first = first - u - top;
      b.last = min64(hi, u + b.rows - 1 + bottom) - u - top;
      for (int64_t c = 0; c < across_blocks; c++) {
        int64_t v = split(g->kernel_w, across_blocks, c);
        int64_t next = split(g->kernel_w, across_blocks, c + 1);
        // Vectors some lane of which meets the map for some tap of the block.
        int64_t low = g->left - (next - 1) * g->dil_w, high = g->width + g->left - v * g->dil_w;
        int64_t na = max64(0, low) / VF, nb = min64(p.vectors, ceil_div(max64(0, high), VF));
        if (na >= nb) continue;
        b.taps = nb - na;
        b.x = x + (first - lo) * b.x_row + na * VF + v * g->dil_w - g->left + p.pad.left;
        b.w = gy + na * b.w_tap + b.first * VF;
        b.y = sums + (u - from) * b.y_row + v * VF;
        rows_grad_block[next - v](&b);
      }
    }
  }
  float *out = k->y + (channel * g->kernel_h + from) * g->kernel_w;
  for (int64_t t = 0; t < count; t++) out[t] = sum_lanes(load(sums + t * VF));
  if (!all_finite(out, count)) plain_grad(k, channel, from, to);
}
