// The convolution as an FFT convolution, fused: a tile of VF channels is transformed, multiplied
// and transformed back while it is in the cache.
//
// A tile is a rectangle of outputs. Output o of a tile that begins at a stands at point o - a of the
// circle, input i at i - a, and the tap that reads at distance s = u * dilation - before at point s.
// kernels.py chooses the number of points such that no other pair of points meets.
//
// A pair of rows is transformed in a line of its own, in the first-level cache, and leaves its
// frequencies in two rows of the plane: column k of the plane, points_h points that follow one another, is
// frequency k of all rows. A column is transformed where it is.

struct tile {
  int64_t out, outs;  // outputs [out, out + outs)
  int64_t in, ins;    // inputs that some tap reads from them
};

static struct tile tile_of(int64_t index, int64_t size, int64_t outs, int64_t length, int64_t before,
                           int64_t kernel, int64_t dilation) {
  struct tile t;
  t.out = index * length;
  t.outs = min64(length, outs - t.out);
  t.in = min64(max64(0, t.out - before), size);
  t.ins = max64(0, min64(size, t.out + t.outs - before + (kernel - 1) * dilation) - t.in);
  return t;
}
static struct tile tile_rows(const struct geometry *g, int64_t index) {
  return tile_of(index, g->height, g->out_h, g->tile_h, g->top, g->kernel_h, g->dil_h);
}
static struct tile tile_columns(const struct geometry *g, int64_t index) {
  return tile_of(index, g->width, g->out_w, g->tile_w, g->left, g->kernel_w, g->dil_w);
}
static int64_t tile_count(const struct geometry *g) {
  return ceil_div(g->out_h, g->tile_h) * ceil_div(g->out_w, g->tile_w);
}

static inline int64_t frequencies(const struct geometry *g) { return g->points_w / 2 + 1; }

// Points from a column of the plane to the next. Rows are written across them: a pitch of 2 modulo 4
// points spreads these over all sets of the cache.
static inline int64_t pitch_of(const struct geometry *g) { return (g->points_h + 1) / 4 * 4 + 2; }

// Scratch, in floats: one row, the plane, the table of inverse_rows().
static inline int64_t row_room(const struct geometry *g) { return g->points_w * POINT; }
static inline int64_t plane_room(const struct geometry *g) {
  return frequencies(g) * pitch_of(g) * POINT;
}
static inline int64_t source_room(const struct geometry *g) {
  return g->points_w * (int64_t)(sizeof(struct source) / sizeof(float));
}

// A tile of a map: the spectra of its rows, at the points of `down` in the plane. The rest of the plane
// is left as it is. If not NULL: guard gets the squares of what was read; inputs above *limit count as 0.
static void rows_forward(const struct plan *plan, const struct view *v, int64_t width, int64_t row,
                         int64_t column, const struct arc *down, const struct arc *across, float *z,
                         float *plane, int64_t pitch, const struct guard *guard, const vf *limit) {
  for (int64_t t = 0; t < down->count; t += 2) {
    int64_t from = (row + t) * width + column;
    int64_t known = clear_rest(across, z);
    read_line(v, from, 2 * width, across, z);
    int two = t + 1 < down->count;
    if (two)
      read_line(v, from + width, 2 * width, across, z + VF);
    else
      for (int64_t j = 0; j < across->count; j++) store(z + on_circle(across, j) * POINT + VF, zero());
    if (guard) add_squares(guard, t, two, across, z);
    if (limit) drop_above(across, z, *limit), drop_above(across, z + VF, *limit);
    fft(plan, z, known);
    unpack(plan, z, pitch, two, plane + on_circle(down, t) * POINT,
           plane + on_circle(down, t + two) * POINT);
  }
}

// -- spectrum of the weights: an item is VF channels; result [group][frequency][row point] --------

static int64_t spectrum_items(const struct work *k) {
  return ceil_div(k->g.channels * k->g.multiplier, VF);
}
static size_t spectrum_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  return sizeof(float) *
         (size_t)(row_room(g) + g->kernel_h * g->kernel_w * VF + plane_room(g));
}

