// Small outputs beside huge inputs. An FFT convolution errs by as much at every output of a tile, in
// proportion to the root of the sum of all squares of its inputs; a direct sum errs in proportion to the
// inputs that the output sees. The two agree, but for a factor of CONTRAST, where every output sees at
// least one input above that root divided by CONTRAST. Outputs that do not, which fft.inc.c computes again
// without the inputs above it, are looked for in two steps: a tile is cut into cells, so small that every output
// sees a whole one, and only where a cell holds too little are the inputs looked at one by one.
enum { CONTRAST = 4096, GRAD_CONTRAST = 4096 };
// Passes over a tile without the larger inputs, at most, and only as many as take no longer than the direct sum of
// the lanes that they mend (geometry.worth), with what it takes to find out: as much again, to be safe. Maps can be
// made of which each pass mends a little: how many passes a tile needs follows from its inputs alone, so that a lane
// that needs more takes none.
enum { MOST_PASSES = 2, WORTH_ONE = 2 * 1024 };

// One axis of a tile: of each phase of the dilation, the pixels in runs of `size`, the last of which takes what
// is left. plan.py chooses the size; it knows this rule.
struct cells {
  int64_t count, dil, size;
  int64_t phases, each;  // cells of a phase, at most
};
static inline struct cells cells_of(int64_t count, int64_t dil, int64_t size) {
  struct cells c = {count, dil, size, min64(dil, count), max64(1, ceil_div(count, dil) / size)};
  return c;
}
// Without dilation, the usual case, not a division more than it takes: rows are short.
static inline int64_t cells_in(const struct cells *c, int64_t phase, int64_t *pixels) {
  if (c->dil == 1) {
    *pixels = c->count;
    return c->each;
  }
  *pixels = (c->count - phase + c->dil - 1) / c->dil;
  return max64(1, *pixels / c->size);
}
static inline int64_t cell_of(const struct cells *c, int64_t i) {
  if (c->dil == 1) return min64((int32_t)i / (int32_t)c->size, c->each - 1);
  int64_t pixels, phase = i % c->dil, cells = cells_in(c, phase, &pixels);
  return phase * c->each + min64(i / c->dil / c->size, cells - 1);
}
static inline int64_t all_cells(const struct cells *c) { return c->phases * c->each; }

struct guard {
  struct cells down, across;
  float *squares;  // sums of squares: [cells down][cells across][VF]
};

static struct guard guard_of(int64_t rows, int64_t columns, int64_t dil_h, int64_t dil_w, int64_t cell_h,
                             int64_t cell_w, float *squares) {
  struct guard s = {cells_of(rows, dil_h, cell_h), cells_of(columns, dil_w, cell_w), squares};
  int64_t count = all_cells(&s.down) * all_cells(&s.across);
  for (int64_t t = 0; t < count; t++) store(squares + t * VF, zero());
  return s;
}

// Points of a pair of rows, `step` floats from one to the next.
INLINE void add_run(const float *p, int64_t count, int64_t step, vf *re, vf *im) {
  vf a = *re, b = *im, c = zero(), d = zero();
  int64_t q = 0;
  for (; q + 2 <= count; q += 2, p += 2 * step) {
    vf r = load(p), i = load(p + VF), s = load(p + step), t = load(p + step + VF);
    a += r * r, b += i * i, c += s * s, d += t * t;
  }
  if (q < count) a += load(p) * load(p), b += load(p + VF) * load(p + VF);
  *re = a + c, *im = b + d;
}

// Of whole cells of a constant size, for both rows in one: most of those of weight gradients.
INLINE void add_cells(const int size, const float *p, int64_t cells, float *to) {
  for (int64_t k = 0; k < cells; k++, p += size * POINT, to += VF) {
    vf re = load(to), im = zero();
    UNROLL for (int q = 0; q < size; q++) {
      vf r = load(p + q * POINT), i = load(p + q * POINT + VF);
      re += r * r, im += i * i;
    }
    store(to, re + im);
  }
}
static int64_t add_whole_cells(const struct cells *c, int64_t before, const float *p, float *to) {
  int64_t cells = min64(c->each * c->size == c->count ? c->each : c->each - 1, before / c->size);
  switch (c->size) {
    case 1: add_cells(1, p, cells, to); return cells;
    case 2: add_cells(2, p, cells, to); return cells;
    case 4: add_cells(4, p, cells, to); return cells;
    case 8: add_cells(8, p, cells, to); return cells;
  }
  return 0;
}

