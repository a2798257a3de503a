// Passes of a complex transform whose points are vectors: every lane is a transform of its own, so
// that there is no shuffle and no tail. A point is 2 * VF floats, the real parts before the imaginary ones.
//
// The forward transform decimates in frequency: the passes of dif[] in order, the last of them
// plain[], leave frequency k at plan->place[k]. The inverse decimates in time and takes that order:
// plain[] first, then dit[] in the opposite order, with the pointers to real and imaginary parts
// exchanged, which conjugates (exchanging them is i * conj(z), and so is undone by doing it again).
// Nothing is ever put in order in between, since spectra are multiplied point by point.

enum { POINT = 2 * VF };  // floats of a point

// Where point t of a packed pair of rows comes from: frequency k of both at `offset`, with sign 1, or
// the mirror image of frequency n - k, with sign -1.
struct source {
  int32_t offset;
  float sign;
};

// --- Small transforms in registers, in place, in natural order ------------------------------------

INLINE void dft2(vf *r, vf *i) {
  vf ar = r[0], ai = i[0];
  r[0] = ar + r[1], i[0] = ai + i[1];
  r[1] = ar - r[1], i[1] = ai - i[1];
}

INLINE void dft3(vf *r, vf *i) {
  const float s = 0.866025403784438647f;
  vf sr = r[1] + r[2], si = i[1] + i[2], dr = r[1] - r[2], di = i[1] - i[2];
  vf cr = r[0] - 0.5f * sr, ci = i[0] - 0.5f * si;
  r[0] += sr, i[0] += si;
  r[1] = cr + s * di, i[1] = ci - s * dr;
  r[2] = cr - s * di, i[2] = ci + s * dr;
}

INLINE void dft4(vf *r, vf *i) {
  vf ar = r[0] + r[2], ai = i[0] + i[2], br = r[0] - r[2], bi = i[0] - i[2];
  vf cr = r[1] + r[3], ci = i[1] + i[3], dr = r[1] - r[3], di = i[1] - i[3];
  r[0] = ar + cr, i[0] = ai + ci;
  r[2] = ar - cr, i[2] = ai - ci;
  r[1] = br + di, i[1] = bi - dr;
  r[3] = br - di, i[3] = bi + dr;
}

INLINE void dft5(vf *r, vf *i) {
  const float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;
  const float s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;
  vf pr = r[1] + r[4], pi = i[1] + i[4], qr = r[2] + r[3], qi = i[2] + i[3];
  vf ur = r[1] - r[4], ui = i[1] - i[4], vr = r[2] - r[3], vi_ = i[2] - i[3];
  vf ar = r[0] + c1 * pr + c2 * qr, ai = i[0] + c1 * pi + c2 * qi;
  vf br = r[0] + c2 * pr + c1 * qr, bi = i[0] + c2 * pi + c1 * qi;
  vf er = s1 * ur + s2 * vr, ei = s1 * ui + s2 * vi_;
  vf fr = s2 * ur - s1 * vr, fi = s2 * ui - s1 * vi_;
  r[0] += pr + qr, i[0] += pi + qi;
  r[1] = ar + ei, i[1] = ai - er;
  r[4] = ar - ei, i[4] = ai + er;
  r[2] = br + fi, i[2] = bi - fr;
  r[3] = br - fi, i[3] = bi + fr;
}

