// mmreplk.ops.cpu._native: depth-wise convolutions of stride 1 on float32 maps in memory. kernels.py
// passes the memory of tensors that it keeps alive, each as (address, bytes), 0 for none; every block is
// checked to hold what the geometry asks of it, so that no mistake outside can reach beyond it. Functions:
//
//   isas() -> tuple[(name, lanes), ...]   instruction sets that this machine can run, best last
//   set_runtime(address)                  of GOMP_parallel in PyTorch's OpenMP runtime
//   point_cost(n) -> float                nanoseconds a point of a transform of length n, forward and
//                                         back, on the machine that plan.c was fitted to; inf if
//                                         n has a prime factor above 7 or is too large
//   same(threads, a, b) -> bool           whether two blocks of one size hold the same bits
//   run(kernel, isa, threads, geometry, x, w, spectrum, bias, gy, y)
//                                         FFT_WEIGHT_GRAD has doubt in the place of bias,
//                                         FFT_FORWARD in that of gy
//   backward(isa, threads, x, gx, branch[, branch]) -> bool
//                                         FFT_BACKWARD; branch is (geometry, w, gy, dw, doubt), both of
//                                         the same points. False: gx is wrong, there are NaN or
//                                         Inf, or gradients far below others of their tile
//
// kernel is a value of the enum in dwconv.h, isa an index into isas(), geometry the bytes of a
// struct geometry, the rest memory.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "dwconv.h"
#include "threads.h"

static const struct isa *isas[3];
static int isa_count;

static void find_isas(void) {
  isa_count = 0;
  isas[isa_count++] = &isa_baseline;
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas[isa_count++] = &isa_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      isas[isa_count++] = &isa_avx512;
  }
#endif
}

static PyObject *py_isas(PyObject *self, PyObject *none) {
  (void)self, (void)none;
  PyObject *out = PyTuple_New(isa_count);
  for (int i = 0; out && i < isa_count; i++) {
    PyObject *item = Py_BuildValue("(sL)", isas[i]->name, (long long)isas[i]->lanes);
    if (!item || PyTuple_SetItem(out, i, item)) {
      Py_DECREF(out);
      return NULL;
    }
  }
  return out;
}

static PyObject *py_set_runtime(PyObject *self, PyObject *address) {
  (void)self;
  unsigned long long value = PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return NULL;
  dw_set_runtime((uintptr_t)value);
  Py_RETURN_NONE;
}

static PyObject *py_point_cost(PyObject *self, PyObject *length) {
  (void)self;
  long long n = PyLong_AsLongLong(length);
  if (n == -1 && PyErr_Occurred()) return NULL;
  int radix[MAX_STAGES], stages;
  return PyFloat_FromDouble(n < 1 || n > MAX_POINTS ? INFINITY : plan_cost((int)n, radix, &stages));
}

// -- what is handed in --------------------------------------------------------------------------

struct memory {
  uintptr_t address;
  long long bytes;
};

// (address, bytes), or 0 for none. An error is set where this fails.
static int memory_of(PyObject *item, struct memory *out) {
  *out = (struct memory){0, 0};
  if (PyLong_Check(item)) {
    if (PyLong_AsLongLong(item) == 0) return 1;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "memory is (address, bytes), or 0 for none");
    return 0;
  }
  unsigned long long address;
  if (!PyTuple_Check(item)) {
    PyErr_SetString(PyExc_TypeError, "memory is (address, bytes), or 0 for none");
    return 0;
  }
  if (!PyArg_ParseTuple(item, "KL", &address, &out->bytes)) return 0;
  out->address = (uintptr_t)address;
  return 1;
}

// Whether memory holds so many bytes; -1 are too many to count.
static int holds(const char *what, struct memory memory, int64_t bytes) {
  if (bytes >= 0 && (memory.address || !bytes) && memory.bytes >= bytes) return 1;
  PyErr_Format(PyExc_RuntimeError, "the memory of %s holds %lld bytes, the convolution needs %lld", what,
               memory.address ? memory.bytes : 0LL, (long long)bytes);
  return 0;
}

