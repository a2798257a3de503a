// The plans of transforms: how a length is factored, and its tables.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dwconv.h"

// Nanoseconds a point of 16 lanes in the passes of fft1d.inc.c, by radix, measured on AMD Zen 4.
// Only ratios matter here, and those are similar on other machines.
enum { RADICES = 12 };
static const struct {
  int radix;
  double twiddled, plain, middle;  // dif[] and dit[] together; plain[]; middle[]
} costs[RADICES] = {
  {2, 2.41, 1.10, 2.25}, {3, 2.98, 1.18, 2.42}, {4, 2.94, 1.10, 2.37}, {5, 4.03, 1.29, 3.03},
  {6, 3.71, 1.25, 3.09}, {7, 5.04, 1.66, 4.04}, {8, 3.90, 1.62, 3.49}, {9, 5.45, 1.73, 4.47},
  {10, 4.77, 1.70, 3.82}, {12, 5.25, 1.69, 4.18}, {15, 7.64, 2.61, 5.13}, {16, 7.21, 2.28, 4.89}};

// The cheapest passes with twiddle factors whose radices multiply to n, none above costs[top].
static double twiddled(int n, int top, int *radix, int *count) {
  *count = 0;
  if (n == 1) return 0;
  double best = INFINITY;
  for (int i = top; i >= 0; i--) {
    int trial[MAX_STAGES], more;
    if (n % costs[i].radix) continue;
    double cost = costs[i].twiddled + twiddled(n / costs[i].radix, i, trial, &more);
    if (cost >= best || more + 1 >= MAX_STAGES) continue;
    best = cost;
    radix[0] = costs[i].radix;
    memcpy(radix + 1, trial, sizeof *trial * (size_t)more);
    *count = more + 1;
  }
  return best;
}

double plan_cost(int n, int *radix, int *stages) {
  double best = n == 1 ? 1 : INFINITY;
  radix[0] = 1, *stages = 1;
  for (int i = 0; i < RADICES; i++) {
    int trial[MAX_STAGES], count;
    if (n % costs[i].radix) continue;
    // Half of the lines are rows, half are columns.
    double cost = costs[i].plain + costs[i].middle / 2 +
                  twiddled(n / costs[i].radix, RADICES - 1, trial, &count);
    if (cost >= best) continue;
    best = cost;
    memcpy(radix, trial, sizeof *trial * (size_t)count);
    radix[count] = costs[i].radix;
    *stages = count + 1;
  }
  return best;
}

// Index of frequency k: the first stage sends k mod r to its part number k mod r, and so on inside.
static int place_of(const struct plan *p, int k) {
  int at = 0, m = p->n;
  for (int s = 0; s < p->stages; s++) {
    m /= p->radix[s];
    at += k % p->radix[s] * m;
    k /= p->radix[s];
  }
  return at;
}

static struct plan *new_plan(int n) {
  struct plan *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->n = n;
  if (plan_cost(n, p->radix, &p->stages) == INFINITY) {
    free(p);
    return NULL;
  }
  for (int s = 0, m = n; s + 1 < p->stages; s++) {
    m /= p->radix[s];
    p->twiddle_count += 2 * (p->radix[s] - 1) * m;
  }
  p->twiddles = malloc(sizeof(float) * (size_t)(p->twiddle_count + 1));
  p->place = malloc(sizeof(int) * (size_t)n);
  if (!p->twiddles || !p->place) {
    free(p->twiddles);
    free(p->place);
    free(p);
    return NULL;
  }
  float *t = p->twiddles;
  for (int s = 0, m = n; s + 1 < p->stages; s++) {
    int r = p->radix[s];
    for (int j = 0; j < m / r; j++)
      for (int q = 1; q < r; q++) {
        double angle = -2 * 3.14159265358979323846 * j * q / m;
        *t++ = (float)cos(angle);
        *t++ = (float)sin(angle);
      }
    m /= r;
  }
  for (int k = 0; k < n; k++) p->place[k] = place_of(p, k);
  return p;
}

const struct plan *plan_of(int64_t n) {
  static struct plan *plans[MAX_POINTS + 1];
  if (n < 1 || n > MAX_POINTS) return NULL;
  if (!plans[n]) plans[n] = new_plan((int)n);
  return plans[n];
}