// Rows of taps [u, u + 2) on the circle.
static void place_taps(const struct geometry *g, const vf *w, int64_t u, int64_t v0, int64_t v1,
                       int two, float *z) {
  clear_points(z, 0, g->points_w);
  for (int64_t v = v0; v < v1; v++) {
    // A tap at distance s reads from s points ahead: it stands s points before the origin.
    int64_t at = (g->left - v * g->dil_w) % g->points_w;
    float *p = z + (at < 0 ? at + g->points_w : at) * POINT;
    store(p, w[u * g->kernel_w + v]);
    if (two) store(p + VF, w[(u + 1) * g->kernel_w + v]);
  }
}

// The spectrum of one group. z, plane, w: room for a row, a plane and all taps.
static void spectrum_of(const struct work *k, int64_t group, float *z, float *plane, vf *w, float *out) {
  const struct geometry *g = &k->g;
  int64_t f = frequencies(g), n = g->points_h, pitch = pitch_of(g);
  int64_t taps = g->kernel_h * g->kernel_w;
  struct view weights = weights_view(k->w, group * VF, g->channels * g->multiplier, taps);
  pixels_in(&weights, 0, 1, 0, taps, (float *)w, 0, VF);
  int64_t u0, u1, v0, v1;
  met_taps(0, g->out_h, g->top, g->dil_h, g->height, g->kernel_h, &u0, &u1);
  met_taps(0, g->out_w, g->left, g->dil_w, g->width, g->kernel_w, &v0, &v1);
  for (int64_t c = 0; c < f; c++) clear_points(plane + c * pitch * POINT, 0, n);
  for (int64_t u = u0; u < u1; u += 2) {
    int two = u + 1 < u1;
    int64_t at = arc_of(g->top - u * g->dil_h, 1, n).at;
    int64_t next = arc_of(g->top - (u + two) * g->dil_h, 1, n).at;
    place_taps(g, w, u, v0, v1, two, z);
    fft(k->plan_w, z, g->points_w);
    unpack(k->plan_w, z, pitch, two, plane + at * POINT, plane + next * POINT);
  }
  // The unpacking of row pairs doubles twice, here and in the map's; neither inverse is scaled.
  const vf scale = splat(0.25f / ((float)g->points_h * (float)g->points_w));
  for (int64_t c = 0; c < f; c++, out += n * POINT) {
    float *column = plane + c * pitch * POINT;
    fft(k->plan_h, column, n);
    for (int64_t t = 0; t < n * POINT; t += VF) store(out + t, load(column + t) * scale);
  }
}

static void spectrum_run(const struct work *k, int64_t group, void *scratch) {
  const struct geometry *g = &k->g;
  float *z = scratch, *plane = z + row_room(g);
  spectrum_of(k, group, z, plane, (vf *)(plane + plane_room(g)),
              k->y + group * frequencies(g) * g->points_h * POINT);
}

// -- forward: an item is an image, VF channels and a tile ------------------------------------------

static int64_t fft_items(const struct work *k) {
  const struct geometry *g = &k->g;
  return g->batch * ceil_div(g->channels * g->multiplier, VF) * tile_count(g);
}
// Floats of the sums of squares of a tile of rows x columns.
static int64_t squares_room(int64_t rows, int64_t columns, const struct geometry *g, int64_t cell_h,
                            int64_t cell_w) {
  if (cell_h <= 0) return 0;
  struct cells down = cells_of(rows, g->dil_h, cell_h), across = cells_of(columns, g->dil_w, cell_w);
  return all_cells(&down) * all_cells(&across) * VF;
}
// Floats of the lanes in which an output sees nothing or is to be done again, and of the points that a row of
// outputs sees.
static int64_t again_room(const struct geometry *g) {
  if (!g->cell_h) return 0;
  int64_t columns = min64(g->width, g->points_w);
  int64_t bits = (1 + MOST_PASSES) * g->tile_h * g->tile_w + columns + 2 * g->tile_w;
  return ceil_div(bits, 2 * VF) * VF;
}
// The lanes in which inputs are large, and points that outputs see are, lie where the transforms need room only
// later.
static int64_t plane_or_marks(const struct geometry *g) {
  int64_t rows = min64(g->height, g->points_h), columns = min64(g->width, g->points_w);
  int64_t bits = g->cell_h ? 2 * rows * columns + (rows + 2 * g->tile_h) * g->tile_w : 0;
  return max64(plane_room(g), ceil_div(bits, 2 * VF) * VF);
}

