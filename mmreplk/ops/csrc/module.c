// mmreplk.ops._native: depth-wise convolutions of stride 1 on float32 maps in memory. native.py
// passes addresses of tensors that it keeps alive; nothing here checks shapes. Functions:
//
//   isas() -> tuple[(name, lanes), ...]   instruction sets that this machine can run, best last
//   set_runtime(address)                  of GOMP_parallel in PyTorch's OpenMP runtime
//   point_cost(n) -> float                nanoseconds a point of a transform of length n, forward and
//                                         back, on the machine that plan.c was fitted to; inf if
//                                         n has a prime factor above 7 or is too large
//   same(threads, a, b, bytes) -> bool    whether two blocks of memory hold the same bits
//   run(kernel, isa, threads, geometry, x, w, spectrum, bias, gy, y)
//                                         FFT_WEIGHT_GRAD has doubt in the place of bias,
//                                         FFT_FORWARD in that of gy
//   backward(isa, threads, x, gx, branch[, branch]) -> bool
//                                         FFT_BACKWARD; branch is (geometry, w, gy, dw, doubt), both of
//                                         the same points. False: gx is wrong, there are NaN or
//                                         Inf, or gradients far below others of their tile
//
// kernel is a value of the enum in dwconv.h, isa an index into isas(), geometry the bytes of a
// struct geometry, the rest addresses, 0 for none.
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
  if (count != 4) return PyErr_Format(PyExc_TypeError, "same takes 4 arguments, not %zd", count);
  long long v[4];
  for (int i = 0; i < 4; i++) {
    v[i] = PyLong_AsLongLong(args[i]);
    if (v[i] == -1 && PyErr_Occurred()) return NULL;
  }
  struct comparison c = {(const char *)(uintptr_t)v[1], (const char *)(uintptr_t)v[2], v[3], 0};
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = dw_parallel(compare_items, &c, ceil_div(c.bytes, COMPARED), 0, v[0]);
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
  long long v[10];
  for (int i = 0; i < 10; i++) {
    if (i == 3) continue;
    v[i] = PyLong_AsLongLong(args[i]);
    if (v[i] == -1 && PyErr_Occurred()) return NULL;
  }
  char *bytes;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(args[3], &bytes, &size)) return NULL;
  if (v[0] < 0 || v[0] >= FFT_BACKWARD || v[1] < 0 || v[1] >= isa_count ||
      size != (Py_ssize_t)sizeof(struct geometry)) {
    PyErr_SetString(PyExc_ValueError, "no such kernel or instruction set, or a bad geometry");
    return NULL;
  }
  struct job job = {.kernel = &isas[v[1]]->kernels[v[0]]};
  memcpy(&job.work.g, bytes, sizeof job.work.g);
  job.work.x = (const float *)(uintptr_t)v[4];
  job.work.w = (const float *)(uintptr_t)v[5];
  job.work.spectrum = (const float *)(uintptr_t)v[6];
  job.work.bias = (const float *)(uintptr_t)v[7];
  job.work.gy = (const float *)(uintptr_t)v[8];
  job.work.y = (float *)(uintptr_t)v[9];
  job.work.doubt = (float *)(uintptr_t)v[v[0] == FFT_FORWARD ? 8 : 7];
  if (v[0] >= FFT_SPECTRUM) {
    job.work.plan_h = plan_of(job.work.g.points_h);
    job.work.plan_w = plan_of(job.work.g.points_w);
    if (!job.work.plan_h || !job.work.plan_w) return PyErr_NoMemory();
  }
  const struct geometry *g = &job.work.g;
  int map = v[0] == LANES_FORWARD || v[0] == ROWS_FORWARD || v[0] == FFT_FORWARD;
  int failed;
  Py_BEGIN_ALLOW_THREADS
  if (map)
    dw_expect_writes(job.work.y, sizeof(float) * (size_t)(g->batch * g->channels * g->multiplier *
                                                          g->out_h * g->out_w));
  failed = run_job(&job, v[2]);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static int parse_branch(PyObject *branch, struct work *out) {
  const char *bytes;
  Py_ssize_t size;
  unsigned long long w, gy, dw, doubt;
  if (!PyArg_ParseTuple(branch, "y#KKKK", &bytes, &size, &w, &gy, &dw, &doubt)) return 0;
  if (size != (Py_ssize_t)sizeof(struct geometry)) {
    PyErr_SetString(PyExc_ValueError, "a bad geometry");
    return 0;
  }
  memcpy(&out->g, bytes, sizeof out->g);
  out->w = (const float *)(uintptr_t)w;
  out->gy = (const float *)(uintptr_t)gy;
  out->y = (float *)(uintptr_t)dw;
  out->doubt = (float *)(uintptr_t)doubt;
  out->plan_h = plan_of(out->g.points_h);
  out->plan_w = plan_of(out->g.points_w);
  if (!out->plan_h || !out->plan_w) PyErr_NoMemory();
  return out->plan_h && out->plan_w;
}

static PyObject *py_backward(PyObject *self, PyObject *args) {
  (void)self;
  int isa;
  long long threads;
  unsigned long long x, gx;
  PyObject *first, *other = NULL;
  struct work second = {0};
  atomic_int broken = 0;
  if (!PyArg_ParseTuple(args, "iLKKO!|O!", &isa, &threads, &x, &gx, &PyTuple_Type, &first, &PyTuple_Type,
                        &other))
    return NULL;
  if (isa < 0 || isa >= isa_count) return PyErr_Format(PyExc_ValueError, "no instruction set %d", isa);
  struct job job = {.kernel = &isas[isa]->kernels[FFT_BACKWARD]};
  if (!parse_branch(first, &job.work) || (other && !parse_branch(other, &second))) return NULL;
  const struct geometry *g = &job.work.g;
  if (other && (second.g.points_h != g->points_h || second.g.points_w != g->points_w ||
                second.g.kernel_h > g->kernel_h || second.g.kernel_w > g->kernel_w)) {
    PyErr_SetString(PyExc_ValueError, "the second kernel must be the smaller, with the same points");
    return NULL;
  }
  job.work.x = second.x = (const float *)(uintptr_t)x;
  job.work.gx = (float *)(uintptr_t)gx;
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