// Bytes of so many floats, the product of up to five sizes, all at least 0; -1 if they are too many.
static int64_t floats(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e) {
  int64_t n = sizeof(float);
  if (__builtin_mul_overflow(n, a, &n) || __builtin_mul_overflow(n, b, &n) || __builtin_mul_overflow(n, c, &n) ||
      __builtin_mul_overflow(n, d, &n) || __builtin_mul_overflow(n, e, &n))
    return -1;
  return n;
}

// Sides, and how far a kernel and its zeros reach: products of three of them and of a map that fits into
// memory stay far below what an int64_t holds. kernels.py has smaller limits.
enum { MOST = 1 << 26 };

static int geometry_of(const char *bytes, Py_ssize_t size, struct geometry *g) {
  int sound = size == (Py_ssize_t)sizeof *g;
  if (sound) {
    memcpy(g, bytes, sizeof *g);
    const int64_t sizes[] = {g->batch, g->channels, g->multiplier};
    const int64_t sides[] = {g->height,   g->width, g->kernel_h, g->kernel_w, g->dil_h,     g->dil_w,
                             g->out_h,    g->out_w, g->tile_h,   g->tile_w,   g->top + 1,   g->left + 1,
                             g->points_h + 1, g->points_w + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
      sound &= sizes[i] >= 1 && sizes[i] <= INT64_C(1) << 40;
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) sound &= sides[i] >= 1 && sides[i] <= MOST;
    sound = sound && g->dil_h * (g->kernel_h - 1) < MOST && g->dil_w * (g->kernel_w - 1) < MOST;
  }
  if (!sound) PyErr_SetString(PyExc_ValueError, "a bad geometry");
  return sound;
}

static int64_t input_bytes(const struct geometry *g) {
  return floats(g->batch, g->channels, g->height, g->width, 1);
}
static int64_t output_bytes(const struct geometry *g) {
  return floats(g->batch, g->channels, g->multiplier, g->out_h, g->out_w);
}
static int64_t weight_bytes(const struct geometry *g) {
  return floats(g->channels, g->multiplier, g->kernel_h, g->kernel_w, 1);
}
static int64_t spectrum_bytes(const struct geometry *g, int64_t lanes) {
  return floats(ceil_div(g->channels * g->multiplier, lanes), g->points_h, g->points_w / 2 + 1, 2, lanes);
}

struct comparison {
  const char *a, *b;
  int64_t bytes;
  atomic_int differ;
};
enum { COMPARED = 1 << 16 };  // bytes of an item

static void compare_items(const void *data, int64_t begin, int64_t end, void *scratch) {
  (void)scratch;
  struct comparison *c = (struct comparison *)data;
  int64_t from = begin * COMPARED, to = min64(end * COMPARED, c->bytes);
  if (memcmp(c->a + from, c->b + from, (size_t)(to - from))) atomic_store(&c->differ, 1);
}

static PyObject *py_same(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  if (count != 3) return PyErr_Format(PyExc_TypeError, "same takes 3 arguments, not %zd", count);
  long long threads = PyLong_AsLongLong(args[0]);
  struct memory a, b;
  if ((threads == -1 && PyErr_Occurred()) || !memory_of(args[1], &a) || !memory_of(args[2], &b)) return NULL;
  if (!holds("the first block", a, b.bytes) || !holds("the second block", b, a.bytes)) return NULL;
  struct comparison c = {(const char *)a.address, (const char *)b.address, a.bytes, 0};
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = dw_parallel(compare_items, &c, ceil_div(c.bytes, COMPARED), 0, threads);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  return PyBool_FromLong(!atomic_load(&c.differ));
}

struct job {
  const struct kernel *kernel;
  struct work work;
};

static void run_items(const void *data, int64_t begin, int64_t end, void *scratch) {
  const struct job *job = data;
  for (int64_t item = begin; item < end; item++) job->kernel->run(&job->work, item, scratch);
}

// The scratch of all threads takes no more than this, or a tenth of the maps where that is more: fewer
// threads then work at a time. A single one is never refused.
enum { ALL_SCRATCH = 40 << 20 };