// Adds the squares of a pair of rows, t and t + 1; without a second one its points are 0.
static void add_squares(const struct guard *s, int64_t t, int two, const struct arc *a, const float *z) {
  const struct cells *c = &s->across;
  int64_t wide = all_cells(c), before = a->n - a->at;  // points before the arc passes the end
  float *first = s->squares + cell_of(&s->down, t) * wide * VF;
  float *second = s->squares + cell_of(&s->down, t + two) * wide * VF;
  for (int64_t phase = 0; phase < c->phases; phase++) {
    int64_t pixels, cells = cells_in(c, phase, &pixels);
    int64_t k = c->dil == 1 && first == second ? add_whole_cells(c, before, z + a->at * POINT, first) : 0;
    for (; k < cells; k++) {
      int64_t q = k * c->size, end = k + 1 < cells ? q + c->size : pixels;
      int64_t j = phase + q * c->dil, cut = end;
      if (phase + end * c->dil > before) cut = max64(q, min64(end, ceil_div(before - phase, c->dil)));
      vf re = zero(), im = zero();
      add_run(z + (a->at + j) * POINT, cut - q, c->dil * POINT, &re, &im);
      if (cut < end)
        add_run(z + (phase + cut * c->dil - before) * POINT, end - cut, c->dil * POINT, &re, &im);
      float *to = first + (phase * c->each + k) * VF;
      if (first == second) re += im;
      store(to, load(to) + re);
      if (first == second) continue;
      to = second + (phase * c->each + k) * VF;
      store(to, load(to) + im);
    }
  }
}

INLINE vf select_lanes(vi where, vf a, vf b) { return (vf)(((vi)a & where) | ((vi)b & ~where)); }

// The least mean square of a cell and the sum of squares of the tile, if they are less or more than *low and
// *high.
static void levels(const struct guard *s, vf *low, vf *high) {
  vf sum = zero();
  int64_t wide = all_cells(&s->across);
  for (int64_t i = 0; i < s->down.phases; i++)
    for (int64_t j = 0; j < s->across.phases; j++) {
      int64_t rows, columns;
      int64_t down = cells_in(&s->down, i, &rows), across = cells_in(&s->across, j, &columns);
      for (int64_t u = 0; u < down; u++)
        for (int64_t v = 0; v < across; v++) {
          int64_t tall = u + 1 < down ? s->down.size : rows - u * s->down.size;
          int64_t width = v + 1 < across ? s->across.size : columns - v * s->across.size;
          vf e = load(s->squares + ((i * s->down.each + u) * wide + j * s->across.each + v) * VF);
          vf mean = e * (1.0f / (float)(tall * width));
          sum += e;
          *low = select_lanes(mean < *low, mean, *low);
        }
    }
  *high = select_lanes(sum < *high, *high, sum);  // NaN, too
}

// Bit l is set for lane l, whose elements are 0 or -1.
INLINE unsigned bits_of(vi mask) {
#if defined(__x86_64__) && VF == 16
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__x86_64__) && VF == 8
  return (unsigned)_mm256_movemask_ps((__m256)mask);
#else
  unsigned bits = 0;
  for (int l = 0; l < VF; l++) bits |= (unsigned)(mask[l] & 1) << l;
  return bits;
#endif
}

static int any_nonzero(const float *p, int64_t step, int64_t width, int64_t row, int64_t rows, int64_t column,
                       int64_t columns) {
  for (int64_t i = row; i < row + rows; i++) {
    uint32_t seen = 0;
    for (int64_t j = column; j < column + columns; j++) {
      uint32_t value;
      memcpy(&value, p + (i * width + j) * step, sizeof value);
      seen |= value << 1;
    }
    if (seen) return 1;
  }
  return 0;
}

// Lanes in which an output might see too little. `v` is the map, for lanes whose squares are all 0: these are
// nothing but zeros, or too small to be squared.
static unsigned doubtful(vf low, vf high, const struct view *v, int64_t width, int64_t row, int64_t rows,
                         int64_t column, int64_t columns) {
  const float contrast = (float)CONTRAST * CONTRAST;
  vi fine = (low * contrast >= high) & ((high >= 0x1p-80f) | (high == 0.0f));
  unsigned doubt = bits_of(~fine), none = bits_of(high == 0.0f);
  for (int l = 0; l < v->lanes; l++)
    if (none >> l & 1 && any_nonzero(v->lane[l], v->step, width, row, rows, column, columns))
      doubt |= 1u << l;
  return doubt & ((1u << v->lanes) - 1);
}

// -- weight gradients ------------------------------------------------------------------------------

// A tap sees nearly all of a map; where the level of a tile comes from a small part of it, the taps that do not
// see this part, or for which the other map is 0 there, drown. So cells, smaller than those above and without
// regard to the dilation, are compared with the whole tile, in both maps.
// Up to 64 pixels an axis has eight cells at most, of a size that is quick to add up; rows come in pairs.
static inline int64_t grad_cell(int64_t count) { return count > 32 ? 8 : count > 16 ? 4 : count > 8 ? 2 : 1; }
// No axis has more cells than max(15, points / 8).
static int64_t grad_squares_room(int64_t rows, int64_t columns) {
  return max64(16, rows / 8 + 1) * max64(16, columns / 8 + 1) * VF;
}
static struct guard grad_guard(int64_t rows, int64_t columns, float *squares) {
  return guard_of(rows, columns, 1, 1, max64(2, grad_cell(rows)), grad_cell(columns), squares);
}