INLINE void dft7(vf *r, vf *i) {
  const float c1 = 0.623489801858733531f, c2 = -0.222520933956314404f, c3 = -0.900968867902419126f;
  const float s1 = 0.781831482468029809f, s2 = 0.974927912181823607f, s3 = 0.433883739117558120f;
  vf pr = r[1] + r[6], pi = i[1] + i[6], ur = r[1] - r[6], ui = i[1] - i[6];
  vf qr = r[2] + r[5], qi = i[2] + i[5], vr = r[2] - r[5], vi_ = i[2] - i[5];
  vf tr = r[3] + r[4], ti = i[3] + i[4], wr = r[3] - r[4], wi = i[3] - i[4];
  vf ar = r[0] + c1 * pr + c2 * qr + c3 * tr, ai = i[0] + c1 * pi + c2 * qi + c3 * ti;
  vf br = r[0] + c2 * pr + c3 * qr + c1 * tr, bi = i[0] + c2 * pi + c3 * qi + c1 * ti;
  vf cr = r[0] + c3 * pr + c1 * qr + c2 * tr, ci = i[0] + c3 * pi + c1 * qi + c2 * ti;
  r[0] += pr + qr + tr, i[0] += pi + qi + ti;
  vf dr = s1 * ur + s2 * vr + s3 * wr, di = s1 * ui + s2 * vi_ + s3 * wi;
  vf er = s2 * ur - s3 * vr - s1 * wr, ei = s2 * ui - s3 * vi_ - s1 * wi;
  vf fr = s3 * ur - s1 * vr + s2 * wr, fi = s3 * ui - s1 * vi_ + s2 * wi;
  r[1] = ar + di, i[1] = ai - dr, r[6] = ar - di, i[6] = ai + dr;
  r[2] = br + ei, i[2] = bi - er, r[5] = br - ei, i[5] = bi + er;
  r[3] = cr + fi, i[3] = ci - fr, r[4] = cr - fi, i[4] = ci + fr;
}

INLINE void dft_prime(const int n, vf *r, vf *i) {
  if (n == 2) dft2(r, i);
  if (n == 3) dft3(r, i);
  if (n == 4) dft4(r, i);
  if (n == 5) dft5(r, i);
  if (n == 7) dft7(r, i);
}

// A product of coprime lengths needs no factors between them (Good and Thomas): point
// (n2 * a + n1 * b) mod n is point a of line b; frequency k is (k mod n1, k mod n2).
INLINE void dft_coprime(const int n1, const int n2, vf *r, vf *i) {
  vf lr[16], li[16], cr[16], ci[16];
  UNROLL for (int b = 0; b < n2; b++) {
    UNROLL for (int a = 0; a < n1; a++) {
      lr[b * n1 + a] = r[(n2 * a + n1 * b) % (n1 * n2)];
      li[b * n1 + a] = i[(n2 * a + n1 * b) % (n1 * n2)];
    }
    dft_prime(n1, lr + b * n1, li + b * n1);
  }
  UNROLL for (int a = 0; a < n1; a++) {
    UNROLL for (int b = 0; b < n2; b++) cr[a * n2 + b] = lr[b * n1 + a], ci[a * n2 + b] = li[b * n1 + a];
    dft_prime(n2, cr + a * n2, ci + a * n2);
  }
  UNROLL for (int k = 0; k < n1 * n2; k++) {
    r[k] = cr[k % n1 * n2 + k % n2];
    i[k] = ci[k % n1 * n2 + k % n2];
  }
}

// cos and sin of 2 pi k / 16 and 2 pi k / 9.
INLINE float cosine(const int n, const int k) {
  static const float of16[16] = {
    1, 0.923879532511286756f, 0.707106781186547524f, 0.382683432365089772f, 0, -0.382683432365089772f,
    -0.707106781186547524f, -0.923879532511286756f, -1, -0.923879532511286756f, -0.707106781186547524f,
    -0.382683432365089772f, 0, 0.382683432365089772f, 0.707106781186547524f, 0.923879532511286756f};
  static const float of9[9] = {1, 0.766044443118978035f, 0.173648177666930349f, -0.5f,
                               -0.939692620785908384f, -0.939692620785908384f, -0.5f,
                               0.173648177666930349f, 0.766044443118978035f};
  return n == 9 ? of9[k] : of16[k * (16 / n)];
}
INLINE float sine(const int n, const int k) {
  static const float of9[9] = {0, 0.642787609686539327f, 0.984807753012208059f, 0.866025403784438647f,
                               0.342020143325668734f, -0.342020143325668734f, -0.866025403784438647f,
                               -0.984807753012208059f, -0.642787609686539327f};
  return n == 9 ? of9[k] : cosine(n, (k + 3 * n / 4) % n);
}