static size_t fft_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  return sizeof(float) *
         (size_t)(row_room(g) + plane_or_marks(g) + source_room(g) + again_room(g) +
                  squares_room(min64(g->height, g->points_h), min64(g->width, g->points_w), g, g->cell_h,
                               g->cell_w));
}

struct fft_tile {
  const struct work *k;
  int64_t group;
  struct view in, out;
  struct tile rows, columns;
  struct arc down, across;
  float *z, *plane;
  struct source *from;
  uint16_t *again;  // [1 + MOST_PASSES][outputs of a tile], and a line
  vf bias;
};

// From the tile's inputs, those above *limit left out, to the rows of its outputs, still transformed.
static void fft_product(const struct fft_tile *t, const struct guard *guard, const vf *limit) {
  const struct work *k = t->k;
  const struct geometry *g = &k->g;
  int64_t f = frequencies(g), n = g->points_h, pitch = pitch_of(g);
  rows_forward(k->plan_w, &t->in, g->width, t->rows.in, t->columns.in, &t->down, &t->across, t->z, t->plane,
               pitch, guard, limit);
  const float *spectrum = k->spectrum + t->group * f * n * POINT;
  for (int64_t c = 0; c < f; c++) {
    float *column = t->plane + c * pitch * POINT;
    int64_t known = clear_rest(&t->down, column);
    // The spectrum is the one thing here that comes from far away: it sets out while the column is
    // being transformed.
    for (int64_t p = 0; p < n * POINT; p += 16) __builtin_prefetch(spectrum + c * n * POINT + p, 0, 2);
    multiply(k->plan_h, column, known, spectrum + c * n * POINT);
  }
}

// Reads the tile once more, without transforming it: see mark_line().
static void mark_tile(const struct fft_tile *t, vf limit, uint16_t *big, uint16_t *some, struct sums *rest) {
  int64_t width = t->k->g.width;
  for (int64_t i = 0; i < t->rows.ins; i++) {
    read_line(&t->in, (t->rows.in + i) * width + t->columns.in, width, &t->across, t->z);
    mark_line(&t->across, t->z, limit, big + i * t->columns.ins, some ? some + i * t->columns.ins : NULL, rest);
  }
}

