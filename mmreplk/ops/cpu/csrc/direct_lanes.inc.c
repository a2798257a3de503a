// The direct sum with channels in the lanes: natural for channels-last maps, and for small maps in
// either order, for no lane is lost at the edges of the map.

// What a tile may take of the second-level cache.
enum { LANES_TILE = 320 << 10 };

// Floats that are fetched ahead at most: more would push out what is in use.
enum { LANES_FETCHED = 32 << 10 };

// Input columns [*lo, *hi) that outputs [begin, end) use, with the zeros that a block needs.
INLINE void used_columns(const struct geometry *g, int64_t begin, int64_t end, int64_t *lo,
                         int64_t *hi) {
  *lo = max64(begin - g->left, 1 - COLUMNS);
  *hi = min64(end - g->left + (g->kernel_w - 1) * g->dil_w, g->width + COLUMNS - 1);
}

// Input rows [lo, hi) of a phase, columns [left, right), zeros beside the map.
static void tile_in(const struct geometry *g, const struct view *v, int64_t phase, int64_t lo,
                    int64_t hi, int64_t left, int64_t right, float *x) {
  int64_t row = (right - left) * VF, begin = max64(0, left), end = min64(g->width, right);
  if (lo >= hi || begin >= end) return;
  for (int64_t r = 0; r < hi - lo; r++) {
    clear(x + r * row, (begin - left) * VF);
    clear(x + r * row + (end - left) * VF, (right - end) * VF);
  }
  int64_t from = (lo * g->dil_h + phase - g->top) * g->width + begin;
  pixels_in(v, from, hi - lo, g->dil_h * g->width, end - begin, x + (begin - left) * VF, row, VF);
}

// Columns of a block for `outputs` outputs in a row: the fewest cycles, in loads and multiply-adds.
// Wide blocks load less, narrow ones waste less on taps of which some columns see nothing.
static int block_columns(int64_t outputs, int64_t before, int64_t dilation, int64_t size,
                         int64_t taps, int64_t rows, int most) {
  int best = 1;
  int64_t least = INT64_MAX;
  for (int c = 1; c <= most; c++) {
    int64_t blocks = ceil_div(outputs, c), cost = 0;
    for (int64_t n = 0; n < blocks; n++) {
      int64_t lo, hi, j = split(outputs, blocks, n), end = split(outputs, blocks, n + 1);
      met_taps(j, end, before, dilation, size, taps, &lo, &hi);
      cost += (hi - lo) * max64(2 * rows * (end - j), 2 * (rows + end - j) + 3) + 4;
    }
    if (cost < least) least = cost, best = c;
  }
  return best;
}

// -- forward: an item is VF channels and some tiles ------------------------------------------------

struct lanes_plan {
  int64_t groups, phases, down, across, tiles, share, shares;  // tiles of all images, of an item
  int64_t tile_h, tile_w;
  int64_t pitch, x_rows, w_tap;
};

static struct lanes_plan lanes_plan(const struct geometry *g) {
  struct lanes_plan p;
  p.groups = ceil_div(g->channels * g->multiplier, VF);
  p.phases = min64(g->dil_h, g->out_h);
  p.w_tap = (g->kernel_h | 1) * VF;  // an odd number of cache lines spreads over the cache's sets
  int64_t rows = ceil_div(g->out_h, g->dil_h), map_rows = ceil_div(g->height, g->dil_h);
  int64_t fits = 0, reach = (g->kernel_w - 1) * g->dil_w;
  for (p.across = 1;; p.across *= 2) {
    p.tile_w = ceil_div(g->out_w, p.across);
    p.pitch = min64(p.tile_w + reach, g->width + 2 * (COLUMNS - 1));
    int64_t room = LANES_TILE / (4 * VF), taken = p.pitch + p.tile_w;
    fits = map_rows * p.pitch + rows * p.tile_w <= room
               ? rows : (room - (g->kernel_h - 1) * p.pitch) / taken;
    if (fits >= min64(rows, 4 * ROWS) || p.tile_w <= 4 * COLUMNS) break;
  }
  fits = max64(fits, ROWS);
  p.across = ceil_div(g->out_w, p.tile_w);
  p.down = ceil_div(rows, fits);
  // Enough items for several threads, unless there is little to do.
  int64_t others = p.groups * g->batch * p.phases * p.across;
  int64_t work = others * rows * p.tile_w * g->kernel_h * g->kernel_w;
  int64_t wanted = min64(16, work >> 15);
  if (others * p.down < wanted) p.down = max64(p.down, min64(ceil_div(rows, ROWS), ceil_div(wanted, others)));
  p.tile_h = ceil_div(rows, p.down);
  p.down = ceil_div(rows, p.tile_h);
  p.x_rows = min64(p.tile_h + g->kernel_h - 1, map_rows + 1);
  p.tiles = g->batch * p.phases * p.down * p.across;
  // The weights are transposed once an item: that should be little beside the sums.
  p.share = ceil_div(256, p.tile_h * p.tile_w);
  p.share = max64(p.share, p.tiles * p.groups / 64);
  p.share = min64(p.share, p.tiles);
  p.shares = ceil_div(p.tiles, p.share);
  return p;
}