// n1 * n2 with factors in between: point n2 * a + b is point a of line b.
INLINE void dft_product(const int n1, const int n2, vf *r, vf *i) {
  const int n = n1 * n2;
  vf lr[16], li[16], cr[16], ci[16];
  UNROLL for (int b = 0; b < n2; b++) {
    UNROLL for (int a = 0; a < n1; a++) lr[b * n1 + a] = r[n2 * a + b], li[b * n1 + a] = i[n2 * a + b];
    dft_prime(n1, lr + b * n1, li + b * n1);
    UNROLL for (int a = 1; a < n1; a++) {
      vf x = lr[b * n1 + a], y = li[b * n1 + a];
      const int k = a * b;
      if (k == 0) continue;
      if (4 * k == n) {
        lr[b * n1 + a] = y, li[b * n1 + a] = -x;
      } else if (8 * k == n) {
        lr[b * n1 + a] = cosine(n, k) * (x + y), li[b * n1 + a] = cosine(n, k) * (y - x);
      } else if (8 * k == 3 * n) {
        lr[b * n1 + a] = sine(n, k) * (y - x), li[b * n1 + a] = -sine(n, k) * (x + y);
      } else {
        lr[b * n1 + a] = cosine(n, k) * x + sine(n, k) * y;
        li[b * n1 + a] = cosine(n, k) * y - sine(n, k) * x;
      }
    }
  }
  UNROLL for (int a = 0; a < n1; a++) {
    UNROLL for (int b = 0; b < n2; b++) cr[a * n2 + b] = lr[b * n1 + a], ci[a * n2 + b] = li[b * n1 + a];
    dft_prime(n2, cr + a * n2, ci + a * n2);
  }
  UNROLL for (int a = 0; a < n1; a++) {
    UNROLL for (int b = 0; b < n2; b++) r[a + n1 * b] = cr[a * n2 + b], i[a + n1 * b] = ci[a * n2 + b];
  }
}

INLINE void dft(const int n, vf *r, vf *i) {
  if (n <= 5 || n == 7) dft_prime(n, r, i);
  if (n == 6) dft_coprime(2, 3, r, i);
  if (n == 8) dft_product(2, 4, r, i);
  if (n == 9) dft_product(3, 3, r, i);
  if (n == 10) dft_coprime(2, 5, r, i);
  if (n == 12) dft_coprime(4, 3, r, i);
  if (n == 15) dft_coprime(3, 5, r, i);
  if (n == 16) dft_product(4, 4, r, i);
}

// --- Passes over a line ----------------------------------------------------------------------------

// Points from `known` on are 0, whatever is there; a pass forward over the whole line skips them.
INLINE vf load_known(const float *p, int64_t index, int64_t known) {
#if defined(__x86_64__) && VF == 16
  // A masked load costs what a load does, and no branch.
  return (vf)_mm512_maskz_loadu_ps((__mmask16)(index < known ? 0xffff : 0), p);
#else
  return index < known ? load(p) : zero();
#endif
}

// Blocks of n * m points; factors: [m][n - 1][re, im].
INLINE void dif_pass(const int n, float *re, float *im, int64_t blocks, int64_t m, const float *factors) {
  const int64_t step = m * POINT;
  for (int64_t b = 0; b < blocks; b++, re += n * step, im += n * step) {
    const float *f = factors;
    for (int64_t j = 0; j < m; j++, f += 2 * (n - 1)) {
      vf r[16], i[16];
      float *pr = re + j * POINT, *pi = im + j * POINT;
      UNROLL for (int q = 0; q < n; q++) r[q] = load(pr + q * step), i[q] = load(pi + q * step);
      dft(n, r, i);
      store(pr, r[0]), store(pi, i[0]);
      UNROLL for (int q = 1; q < n; q++) {
        float c = f[2 * q - 2], s = f[2 * q - 1];
        store(pr + q * step, r[q] * c - i[q] * s);
        store(pi + q * step, r[q] * s + i[q] * c);
      }
    }
  }
}