// Does again, in some lanes, the outputs that see nothing but inputs far below the level of the tile: the larger
// inputs, which they do not see, are left out, which takes the error with it. What is left can have such
// outputs in its turn. squares: the tile's sum. Returns lanes that are for the direct sum; these are left as they are.
static unsigned fft_again(const struct fft_tile *t, unsigned lanes, vf squares) {
  const struct geometry *g = &t->k->g;
  struct window down = met_window(t->rows.ins, t->rows.outs, t->rows.out - g->top - t->rows.in, g->kernel_h,
                                  g->dil_h);
  struct window across = met_window(t->columns.ins, t->columns.outs, t->columns.out - g->left - t->columns.in,
                                    g->kernel_w, g->dil_w);
  int64_t count = t->rows.outs * t->columns.outs, pixels = t->rows.ins * t->columns.ins;
  uint16_t *big = (uint16_t *)t->plane, *some = big + pixels, *reach = some + pixels;
  uint16_t *zeros = t->again, *low = zeros + count, *line = zeros + (1 + MOST_PASSES) * g->tile_h * g->tile_w;
  vf limits[1 + MOST_PASSES];
  if (lanes & ~bits_of((squares >= 0x1p-80f) & (squares <= 0x1p120f))) {
    struct sums all = {{0}, {0}};  // floats may not have held them
    mark_tile(t, splat(__builtin_inff()), big, NULL, &all);
    limits[0] = limit_of(&all);
  } else {
    for (int l = 0; l < VF; l++) limits[0][l] = __builtin_sqrtf(squares[l]) / CONTRAST;
  }
  // What each pass is to do is known before the first.
  int most = (int)max64(0, min64(MOST_PASSES, g->worth / WORTH_ONE)), passes = 0;
  unsigned first = 0, left = 0;
  for (;; passes++) {
    vf limit = limits[passes];
    struct sums rest = {{0}, {0}};
    mark_tile(t, limit, big, passes ? NULL : some, passes < most ? &rest : NULL);
    if (!passes) unseen(&down, &across, some, line, reach, zeros);
    uint16_t *found = passes < most ? low + passes * count : reach;  // the last are only counted
    unseen(&down, &across, big, line, reach, found);
    unsigned any = 0;
    for (int64_t o = 0; o < count; o++) any |= found[o] &= (uint16_t)(lanes & ~(unsigned)zeros[o]);
    if (!passes) first = any;
    if (passes == most) left = any;
    if (!any || passes == most) break;
    vf next = limit_of(&rest);
    limits[passes + 1] = select_lanes(next < 0.5f * limit, next, 0.5f * limit);
  }
  // A pass is for all lanes, a direct sum for those that need it.
  if (passes * VF * (int64_t)WORTH_ONE > g->worth * __builtin_popcount(first & ~left)) left |= first;
  lanes &= ~left;
  for (int p = 0; p < passes; p++) {
    uint16_t *mend = low + p * count;
    unsigned any = 0;
    for (int64_t o = 0; o < count; o++) any |= mend[o] &= (uint16_t)lanes;
    if (!any) continue;
    fft_product(t, NULL, &limits[p]);
    for (int64_t i = 0; i < t->rows.outs; i += 2) {
      int two = i + 1 < t->rows.outs;
      const float *a = t->plane + i * POINT;
      inverse_rows(t->k->plan_w, t->from, a, a + two * POINT, t->z);
      for (int r = 0; r <= two; r++)
        write_lanes(&t->out, (t->rows.out + i + r) * g->out_w + t->columns.out, t->columns.outs,
                    mend + (i + r) * t->columns.outs, t->z + r * VF, t->bias, g->relu != 0);
    }
  }
  for (int64_t o = 0; o < count; o++) zeros[o] &= (uint16_t)lanes;
  for (int64_t i = 0; i < t->rows.outs; i++)
    fill_lanes(&t->out, (t->rows.out + i) * g->out_w + t->columns.out, t->columns.outs,
               zeros + i * t->columns.outs, relu_if(g->relu != 0, t->bias));
  return left;
}

static void fft_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier;
  int64_t wide = ceil_div(g->out_w, g->tile_w), tiles = tile_count(g);
  int64_t image = item / tiles % g->batch, group = item / tiles / g->batch;
  struct fft_tile tile = {
    .k = k, .group = group, .z = scratch,
    .in = view_of(g, k->x, image, group * VF, g->channels, g->multiplier, g->height * g->width),
    .out = view_of(g, k->y, image, group * VF, outputs, 1, g->out_h * g->out_w),
    .rows = tile_rows(g, item % tiles / wide), .columns = tile_columns(g, item % tiles % wide)};
  struct fft_tile *t = &tile;
  t->down = arc_of(t->rows.in - t->rows.out, t->rows.ins, g->points_h);
  t->across = arc_of(t->columns.in - t->columns.out, t->columns.ins, g->points_w);
  t->plane = t->z + row_room(g);
  t->from = (struct source *)(t->plane + plane_or_marks(g));
  float *squares = (float *)t->from + source_room(g);
  t->again = (uint16_t *)squares;
  squares += again_room(g);
  struct guard guard;
  int cells = g->cell_h > 0 && t->rows.ins && t->columns.ins;
  if (cells)
    guard = guard_of(t->rows.ins, t->columns.ins, g->dil_h, g->dil_w, g->cell_h, g->cell_w, squares);
  fft_product(t, cells ? &guard : NULL, NULL);

  sources(k->plan_w, pitch_of(g), t->from);
  vf bias = zero(), check = zero();
  if (k->bias) bias = load_part(k->bias + group * VF, t->out.lanes);
  t->bias = bias;
  for (int64_t i = 0; i < t->rows.outs; i += 2) {
    int two = i + 1 < t->rows.outs;
    // Without a second row the first one stands in for it, and what becomes of it is not looked at.
    const float *a = t->plane + i * POINT;
    inverse_rows(k->plan_w, t->from, a, a + two * POINT, t->z);
    int64_t pixel = (t->rows.out + i) * g->out_w + t->columns.out, outs = t->columns.outs;
    write_line(&t->out, pixel, outs, t->z, bias, g->relu != 0, 0, &check);
    if (two) write_line(&t->out, pixel + g->out_w, outs, t->z + VF, bias, g->relu != 0, 0, &check);
  }

  unsigned doubt = 0;
  vf low = splat(__builtin_inff()), high = zero();
  if (cells) {
    levels(&guard, &low, &high);
    doubt = doubtful(low, high, &t->in, g->width, t->rows.in, t->rows.ins, t->columns.in, t->columns.ins);
  } else if (g->cell_h < 0 && t->rows.ins && t->columns.ins) {
    doubt = (1u << t->out.lanes) - 1;
  }
  // A NaN or Inf in a tile's inputs or weights, or an overflow, spreads over its circle. A direct sum
  // keeps it where it belongs.
  unsigned left = 0;
  for (int l = 0; l < t->out.lanes; l++)
    if (check[l] != 0.0f) left |= 1u << l;
  doubt &= ~left;
  if (doubt) left |= fft_again(t, doubt, high);
  for (int l = 0; l < t->out.lanes; l++) {
    int64_t c = group * VF + l;
    if (!(left >> l & 1)) continue;
    if (k->doubt && t->rows.ins && t->columns.ins)
      k->doubt[(image * outputs + c) * tiles + item % tiles] = 1.0f;
    else
      plain_tile(g, t->in.lane[l], t->in.step, k->w + c * g->kernel_h * g->kernel_w,
                 k->bias ? k->bias[c] : 0.0f, (float *)t->out.lane[l], t->out.step, t->rows.out,
                 t->rows.out + t->rows.outs, t->columns.out, t->columns.out + t->columns.outs);
  }
}