static int64_t lanes_items(const struct work *k) {
  struct lanes_plan p = lanes_plan(&k->g);
  return p.groups * p.shares;
}

static size_t lanes_scratch(const struct work *k) {
  struct lanes_plan p = lanes_plan(&k->g);
  return 4 * (p.w_tap * k->g.kernel_w + (p.x_rows * p.pitch + p.tile_h * p.tile_w) * VF);
}

// Small planes in NCHW order are too short for the CPU to notice a stream: it is told to fetch those of
// the next image, and where the results will go, while the sums are computed.
INLINE void fetch_ahead(const struct geometry *g, const struct lanes_plan *p, const struct view *in,
                        const struct view *out, int64_t image, int64_t lanes) {
  int64_t read = g->height * g->width, written = g->out_h * g->out_w;
  if (in->step != 1 || p->tiles != g->batch || g->multiplier != 1) return;
  if (lanes * (read + written) > LANES_FETCHED) return;
  const float *next = in->lane[0] + g->channels * read, *here = out->lane[0];
  if (image + 1 < g->batch)
    for (int64_t n = 0; n < lanes * read; n += 16) __builtin_prefetch(next + n);
  for (int64_t n = 0; n < lanes * written; n += 16) __builtin_prefetch(here + n, 1);
}

static void lanes_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  struct lanes_plan p = lanes_plan(g);
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t share = item / p.groups, group = item % p.groups, channel = group * VF;
  int64_t lanes = min64(VF, outputs - channel);
  float *w = scratch, *x = w + p.w_tap * g->kernel_w, *y = x + p.x_rows * p.pitch * VF;

  struct view weights = weights_view(k->w, channel, outputs, taps);
  pixels_in(&weights, 0, g->kernel_h, g->kernel_w, g->kernel_w, w, VF, p.w_tap);
  int mend = !all_finite(k->w + channel * taps, lanes * taps);
  vf bias = k->bias ? load_part(k->bias + channel, lanes) : zero();
  int columns = block_columns(min64(p.tile_w, 64), g->left, g->dil_w, g->width, g->kernel_w,
                              min64(ROWS, p.tile_h), COLUMNS);

  for (int64_t tile = share * p.share; tile < min64((share + 1) * p.share, p.tiles); tile++) {
    int64_t across = tile % p.across, down = tile / p.across % p.down;
    int64_t phase = tile / p.across / p.down % p.phases, image = tile / p.across / p.down / p.phases;
    struct view in = view_of(g, k->x, image, channel, g->channels, g->multiplier,
                             g->height * g->width);
    struct view out = view_of(g, k->y, image, channel, outputs, 1, g->out_h * g->out_w);
    int64_t begin = across * p.tile_w, end = min64(begin + p.tile_w, g->out_w);
    int64_t top = down * p.tile_h;
    int64_t bottom = min64(top + p.tile_h, ceil_div(g->out_h - phase, g->dil_h));
    if (top >= bottom) continue;
    int64_t lo, hi, left, right;
    phase_rows(g, phase, &lo, &hi);
    lo = max64(lo, top);
    hi = min64(hi, bottom - 1 + g->kernel_h);
    used_columns(g, begin, end, &left, &right);
    tile_in(g, &in, phase, lo, hi, left, right, x);
    fetch_ahead(g, &p, &in, &out, image, lanes);

    int64_t from = (top * g->dil_h + phase) * g->out_w + begin;
    int in_place = out.together && lanes == VF;
    struct block b = {.x_row = (right - left) * VF, .x_tap = g->dil_w * VF, .w_tap = p.w_tap,
                      .tap_rows = g->kernel_h, .relu = g->relu != 0, .bias = bias,
                      .y_row = in_place ? g->dil_h * g->out_w * outputs : (end - begin) * VF,
                      .y_column = in_place ? outputs : VF};
    float *to = in_place ? (float *)out.lane[0] + from * outputs : y;
    int64_t across_blocks = ceil_div(end - begin, columns);
    int64_t down_blocks = ceil_div(bottom - top, ROWS);
    for (int64_t r = 0; r < down_blocks; r++) {
      int64_t i = top + split(bottom - top, down_blocks, r);
      b.rows = top + split(bottom - top, down_blocks, r + 1) - i;
      int64_t first = max64(lo, i);
      b.first = first - i;
      b.last = min64(hi, i + b.rows - 1 + g->kernel_h) - i;
      for (int64_t c = 0; c < across_blocks; c++) {
        int64_t j = begin + split(end - begin, across_blocks, c);
        int64_t next = begin + split(end - begin, across_blocks, c + 1);
        int64_t va, vb;
        met_taps(j, next, g->left, g->dil_w, g->width, g->kernel_w, &va, &vb);
        b.taps = vb - va;
        b.x = x + (first - lo) * b.x_row + (j + va * g->dil_w - g->left - left) * VF;
        b.w = w + va * p.w_tap + b.first * VF;
        b.y = to + (i - top) * b.y_row + (j - begin) * b.y_column;
        lanes_block[next - j](&b);
      }
    }
    if (!in_place)
      pixels_out(&out, from, bottom - top, g->dil_h * g->out_w, end - begin, y, b.y_row, VF);
    if (mend)
      for (int64_t l = 0; l < lanes; l++) {
        int64_t c = channel + l;
        if (all_finite(k->w + c * taps, taps)) continue;
        for (int64_t i = top * g->dil_h + phase; i < (bottom - 1) * g->dil_h + phase + 1; i += g->dil_h)
          plain_tile(g, in.lane[l], in.step, k->w + c * taps, k->bias ? k->bias[c] : 0.0f,
                     (float *)out.lane[l], out.step, i, i + 1, begin, end);
      }
  }
}