// The first pass, over a line of which only the points before `known` are not 0.
INLINE void first_pass(const int n, float *re, float *im, int64_t m, const float *factors, int64_t known) {
  const int64_t step = m * POINT;
  for (int64_t j = 0; j < m; j++, factors += 2 * (n - 1)) {
    vf r[16], i[16];
    float *pr = re + j * POINT, *pi = im + j * POINT;
    UNROLL for (int q = 0; q < n; q++)
      r[q] = load_known(pr + q * step, j + q * m, known), i[q] = load_known(pi + q * step, j + q * m, known);
    dft(n, r, i);
    store(pr, r[0]), store(pi, i[0]);
    UNROLL for (int q = 1; q < n; q++) {
      float c = factors[2 * q - 2], s = factors[2 * q - 1];
      store(pr + q * step, r[q] * c - i[q] * s);
      store(pi + q * step, r[q] * s + i[q] * c);
    }
  }
}

INLINE void dit_pass(const int n, float *re, float *im, int64_t blocks, int64_t m, const float *factors) {
  const int64_t step = m * POINT;
  for (int64_t b = 0; b < blocks; b++, re += n * step, im += n * step) {
    const float *f = factors;
    for (int64_t j = 0; j < m; j++, f += 2 * (n - 1)) {
      vf r[16], i[16];
      float *pr = re + j * POINT, *pi = im + j * POINT;
      r[0] = load(pr), i[0] = load(pi);
      UNROLL for (int q = 1; q < n; q++) {
        float c = f[2 * q - 2], s = f[2 * q - 1];
        vf x = load(pr + q * step), y = load(pi + q * step);
        r[q] = x * c - y * s, i[q] = x * s + y * c;
      }
      dft(n, r, i);
      UNROLL for (int q = 0; q < n; q++) store(pr + q * step, r[q]), store(pi + q * step, i[q]);
    }
  }
}

// Groups of n adjacent points, without factors.
INLINE void plain_pass(const int n, float *re, float *im, int64_t groups) {
  for (; groups > 0; groups--, re += n * POINT, im += n * POINT) {
    vf r[16], i[16];
    UNROLL for (int q = 0; q < n; q++) r[q] = load(re + q * POINT), i[q] = load(im + q * POINT);
    dft(n, r, i);
    UNROLL for (int q = 0; q < n; q++) store(re + q * POINT, r[q]), store(im + q * POINT, i[q]);
  }
}

// The first pass back over a pair of rows, which takes their frequencies from where they are, in the rows a
// and b of a plane: point t of the line is a - i b or its mirror image, see struct source.
INLINE void packed_pass(const int n, float *z, int64_t groups, const struct source *from, const float *a,
                        const float *b) {
  for (; groups > 0; groups--, z += n * POINT, from += n) {
    vf r[16], i[16];
    UNROLL for (int q = 0; q < n; q++) {
      const float *p = a + from[q].offset, *o = b + from[q].offset;
      r[q] = load(p) - from[q].sign * load(o + VF);
      i[q] = load(o) + from[q].sign * load(p + VF);
    }
    dft(n, i, r);
    UNROLL for (int q = 0; q < n; q++) store(z + q * POINT, r[q]), store(z + q * POINT + VF, i[q]);
  }
}

// The last pass forward, the product with a spectrum, and the first pass back, all in registers.
INLINE void middle_pass(const int n, float *z, const float *spectrum, int64_t groups) {
  for (; groups > 0; groups--, z += n * POINT, spectrum += n * POINT) {
    vf r[16], i[16];
    UNROLL for (int q = 0; q < n; q++) r[q] = load(z + q * POINT), i[q] = load(z + q * POINT + VF);
    dft(n, r, i);
    UNROLL for (int q = 0; q < n; q++) {
      vf c = load(spectrum + q * POINT), s = load(spectrum + q * POINT + VF), x = r[q];
      r[q] = x * c - i[q] * s;
      i[q] = x * s + i[q] * c;
    }
    dft(n, i, r);
    UNROLL for (int q = 0; q < n; q++) store(z + q * POINT, r[q]), store(z + q * POINT + VF, i[q]);
  }
}