// -- weight gradient: an item is VF channels; images and tiles are added up as spectra ---------------

static int64_t fft_grad_items(const struct work *k) { return spectrum_items(k); }
static size_t fft_grad_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  return sizeof(float) *
         (size_t)(row_room(g) + g->kernel_h * g->kernel_w * VF + 3 * plane_room(g) + source_room(g) +
                  grad_squares_room(g->points_h, g->points_w));
}

// The end of a weight gradient: from the sum of spectra to taps. w: room for all taps.
static void grad_out(const struct work *k, int64_t group, float *sums, vf *w, const struct source *from,
                     float *z) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t f = frequencies(g), n = g->points_h, pitch = pitch_of(g);
  int64_t u0, u1, v0, v1;
  met_taps(0, g->out_h, g->top, g->dil_h, g->height, g->kernel_h, &u0, &u1);
  met_taps(0, g->out_w, g->left, g->dil_w, g->width, g->kernel_w, &v0, &v1);
  for (int64_t c = 0; c < f; c++) inverse_fft(k->plan_h, sums + c * pitch * POINT);
  const vf scale = splat(0.25f / ((float)g->points_h * (float)g->points_w));
  vf check = zero();
  for (int64_t t = 0; t < taps; t++) w[t] = zero();
  for (int64_t u = u0; u < u1; u += 2) {
    int two = u + 1 < u1;
    inverse_rows(k->plan_w, from, sums + arc_of(u * g->dil_h - g->top, 1, n).at * POINT,
                 sums + arc_of((u + two) * g->dil_h - g->top, 1, n).at * POINT, z);
    for (int64_t v = v0; v < v1; v++) {
      const float *p = z + arc_of(v * g->dil_w - g->left, 1, g->points_w).at * POINT;
      w[u * g->kernel_w + v] = load(p) * scale;
      if (two) w[(u + 1) * g->kernel_w + v] = load(p + VF) * scale;
    }
  }
  for (int64_t t = 0; t < taps; t++) check += w[t] * 0.0f;
  struct view dw = weights_view(k->y, group * VF, outputs, taps);
  pixels_out(&dw, 0, 1, 0, taps, (float *)w, 0, VF);
  for (int l = 0; l < dw.lanes; l++)
    if (check[l] != 0.0f) plain_grad(k, group * VF + l, 0, g->kernel_h);
}