static int run_job(const struct job *job, long long threads) {
  const struct geometry *g = &job->work.g;
  int64_t channels = g->batch * g->channels, pixels = g->height * g->width;
  int64_t tenth = channels * (pixels + g->multiplier * g->out_h * g->out_w) * (int64_t)sizeof(float) / 10;
  size_t scratch = job->kernel->scratch(&job->work);
  size_t fit = (size_t)max64(ALL_SCRATCH, tenth) / (scratch + 1);
  return dw_parallel(run_items, job, job->kernel->items(&job->work), scratch,
                     fit < (size_t)max64(threads, 1) ? max64((int64_t)fit, 1) : threads);
}

static PyObject *py_run(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  if (count != 10) return PyErr_Format(PyExc_TypeError, "run takes 10 arguments, not %zd", count);
  long long v[3];
  for (int i = 0; i < 3; i++) {
    v[i] = PyLong_AsLongLong(args[i]);
    if (v[i] == -1 && PyErr_Occurred()) return NULL;
  }
  char *bytes;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(args[3], &bytes, &size)) return NULL;
  if (v[0] < 0 || v[0] >= FFT_BACKWARD || v[1] < 0 || v[1] >= isa_count) {
    PyErr_SetString(PyExc_ValueError, "no such kernel or instruction set");
    return NULL;
  }
  struct memory m[6];  // x, w, spectrum, bias, gy, y
  for (int i = 0; i < 6; i++)
    if (!memory_of(args[4 + i], &m[i])) return NULL;
  struct job job = {.kernel = &isas[v[1]]->kernels[v[0]]};
  const struct geometry *g = &job.work.g;
  if (!geometry_of(bytes, size, &job.work.g)) return NULL;
  int map = v[0] == LANES_FORWARD || v[0] == ROWS_FORWARD || v[0] == FFT_FORWARD;
  int spectrum = v[0] == FFT_SPECTRUM, transformed = v[0] == FFT_FORWARD;
  int64_t of_spectrum = spectrum || transformed ? spectrum_bytes(g, isas[v[1]]->lanes) : 0;
  // What the kernel tells of outputs that are to be summed directly stands in a place that is free.
  struct memory *told = v[0] == FFT_FORWARD ? &m[4] : v[0] == FFT_WEIGHT_GRAD ? &m[3] : NULL;
  int64_t of_told = 0;
  if (told && told->address)
    of_told = transformed ? floats(g->batch, g->channels, g->multiplier, ceil_div(g->out_h, g->tile_h),
                                   ceil_div(g->out_w, g->tile_w))
                          : floats(g->channels, g->multiplier, 1, 1, 1);
  if (told && !holds("the doubts", *told, of_told)) return NULL;
  if (!holds("x", m[0], spectrum ? 0 : input_bytes(g)) ||
      !holds("weight", m[1], map || spectrum ? weight_bytes(g) : 0) ||
      !holds("the spectrum", m[2], transformed ? of_spectrum : 0) ||
      !holds("bias", m[3], map && m[3].address ? floats(g->channels, g->multiplier, 1, 1, 1) : 0) ||
      !holds("grad", m[4], map || spectrum ? 0 : output_bytes(g)) ||
      !holds("the result", m[5], map ? output_bytes(g) : spectrum ? of_spectrum : weight_bytes(g)))
    return NULL;
  job.work.x = (const float *)m[0].address;
  job.work.w = (const float *)m[1].address;
  job.work.spectrum = (const float *)m[2].address;
  job.work.bias = (const float *)m[3].address;
  job.work.gy = (const float *)m[4].address;
  job.work.y = (float *)m[5].address;
  job.work.doubt = told ? (float *)told->address : NULL;
  if (v[0] >= FFT_SPECTRUM) {
    job.work.plan_h = plan_of(job.work.g.points_h);
    job.work.plan_w = plan_of(job.work.g.points_w);
    if (!job.work.plan_h || !job.work.plan_w) return PyErr_NoMemory();
  }
  int failed;
  Py_BEGIN_ALLOW_THREADS
  if (map) dw_expect_writes(job.work.y, (size_t)output_bytes(g));
  failed = run_job(&job, v[2]);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static int parse_branch(PyObject *branch, struct work *out) {
  const char *bytes;
  Py_ssize_t size;
  PyObject *of_w, *of_gy, *of_dw, *of_doubt;
  struct memory w, gy, dw, doubt;
  if (!PyArg_ParseTuple(branch, "y#OOOO", &bytes, &size, &of_w, &of_gy, &of_dw, &of_doubt) ||
      !memory_of(of_w, &w) || !memory_of(of_gy, &gy) || !memory_of(of_dw, &dw) || !memory_of(of_doubt, &doubt) ||
      !geometry_of(bytes, size, &out->g))
    return 0;
  if (out->g.multiplier != 1) {
    PyErr_SetString(PyExc_ValueError, "both gradients in one are for a multiplier of 1");
    return 0;
  }
  if (!holds("weight", w, weight_bytes(&out->g)) || !holds("grad", gy, output_bytes(&out->g)) ||
      !holds("the gradient of weight", dw, weight_bytes(&out->g)) ||
      !holds("the doubts", doubt, doubt.address ? floats(out->g.channels, 1, 1, 1, 1) : 0))
    return 0;
  out->w = (const float *)w.address;
  out->gy = (const float *)gy.address;
  out->y = (float *)dw.address;
  out->doubt = (float *)doubt.address;
  out->plan_h = plan_of(out->g.points_h);
  out->plan_w = plan_of(out->g.points_w);
  if (!out->plan_h || !out->plan_w) PyErr_NoMemory();
  return out->plan_h && out->plan_w;
}