// Lanes in which at least one of 16 cells that are not 0 lies far below the tile. Single ones are met by chance
// where few pixels are not 0.
static unsigned grad_doubt(const struct guard *s) {
  const float contrast = (float)GRAD_CONTRAST * GRAD_CONTRAST;
  vf sum = zero();
  vi below = {0}, some = {0};
  int64_t down = all_cells(&s->down), across = all_cells(&s->across);
  int64_t last_width = s->across.count - (across - 1) * s->across.size;
  int64_t last_tall = s->down.count - (down - 1) * s->down.size;
  vf part[4] = {sum, sum, sum, sum};  // additions need not wait for one another
  int64_t t = 0;
  for (; t + 4 <= down * across; t += 4)
    UNROLL for (int i = 0; i < 4; i++) part[i] += load(s->squares + (t + i) * VF);
  for (; t < down * across; t++) sum += load(s->squares + t * VF);
  sum += (part[0] + part[1]) + (part[2] + part[3]);
  for (int64_t u = 0; u < down; u++) {
    int64_t tall = u + 1 < down ? s->down.size : last_tall;
    const vf level = sum * ((float)(tall * s->across.size) / contrast);
    const vf last = sum * ((float)(tall * last_width) / contrast);
    for (int64_t v = 0; v < across; v++) {
      vf e = load(s->squares + (u * across + v) * VF);
      vi here = e != 0.0f;
      some -= here;
      below -= here & (e < (v + 1 < across ? level : last));
    }
  }
  return bits_of((below > 0) & (below * 16 >= some));
}

static void tell_doubt(const struct work *k, int64_t group, unsigned doubt) {
  if (!k->doubt) return;
  int64_t outputs = k->g.channels * k->g.multiplier;
  for (int64_t l = 0; l < min64(VF, outputs - group * VF); l++)
    k->doubt[group * VF + l] = (float)(doubt >> l & 1);
}

// -- input by input --------------------------------------------------------------------------------

// *to |= *from for count elements. The two may overlap if `from` lies behind `to`.
static void or_into(uint16_t *to, const uint16_t *from, int64_t count) {
  typedef uint16_t wide __attribute__((vector_size(4 * VF), aligned(2), may_alias));
  const int64_t each = 2 * VF;
  int64_t j = 0;
  for (; j + each <= count; j += each) *(wide *)(to + j) |= *(const wide *)(from + j);
  for (; j < count; j++) to[j] |= from[j];
}

// Element j becomes the union of elements j + v * step, v in [0, taps), of which there are `count` in all; those
// from count - (taps - 1) * step on are lost. Unions of two, of four...: few steps however many taps.
static void unite(uint16_t *p, int64_t count, int64_t taps, int64_t step) {
  for (int64_t have = 1, more; have < taps; have += more) {
    more = min64(have, taps - have);
    count -= more * step;
    or_into(p, p + more * step, count);
  }
}

// Output o sees input o + offset + u * dilation, u in [0, taps).
struct window {
  int64_t ins, outs, offset, taps, dil;
};
// Without the taps that meet no input from any output.
static struct window met_window(int64_t ins, int64_t outs, int64_t offset, int64_t taps, int64_t dil) {
  int64_t skipped = offset < 1 - outs ? ceil_div(1 - outs - offset, dil) : 0;
  int64_t end = offset < ins ? min64(taps, (ins - 1 - offset) / dil + 1) : 0;
  struct window w = {ins, outs, offset + skipped * dil, max64(0, end - skipped), dil};
  return w;
}
// Points that some output of a window sees: less than inputs and twice the outputs.
static inline int64_t seen_points(const struct window *w) { return w->outs + (w->taps - 1) * w->dil; }