static void fft_grad_run(const struct work *k, int64_t group, void *scratch) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t f = frequencies(g), n = g->points_h, pitch = pitch_of(g), wide = ceil_div(g->out_w, g->tile_w);
  float *z = scratch, *plane = z + row_room(g), *grad = plane + plane_room(g);
  float *sums = grad + plane_room(g);
  vf *w = (vf *)(sums + plane_room(g));
  struct source *from = (struct source *)(w + taps);
  float *squares = (float *)from + source_room(g);
  unsigned doubt = 0;
  sources(k->plan_w, pitch, from);
  clear_points(sums, 0, f * pitch);

  for (int64_t image = 0; image < g->batch; image++) {
    struct view in = view_of(g, k->x, image, group * VF, g->channels, g->multiplier,
                             g->height * g->width);
    struct view out = view_of(g, k->gy, image, group * VF, outputs, 1, g->out_h * g->out_w);
    for (int64_t index = 0; index < tile_count(g); index++) {
      struct tile rows = tile_rows(g, index / wide), columns = tile_columns(g, index % wide);
      if (!rows.ins || !columns.ins) continue;
      struct arc down = arc_of(rows.in - rows.out, rows.ins, n);
      struct arc across = arc_of(columns.in - columns.out, columns.ins, g->points_w);
      struct arc out_down = arc_of(0, rows.outs, n), out_across = arc_of(0, columns.outs, g->points_w);
      struct guard guard = grad_guard(rows.ins, columns.ins, squares);
      rows_forward(k->plan_w, &in, g->width, rows.in, columns.in, &down, &across, z, plane, pitch,
                   &guard, NULL);
      doubt |= grad_doubt(&guard);
      guard = grad_guard(rows.outs, columns.outs, squares);
      rows_forward(k->plan_w, &out, g->out_w, rows.out, columns.out, &out_down, &out_across, z, grad,
                   pitch, &guard, NULL);
      doubt |= grad_doubt(&guard);
      for (int64_t c = 0; c < f; c++) {
        float *a = plane + c * pitch * POINT, *b = grad + c * pitch * POINT, *s = sums + c * pitch * POINT;
        fft(k->plan_h, a, clear_rest(&down, a));
        add_product(k->plan_h, b, clear_rest(&out_down, b), a, s);
      }
    }
  }

  grad_out(k, group, sums, w, from, z);
  tell_doubt(k, group, doubt);
}

// -- both gradients: an item is VF channels; tiles of the input's gradient are added up in its memory --

// On the circle of a tile the gradient of the input is the transposed product: its spectrum is the
// output gradient's times the conjugate of the weights'. So one transform of the output gradient
// serves both gradients, and that of the input serves all branches: k->second, if not NULL, is a
// smaller kernel on the same input. The weights' spectra, at the points of k->g, are needed nowhere
// else: those of all groups at once would take more memory than the maps may.

static size_t fft_back_scratch(const struct work *k) {
  const struct geometry *g = &k->g;
  int planes = k->second ? 7 : 4;
  return sizeof(float) *
         (size_t)(row_room(g) + g->kernel_h * g->kernel_w * VF + planes * plane_room(g) + source_room(g) +
                  squares_room(g->tile_h, g->tile_w, g, g->back_h, g->back_w) +
                  grad_squares_room(g->points_h, g->points_w));
}