// -- weight gradient: an item is VF channels and some tap rows -------------------------------------

struct lanes_grad_plan {
  int64_t groups, phases, down, across, parts;
  int64_t tile_h, tile_w, pitch, x_rows, g_tap, part_rows;
};

static struct lanes_grad_plan lanes_grad_plan(const struct geometry *g) {
  struct lanes_grad_plan p;
  p.groups = ceil_div(g->channels * g->multiplier, VF);
  p.phases = min64(g->dil_h, g->out_h);
  p.parts = min64(ceil_div(g->kernel_h, ROWS), ceil_div(8, p.groups));
  p.part_rows = ceil_div(g->kernel_h, p.parts);
  p.parts = ceil_div(g->kernel_h, p.part_rows);
  // ROWS rows of the gradient, and one of the input, should fit the first-level cache; the number
  // of terms that are added up in one register should be small.
  int64_t rows = ceil_div(g->out_h, g->dil_h), map_rows = ceil_div(g->height, g->dil_h);
  p.across = ceil_div(g->out_w, 40);
  p.tile_w = ceil_div(g->out_w, p.across);
  p.across = ceil_div(g->out_w, p.tile_w);
  p.pitch = min64(p.tile_w + (g->kernel_w - 1) * g->dil_w, g->width + 2 * (COLUMNS - 1));
  int64_t room = LANES_TILE / (4 * VF), taken = p.pitch + p.tile_w;
  int64_t fits = max64(8, (room - (p.part_rows - 1) * p.pitch) / taken);
  p.down = ceil_div(rows, min64(fits, 48));
  p.tile_h = ceil_div(rows, p.down);
  p.down = ceil_div(rows, p.tile_h);
  p.x_rows = min64(p.tile_h + p.part_rows - 1, map_rows + 1);
  p.g_tap = (p.tile_h | 1) * VF;
  return p;
}

static int64_t lanes_grad_items(const struct work *k) {
  struct lanes_grad_plan p = lanes_grad_plan(&k->g);
  return p.groups * p.parts;
}

static size_t lanes_grad_scratch(const struct work *k) {
  struct lanes_grad_plan p = lanes_grad_plan(&k->g);
  return 4 * (p.g_tap * p.tile_w + (p.x_rows * p.pitch + p.part_rows * k->g.kernel_w) * VF);
}