static PyObject *py_backward(PyObject *self, PyObject *args) {
  (void)self;
  int isa;
  long long threads;
  struct memory x, gx;
  PyObject *of_x, *of_gx, *first, *other = NULL;
  struct work second = {0};
  atomic_int broken = 0;
  if (!PyArg_ParseTuple(args, "iLOOO!|O!", &isa, &threads, &of_x, &of_gx, &PyTuple_Type, &first,
                        &PyTuple_Type, &other) ||
      !memory_of(of_x, &x) || !memory_of(of_gx, &gx))
    return NULL;
  if (isa < 0 || isa >= isa_count) return PyErr_Format(PyExc_ValueError, "no instruction set %d", isa);
  struct job job = {.kernel = &isas[isa]->kernels[FFT_BACKWARD]};
  if (!parse_branch(first, &job.work) || (other && !parse_branch(other, &second))) return NULL;
  const struct geometry *g = &job.work.g;
  if (other && (second.g.points_h != g->points_h || second.g.points_w != g->points_w ||
                second.g.kernel_h > g->kernel_h || second.g.kernel_w > g->kernel_w ||
                input_bytes(&second.g) != input_bytes(g) || output_bytes(&second.g) != output_bytes(g))) {
    PyErr_SetString(PyExc_ValueError, "the second kernel must be the smaller, with the same points and maps");
    return NULL;
  }
  if (!holds("x", x, input_bytes(g)) || !holds("the gradient of x", gx, input_bytes(g))) return NULL;
  job.work.x = second.x = (const float *)x.address;
  job.work.gx = (float *)gx.address;
  job.work.second = other ? &second : NULL;
  job.work.broken = &broken;
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = run_job(&job, threads);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  return PyBool_FromLong(!atomic_load(&broken));
}

static PyMethodDef methods[] = {
  {"isas", py_isas, METH_NOARGS, NULL},
  {"set_runtime", py_set_runtime, METH_O, NULL},
  {"point_cost", py_point_cost, METH_O, NULL},
  {"same", (PyCFunction)(void (*)(void))py_same, METH_FASTCALL, NULL},
  {"run", (PyCFunction)(void (*)(void))py_run, METH_FASTCALL, NULL},
  {"backward", py_backward, METH_VARARGS, NULL},
  {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
  PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void) {
  find_isas();
  return PyModuleDef_Init(&definition);
}