static void fft_back_run(const struct work *k, int64_t group, void *scratch) {
  const struct geometry *g = &k->g;
  const struct work *branch[2] = {k, k->second};
  int branches = k->second ? 2 : 1;
  int64_t taps = g->kernel_h * g->kernel_w, tiles = tile_count(g);
  int64_t f = frequencies(g), n = g->points_h, pitch = pitch_of(g), wide = ceil_div(g->out_w, g->tile_w);
  float *z = scratch, *plane = z + row_room(g), *end = plane + plane_room(g);
  float *grad[2], *sums[2], *spectra[2];
  for (int b = 0; b < branches; b++, end += 3 * plane_room(g)) {
    grad[b] = end, sums[b] = end + plane_room(g), spectra[b] = end + 2 * plane_room(g);
    clear_points(sums[b], 0, f * pitch);
  }
  vf *w = (vf *)end, check = zero();
  for (int b = 0; b < branches; b++) spectrum_of(branch[b], group, z, plane, w, spectra[b]);
  struct source *from = (struct source *)(w + taps);
  float *grad_squares = (float *)from + source_room(g);
  float *squares = grad_squares + grad_squares_room(g->points_h, g->points_w);
  unsigned doubt[2] = {0, 0}, seen_by_all = 0;
  sources(k->plan_w, pitch, from);

  for (int64_t image = 0; image < g->batch; image++) {
    if (atomic_load(k->broken)) return;  // all of it is done again
    vf low[2] = {splat(__builtin_inff()), splat(__builtin_inff())}, high[2] = {zero(), zero()};
    struct view in = view_of(g, k->x, image, group * VF, g->channels, 1, g->height * g->width);
    struct view back = view_of(g, k->gx, image, group * VF, g->channels, 1, g->height * g->width);
    for (int64_t index = 0; index < tiles; index++) {
      struct tile rows = tile_rows(g, index / wide), columns = tile_columns(g, index % wide);
      if (!rows.ins || !columns.ins) continue;
      struct arc down = arc_of(rows.in - rows.out, rows.ins, n);
      struct arc across = arc_of(columns.in - columns.out, columns.ins, g->points_w);
      struct arc out_down = arc_of(0, rows.outs, n), out_across = arc_of(0, columns.outs, g->points_w);
      struct guard level = grad_guard(rows.ins, columns.ins, grad_squares);
      rows_forward(k->plan_w, &in, g->width, rows.in, columns.in, &down, &across, z, plane, pitch,
                   &level, NULL);
      seen_by_all |= grad_doubt(&level);
      for (int b = 0; b < branches; b++) {
        struct view out = view_of(g, branch[b]->gy, image, group * VF, g->channels, 1, g->out_h * g->out_w);
        struct guard guard;
        // Cells that tell of the gradient of x tell of that of the weights, too.
        if (g->back_h > 0)
          guard = guard_of(rows.outs, columns.outs, g->dil_h, g->dil_w, g->back_h, g->back_w, squares);
        else
          guard = grad_guard(rows.outs, columns.outs, grad_squares);
        rows_forward(k->plan_w, &out, g->out_w, rows.out, columns.out, &out_down, &out_across, z, grad[b],
                     pitch, &guard, NULL);
        if (g->back_h > 0)
          levels(&guard, &low[b], &high[b]);
        else
          doubt[b] |= grad_doubt(&guard);
      }
      for (int64_t c = 0; c < f; c++) {
        int64_t at = c * pitch * POINT, spectrum = c * n * POINT;
        fft(k->plan_h, plane + at, clear_rest(&down, plane + at));
        for (int b = branches - 1; b >= 0; b--)
          turn(k->plan_h, grad[b] + at, clear_rest(&out_down, grad[b] + at), plane + at, sums[b] + at,
               spectra[b] + spectrum, b + 1 < branches ? grad[b + 1] + at : NULL, b == 0);
      }
      for (int64_t t = 0; t < rows.ins; t += 2) {
        int two = t + 1 < rows.ins;
        inverse_rows(k->plan_w, from, grad[0] + on_circle(&down, t) * POINT,
                     grad[0] + on_circle(&down, t + two) * POINT, z);
        // A row that passes the end of the circle is written in two parts.
        int64_t part = min64(columns.ins, g->points_w - across.at), rest = columns.ins - part;
        for (int r = 0; r <= two; r++) {
          int64_t pixel = (rows.in + t + r) * g->width + columns.in;
          write_line(&back, pixel, part, z + across.at * POINT + r * VF, zero(), 0, tiles > 1, &check);
          if (rest) write_line(&back, pixel + part, rest, z + r * VF, zero(), 0, tiles > 1, &check);
        }
      }
    }
    for (int b = 0; b < branches && g->back_h > 0; b++) {
      struct view out = view_of(g, branch[b]->gy, image, group * VF, g->channels, 1, g->out_h * g->out_w);
      if (doubtful(low[b], high[b], &out, g->out_w, 0, g->out_h, 0, g->out_w)) atomic_store(k->broken, 1);
    }
  }
  for (int b = 0; b < branches; b++) {
    grad_out(branch[b], group, sums[b], w, from, z);
    tell_doubt(branch[b], group, doubt[b] | seen_by_all);
  }
  for (int64_t l = 0; l < min64(VF, g->channels - group * VF); l++)
    if (check[l] != 0.0f) atomic_store(k->broken, 1);
}