// The last pass forward of one line, and the sum of another's spectrum times its conjugate.
INLINE void sum_pass(const int n, const float *z, const float *other, float *sums, int64_t groups) {
  for (; groups > 0; groups--, z += n * POINT, other += n * POINT, sums += n * POINT) {
    vf r[16], i[16];
    UNROLL for (int q = 0; q < n; q++) r[q] = load(z + q * POINT), i[q] = load(z + q * POINT + VF);
    dft(n, r, i);
    UNROLL for (int q = 0; q < n; q++) {
      vf x = load(other + q * POINT), y = load(other + q * POINT + VF);
      float *s = sums + q * POINT;
      store(s, load(s) + x * r[q] + y * i[q]);
      store(s + VF, load(s + VF) + y * r[q] - x * i[q]);
    }
  }
}

// The last pass forward of one line; the sum of another's spectrum times its conjugate; its product
// with the conjugate of a spectrum, to which `plus` is added unless it is NULL; and, if `back`, the first
// pass back.
INLINE void turn_pass(const int n, float *z, const float *other, float *sums, const float *spectrum,
                      const float *plus, int back, int64_t groups) {
  for (int64_t at = 0; at < groups * n * POINT; at += n * POINT) {
    vf r[16], i[16];
    UNROLL for (int q = 0; q < n; q++) r[q] = load(z + at + q * POINT), i[q] = load(z + at + q * POINT + VF);
    dft(n, r, i);
    UNROLL for (int q = 0; q < n; q++) {
      int64_t p = at + q * POINT;
      vf x = load(other + p), y = load(other + p + VF);
      store(sums + p, load(sums + p) + x * r[q] + y * i[q]);
      store(sums + p + VF, load(sums + p + VF) + y * r[q] - x * i[q]);
      vf c = load(spectrum + p), s = load(spectrum + p + VF), t = r[q];
      r[q] = t * c + i[q] * s;
      i[q] = i[q] * c - t * s;
      if (plus) r[q] += load(plus + p), i[q] += load(plus + p + VF);
    }
    if (back) dft(n, i, r);
    UNROLL for (int q = 0; q < n; q++) store(z + at + q * POINT, r[q]), store(z + at + q * POINT + VF, i[q]);
  }
}

#define FOR_EACH_RADIX(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(12) DO(15) DO(16)

#define DEFINE(n)                                                                                      \
  NOINLINE void dif_##n(float *re, float *im, int64_t blocks, int64_t m, const float *factors) {       \
    dif_pass(n, re, im, blocks, m, factors);                                                           \
  }                                                                                                    \
  NOINLINE void dit_##n(float *re, float *im, int64_t blocks, int64_t m, const float *factors) {       \
    dit_pass(n, re, im, blocks, m, factors);                                                           \
  }                                                                                                    \
  NOINLINE void first_##n(float *re, float *im, int64_t m, const float *factors, int64_t known) {      \
    first_pass(n, re, im, m, factors, known);                                                          \
  }                                                                                                    \
  NOINLINE void plain_##n(float *re, float *im, int64_t groups) { plain_pass(n, re, im, groups); }     \
  NOINLINE void packed_##n(float *z, int64_t groups, const struct source *from, const float *a,        \
                           const float *b) {                                                           \
    packed_pass(n, z, groups, from, a, b);                                                             \
  }                                                                                                    \
  NOINLINE void sum_##n(const float *z, const float *other, float *sums, int64_t groups) {             \
    sum_pass(n, z, other, sums, groups);                                                               \
  }                                                                                                    \
  NOINLINE void turn_##n(float *z, const float *other, float *sums, const float *spectrum,              \
                         const float *plus, int back, int64_t groups) {                                \
    turn_pass(n, z, other, sums, spectrum, plus, back, groups);                                        \
  }                                                                                                    \
  NOINLINE void middle_##n(float *z, const float *spectrum, int64_t groups) {                          \
    middle_pass(n, z, spectrum, groups);                                                               \
  }
FOR_EACH_RADIX(DEFINE)
#undef DEFINE

