// Lines (rows of a map, columns of its spectra) between memory and the circle they are transformed on.

// Where a line stands on a circle of n points: `count` points from `at` on, some of which may follow
// at the beginning.
struct arc {
  int64_t at, count, n;
};
static inline struct arc arc_of(int64_t start, int64_t count, int64_t n) {
  struct arc a = {(start % n + n) % n, count, n};
  return a;
}
INLINE int64_t on_circle(const struct arc *a, int64_t j) {
  int64_t at = a->at + j;
  return at < a->n ? at : at - a->n;
}

static void clear_points(float *z, int64_t from, int64_t to) {
  for (float *p = z + from * POINT; p < z + to * POINT; p += VF) store(p, zero());
}

// Makes the points beside the arc 0, but for those that the transform need not be told. Returns the
// point from which on it knows.
static int64_t clear_rest(const struct arc *a, float *z) {
  int64_t end = a->at + a->count;
  if (end > a->n) {
    clear_points(z, end - a->n, a->at);
    return a->n;
  }
  clear_points(z, 0, a->at);
  return end;
}

// Pixels from `from` on to the points of an arc: real parts with z the line, imaginary parts with z + VF.
// Those `ahead` pixels further will be read soon.
static void read_line(const struct view *v, int64_t from, int64_t ahead, const struct arc *a, float *z) {
  if (v->together || v->step != 1) {
    for (int64_t j = 0; j < a->count; j++) {
      vf t = zero();
      if (v->together)
        t = load_part(v->lane[0] + (from + j) * v->step, v->lanes),
        __builtin_prefetch(v->lane[0] + (from + ahead + j) * v->step, 0, 2);
      else
        for (int l = 0; l < v->lanes; l++) t[l] = v->lane[l][(from + j) * v->step];
      store(z + on_circle(a, j) * POINT, t);
    }
    return;
  }
  for (int64_t j = 0; j < a->count; j += VF) {
    int64_t n = min64(VF, a->count - j);
    vf t[VF];
    UNROLL for (int l = 0; l < VF; l++)
      t[l] = load_part(v->lane[l] + from + j, n), __builtin_prefetch(v->lane[l] + from + ahead + j, 0, 2);
    transpose(t);
    int64_t at = on_circle(a, j);
    if (n == VF && at + VF <= a->n) {
      UNROLL for (int q = 0; q < VF; q++) store(z + (at + q) * POINT, t[q]);
    } else {
      for (int64_t q = 0; q < n; q++) store(z + on_circle(a, j + q) * POINT, t[q]);
    }
  }
}

// count points, z[0 ..) + bias, to the pixels from `from` on; with `relu`, no less than 0; with `add`,
// added to what is there. Adds 0 * value to *check.
static void write_line(const struct view *v, int64_t from, int64_t count, const float *z, vf bias, int relu,
                       int add, vf *check) {
  vf sum = *check;
  if (v->together || v->step != 1) {
    for (int64_t j = 0; j < count; j++) {
      vf t = load(z + j * POINT) + bias;
      sum += t * 0.0f;
      t = relu_if(relu, t);
      float *p = (float *)v->lane[0] + (from + j) * v->step;
      if (v->together) {
        store_part(p, add ? t + load_part(p, v->lanes) : t, v->lanes);
      } else {
        for (int l = 0; l < v->lanes; l++) {
          p = (float *)v->lane[l] + (from + j) * v->step;
          *p = add ? t[l] + *p : t[l];
        }
      }
    }
    *check = sum;
    return;
  }
  for (int64_t j = 0; j < count; j += VF) {
    int64_t n = min64(VF, count - j);
    vf t[VF];
    if (n == VF) {
      UNROLL for (int q = 0; q < VF; q++)
        t[q] = load(z + (j + q) * POINT) + bias, sum += t[q] * 0.0f, t[q] = relu_if(relu, t[q]);
      transpose(t);
      if (v->lanes == VF && !add) {
        UNROLL for (int l = 0; l < VF; l++) store((float *)v->lane[l] + from + j, t[l]);
        continue;
      }
    } else {
      for (int64_t q = 0; q < n; q++)
        t[q] = load(z + (j + q) * POINT) + bias, sum += t[q] * 0.0f, t[q] = relu_if(relu, t[q]);
      for (int64_t q = n; q < VF; q++) t[q] = zero();
      transpose(t);
    }
    for (int l = 0; l < v->lanes; l++) {
      float *p = (float *)v->lane[l] + from + j;
      store_part(p, add ? t[l] + load_part(p, n) : t[l], n);
    }
  }
  *check = sum;
}

// A pair of rows goes through one complex transform z, as its real and its imaginary part.
// unpack: their frequencies 0 .. n/2, doubled, to a and, if there are two, b, `pitch` points from one
// to the next.
static void unpack(const struct plan *p, const float *z, int64_t pitch, int two, float *a, float *b) {
  pitch *= POINT;
  for (int k = 0; k <= p->n / 2; k++, a += pitch, b += pitch) {
    const float *s = z + p->place[k] * POINT, *t = z + p->place[k ? p->n - k : 0] * POINT;
    vf sr = load(s), si = load(s + VF), tr = load(t), ti = load(t + VF);
    store(a, sr + tr), store(a + VF, si - ti);
    if (two) store(b, si + ti), store(b + VF, tr - sr);
  }
}

// The reverse, not halved, is a table of sources.
static void sources(const struct plan *p, int64_t pitch, struct source *out) {
  for (int k = 0; k < p->n; k++) {
    int mirrored = 2 * k > p->n;
    out[p->place[k]].offset = (int32_t)((mirrored ? p->n - k : k) * pitch * POINT);
    out[p->place[k]].sign = mirrored ? -1.0f : 1.0f;
  }
}