// Bit l of an element is set for lane l. From `big`, the inputs of a tile of rows x columns, to `out`: whether an
// output sees none of them. line, reach: room for all points that outputs see, of a row; down, of all columns.
static void unseen(const struct window *down, const struct window *across, const uint16_t *big, uint16_t *line,
                   uint16_t *reach, uint16_t *out) {
  int64_t outs = across->outs, count = down->outs * outs;
  if (down->taps <= 0 || across->taps <= 0) {
    memset(out, 0xff, sizeof *out * (size_t)count);
    return;
  }
  int64_t rows = seen_points(down), columns = seen_points(across);
  int64_t first = max64(0, across->offset), end = min64(across->ins, across->offset + columns);
  for (int64_t r = 0; r < rows; r++) {
    int64_t i = r + down->offset;
    uint16_t *to = reach + r * outs;
    if (i < 0 || i >= down->ins || first >= end) {
      memset(to, 0, sizeof *to * (size_t)outs);
      continue;
    }
    memset(line, 0, sizeof *line * (size_t)columns);
    memcpy(line + first - across->offset, big + i * across->ins + first, sizeof *line * (size_t)(end - first));
    unite(line, columns, across->taps, across->dil);
    memcpy(to, line, sizeof *to * (size_t)outs);
  }
  unite(reach, rows * outs, down->taps, down->dil * outs);
  for (int64_t t = 0; t < count; t++) out[t] = (uint16_t)~reach[t];
}

// Sums of squares, which floats could not hold.
typedef double vd __attribute__((vector_size(4 * VF)));
struct sums {
  vd low, high;
};
INLINE void add_square(struct sums *s, vf t) {
  typedef float half __attribute__((vector_size(2 * VF)));
  half part[2];
  memcpy(part, &t, sizeof t);
  vd a = __builtin_convertvector(part[0], vd), b = __builtin_convertvector(part[1], vd);
  s->low += a * a, s->high += b * b;
}
static vf limit_of(const struct sums *s) {
  vf limit = zero();
  for (int l = 0; l < VF; l++)
    limit[l] = (float)(__builtin_sqrt(l < VF / 2 ? s->low[l] : s->high[l - VF / 2]) / CONTRAST);
  return limit;
}

INLINE void mark_run(const int with_some, const int with_rest, const float *z, int64_t count, vf limit,
                     uint16_t *big, uint16_t *some, struct sums *rest) {
  for (int64_t j = 0; j < count; j++) {
    vf t = load(z + j * POINT);
    vi above = (t > limit) | (t < -limit);
    big[j] = (uint16_t)bits_of(above);
    if (with_some) some[j] = (uint16_t)bits_of(t != zero());
    if (with_rest) add_square(rest, (vf)((vi)t & ~above));
  }
}
// Inputs above a limit of the rows that are in z and, unless `some` is NULL, those that are not 0; unless `rest` is
// NULL, the squares of those up to the limit are added to it.
static void mark_line(const struct arc *a, const float *z, vf limit, uint16_t *big, uint16_t *some,
                      struct sums *rest) {
  struct sums sums = {{0}, {0}};
  if (rest) sums = *rest;
  int64_t part = min64(a->count, a->n - a->at);
  for (int i = 0; i < 2; i++) {  // a row may pass the end of the circle
    const float *p = i ? z : z + a->at * POINT;
    int64_t from = i ? part : 0, count = i ? a->count - part : part;
    if (some && rest)
      mark_run(1, 1, p, count, limit, big + from, some + from, &sums);
    else if (some)
      mark_run(1, 0, p, count, limit, big + from, some + from, NULL);
    else if (rest)
      mark_run(0, 1, p, count, limit, big + from, NULL, &sums);
    else
      mark_run(0, 0, p, count, limit, big + from, NULL, NULL);
  }
  if (rest) *rest = sums;
}

// Inputs above a limit become 0.
static void drop_above(const struct arc *a, float *z, vf limit) {
  for (int64_t j = 0; j < a->count; j++) {
    float *p = z + on_circle(a, j) * POINT;
    vf t = load(p);
    store(p, (vf)((vi)t & (t <= limit) & (t >= -limit)));
  }
}

// count points from z on to the pixels from `from` on, in the lanes that `where` has for each of them.
static void write_lanes(const struct view *v, int64_t from, int64_t count, const uint16_t *where, const float *z,
                        vf bias, int relu) {
  for (int64_t j = 0; j < count; j++) {
    if (!where[j]) continue;
    vf t = relu_if(relu, load(z + j * POINT) + bias);
    for (int l = 0; l < v->lanes; l++)
      if (where[j] >> l & 1) ((float *)v->lane[l])[(from + j) * v->step] = t[l];
  }
}

// The same of a value that all pixels share. The others of the row are written as they are.
static void fill_lanes(const struct view *v, int64_t from, int64_t count, const uint16_t *where, vf value) {
  unsigned any = 0;
  for (int64_t j = 0; j < count; j++) any |= where[j];
  for (int l = 0; l < v->lanes; l++) {
    if (!(any >> l & 1)) continue;
    float *p = (float *)v->lane[l] + from * v->step;
    const float t = value[l];
    if (v->step == 1)
      for (int64_t j = 0; j < count; j++) p[j] = where[j] >> l & 1 ? t : p[j];
    else
      for (int64_t j = 0; j < count; j++)
        if (where[j] >> l & 1) p[j * v->step] = t;
  }
}