struct passes {
  void (*dif)(float *, float *, int64_t, int64_t, const float *);
  void (*first)(float *, float *, int64_t, const float *, int64_t);
  void (*dit)(float *, float *, int64_t, int64_t, const float *);
  void (*plain)(float *, float *, int64_t);
  void (*packed)(float *, int64_t, const struct source *, const float *, const float *);
  void (*middle)(float *, const float *, int64_t);
  void (*sum)(const float *, const float *, float *, int64_t);
  void (*turn)(float *, const float *, float *, const float *, const float *, int, int64_t);
};
#define ENTRY(n) [n] = {dif_##n, first_##n, dit_##n, plain_##n, packed_##n, middle_##n, sum_##n, turn_##n},
static const struct passes passes[17] = {FOR_EACH_RADIX(ENTRY)};
#undef ENTRY

// --- Transforms of a line z[n], in place -------------------------------------------------------------

// All passes forward but the last. Points from `known` on are 0.
static void dif_passes(const struct plan *p, float *z, int64_t known) {
  const float *factors = p->twiddles;
  int64_t blocks = 1, m = p->n;
  for (int s = 0; s < p->stages - 1; s++) {
    int r = p->radix[s];
    m /= r;
    if (s == 0 && known < p->n)
      passes[r].first(z, z + VF, m, factors, known);
    else
      passes[r].dif(z, z + VF, blocks, m, factors);
    factors += 2 * (r - 1) * m;
    blocks *= r;
  }
  if (p->stages == 1)
    for (float *q = z + known * POINT; q < z + p->n * POINT; q += VF) store(q, zero());
}

// All passes back but the first.
static void dit_passes(const struct plan *p, float *z) {
  const float *factors = p->twiddles + p->twiddle_count;
  int64_t m = p->radix[p->stages - 1], blocks = p->n / m;
  for (int s = p->stages - 2; s >= 0; s--) {
    int r = p->radix[s];
    blocks /= r;
    factors -= 2 * (r - 1) * m;
    passes[r].dit(z + VF, z, blocks, m, factors);
    m *= r;
  }
}

static inline int last_radix(const struct plan *p) { return p->radix[p->stages - 1]; }

static void fft(const struct plan *p, float *z, int64_t known) {
  int r = last_radix(p);
  dif_passes(p, z, known);
  passes[r].plain(z, z + VF, p->n / r);
}

// Not scaled: the inverse of the forward transform is n times its input.
static void inverse_fft(const struct plan *p, float *z) {
  int r = last_radix(p);
  passes[r].plain(z + VF, z, p->n / r);
  dit_passes(p, z);
}

// The circular product with the line whose transform is `spectrum`, n times as large.
static void multiply(const struct plan *p, float *z, int64_t known, const float *spectrum) {
  int r = last_radix(p);
  dif_passes(p, z, known);
  passes[r].middle(z, spectrum, p->n / r);
  dit_passes(p, z);
}

// Adds the spectrum of `other`, already transformed, times the conjugate of z's.
static void add_product(const struct plan *p, float *z, int64_t known, const float *other, float *sums) {
  int r = last_radix(p);
  dif_passes(p, z, known);
  passes[r].sum(z, other, sums, p->n / r);
}

// With Z the transform of z: adds `other`, already transformed, times the conjugate of Z to sums, and
// makes z the inverse transform of Z times the conjugate of `spectrum`, plus `plus` unless it is NULL;
// without `back`, z is left transformed.
static void turn(const struct plan *p, float *z, int64_t known, const float *other, float *sums,
                 const float *spectrum, const float *plus, int back) {
  int r = last_radix(p);
  dif_passes(p, z, known);
  passes[r].turn(z, other, sums, spectrum, plus, back, p->n / r);
  if (back) dit_passes(p, z);
}

// The rows whose spectra are rows a and b of a plane: their real and imaginary part.
static void inverse_rows(const struct plan *p, const struct source *from, const float *a, const float *b,
                         float *z) {
  int r = last_radix(p);
  passes[r].packed(z, p->n / r, from, a, b);
  dit_passes(p, z);
}