// Adds the blocks of tap rows [from, to) over gradient rows [top, bottom) and columns [begin, end),
// one tile. x holds input rows [lo, hi) of the phase and starts at column `left`.
static void lanes_grad_tile(const struct geometry *g, int columns, int64_t from, int64_t to,
                            int64_t top, int64_t bottom, int64_t begin, int64_t end, int64_t lo,
                            int64_t hi, int64_t left, struct block *b, const float *x,
                            const float *gy, float *sums) {
  int64_t down_blocks = ceil_div(to - from, ROWS), across_blocks = ceil_div(g->kernel_w, columns);
  b->tap_rows = bottom - top;
  for (int64_t r = 0; r < down_blocks; r++) {
    int64_t u = from + split(to - from, down_blocks, r);
    b->rows = from + split(to - from, down_blocks, r + 1) - u;
    int64_t first = max64(lo, u + top);
    b->first = first - u - top;
    b->last = min64(hi, u + b->rows - 1 + bottom) - u - top;
    for (int64_t c = 0; c < across_blocks; c++) {
      int64_t v = split(g->kernel_w, across_blocks, c), next = split(g->kernel_w, across_blocks, c + 1);
      // Columns of the gradient for which some tap of the block meets the map.
      int64_t ja = max64(begin, g->left - (next - 1) * g->dil_w);
      int64_t jb = min64(end, g->width + g->left - v * g->dil_w);
      if (ja >= jb) continue;
      b->taps = jb - ja;
      b->x = x + (first - lo) * b->x_row + (ja + v * g->dil_w - g->left - left) * VF;
      b->w = gy + (ja - begin) * b->w_tap + b->first * VF;
      b->y = sums + (u - from) * b->y_row + v * VF;
      lanes_block[next - v](b);
    }
  }
}

static void lanes_grad_run(const struct work *k, int64_t item, void *scratch) {
  const struct geometry *g = &k->g;
  struct lanes_grad_plan p = lanes_grad_plan(g);
  int64_t outputs = g->channels * g->multiplier, taps = g->kernel_h * g->kernel_w;
  int64_t channel = item / p.parts * VF, lanes = min64(VF, outputs - channel);
  int64_t from = item % p.parts * p.part_rows, to = min64(from + p.part_rows, g->kernel_h);
  float *sums = scratch, *gy = sums + p.part_rows * g->kernel_w * VF, *x = gy + p.g_tap * p.tile_w;
  clear(sums, p.part_rows * g->kernel_w * VF);
  // Dilated taps are not neighbors in x: one column at a time.
  int columns = g->dil_w > 1 ? 1 : block_columns(min64(g->kernel_w, 64), g->left, 1, g->width,
                                                 g->out_w, min64(ROWS, to - from), COLUMNS);
  for (int64_t tile = 0; tile < g->batch * p.phases * p.down * p.across; tile++) {
    int64_t across = tile % p.across, down = tile / p.across % p.down;
    int64_t phase = tile / p.across / p.down % p.phases, image = tile / p.across / p.down / p.phases;
    struct view in = view_of(g, k->x, image, channel, g->channels, g->multiplier,
                             g->height * g->width);
    struct view out = view_of(g, k->gy, image, channel, outputs, 1, g->out_h * g->out_w);
    int64_t begin = across * p.tile_w, end = min64(begin + p.tile_w, g->out_w);
    int64_t top = down * p.tile_h;
    int64_t bottom = min64(top + p.tile_h, ceil_div(g->out_h - phase, g->dil_h));
    if (top >= bottom) continue;
    int64_t lo, hi, left, right;
    phase_rows(g, phase, &lo, &hi);
    lo = max64(lo, top + from);
    hi = min64(hi, bottom - 1 + to);
    used_columns(g, begin, end, &left, &right);
    if (lo >= hi || left >= right) continue;
    tile_in(g, &in, phase, lo, hi, left, right, x);
    pixels_in(&out, (top * g->dil_h + phase) * g->out_w + begin, bottom - top, g->dil_h * g->out_w,
              end - begin, gy, VF, p.g_tap);
    struct block b = {.x_row = (right - left) * VF, .x_tap = VF, .w_tap = p.g_tap, .add = 1,
                      .y_row = g->kernel_w * VF, .y_column = VF};
    lanes_grad_tile(g, columns, from, to, top, bottom, begin, end, lo, hi, left, &b, x, gy, sums);
  }
  struct view out = weights_view(k->y, channel, outputs, taps);
  pixels_out(&out, from * g->kernel_w, 1, 0, (to - from) * g->kernel_w, sums, 0, VF);
  for (int64_t l = 0; l < lanes; l++)
    if (!all_finite(out.lane[l] + from * g->kernel_w, (to - from) * g->kernel_w))
      plain_grad(k, channel + l, from, to);
}
