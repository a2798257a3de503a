// mmreplk.ops._native: depth-wise convolutions of stride 1 on float32 maps in memory. The Python
// side (native.py) passes addresses of tensors it keeps alive; nothing here checks shapes. Functions:
//
//   isas() -> tuple[str, ...]          instruction sets that this machine can run, best last
//   set_runtime(address)               of GOMP_parallel in PyTorch's OpenMP runtime
//   geometry(channels_last, batch, channels, height, width, multiplier, kernel_h, kernel_w,
//            top, left, dil_h, dil_w, out_h, out_w) -> capsule
//   direct_forward(geometry, isa, lanes, threads, x, w, bias, y)
//   direct_weight_grad(geometry, isa, lanes, threads, x, gy, dw)
//
// isa is an index into isas(). lanes is 0 for the kernels whose vectors run along the width (NCHW), 1
// for those whose vectors run along the channels. An absent bias is the address 0.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include "kernels.h"
#include "threads.h"

static const struct dw_isa *isas[3];
static int isa_count;

static void find_isas(void) {
  isa_count = 0;
  isas[isa_count++] = &dw_isa_baseline;
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas[isa_count++] = &dw_isa_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      isas[isa_count++] = &dw_isa_avx512;
  }
#endif
}

// --- Arguments -----------------------------------------------------------------------------------
static int as_ints(PyObject *const *args, Py_ssize_t count, long long *out) {
  for (Py_ssize_t i = 0; i < count; i++) {
    out[i] = PyLong_AsLongLong(args[i]);
    if (out[i] == -1 && PyErr_Occurred()) return -1;
  }
  return 0;
}

static int takes(const char *name, Py_ssize_t count, Py_ssize_t wanted) {
  if (count == wanted) return 1;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, wanted, count);
  return 0;
}

static const struct dw_isa *isa_at(long long index) {
  if (index >= 0 && index < isa_count) return isas[index];
  PyErr_Format(PyExc_ValueError, "no instruction set %lld on this machine", index);
  return NULL;
}

static PyObject *outcome(int failed) {
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// --- Functions -----------------------------------------------------------------------------------
static PyObject *py_isas(PyObject *self, PyObject *none) {
  (void)self, (void)none;
  PyObject *names = PyTuple_New(isa_count);
  for (int i = 0; names && i < isa_count; i++) {
    PyObject *name = PyUnicode_FromString(isas[i]->name);
    if (!name || PyTuple_SetItem(names, i, name)) {
      Py_DECREF(names);
      return NULL;
    }
  }
  return names;
}

static PyObject *py_set_runtime(PyObject *self, PyObject *address) {
  (void)self;
  unsigned long long value = PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return NULL;
  dw_set_runtime((uintptr_t)value);
  Py_RETURN_NONE;
}

static const char GEOMETRY[] = "mmreplk geometry";

static void free_geometry(PyObject *capsule) { PyMem_Free(PyCapsule_GetPointer(capsule, GEOMETRY)); }

static PyObject *py_geometry(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  long long v[14];
  if (!takes("geometry", count, 14) || as_ints(args, count, v)) return NULL;
  struct dw_args *a = PyMem_Calloc(1, sizeof *a);
  if (!a) return PyErr_NoMemory();
  *a = (struct dw_args){
    .channels_last = (int)v[0], .batch = v[1], .channels = v[2], .height = v[3], .width = v[4],
    .multiplier = v[5], .kernel_h = v[6], .kernel_w = v[7], .top = v[8], .left = v[9],
    .dil_h = v[10], .dil_w = v[11], .out_h = v[12], .out_w = v[13]};
  PyObject *capsule = PyCapsule_New(a, GEOMETRY, free_geometry);
  if (!capsule) PyMem_Free(a);
  return capsule;
}

struct direct_job {
  const struct dw_kernel *kernel;
  struct dw_args args;
};

static void direct_work(const void *data, int64_t begin, int64_t end, void *scratch) {
  const struct direct_job *job = data;
  job->kernel->run(&job->args, begin, end, scratch);
}

static PyObject *run_direct(PyObject *capsule, int first, const long long *v, struct direct_job *job) {
  const struct dw_isa *isa = isa_at(v[0]);
  if (!isa) return NULL;
  job->kernel = isa->direct[first + (v[1] != 0)];
  if (!job->kernel) {
    PyErr_SetString(PyExc_NotImplementedError, "the direct kernels were not compiled in");
    return NULL;
  }
  (void)capsule;
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = dw_parallel(direct_work, job, job->kernel->items(&job->args),
                       job->kernel->scratch(&job->args), v[2]);
  Py_END_ALLOW_THREADS
  return outcome(failed);
}

static PyObject *py_direct_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  long long v[7];
  if (!takes("direct_forward", count, 8) || as_ints(args + 1, 7, v)) return NULL;
  const struct dw_args *a = PyCapsule_GetPointer(args[0], GEOMETRY);
  if (!a) return NULL;
  struct direct_job job = {.args = *a};
  job.args.x = (const float *)(uintptr_t)v[3];
  job.args.w = (const float *)(uintptr_t)v[4];
  job.args.bias = (const float *)(uintptr_t)v[5];
  job.args.y = (float *)(uintptr_t)v[6];
  return run_direct(args[0], DIRECT_FORWARD_NCHW, v, &job);
}

static PyObject *py_direct_weight_grad(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  (void)self;
  long long v[6];
  if (!takes("direct_weight_grad", count, 7) || as_ints(args + 1, 6, v)) return NULL;
  const struct dw_args *a = PyCapsule_GetPointer(args[0], GEOMETRY);
  if (!a) return NULL;
  struct direct_job job = {.args = *a};
  job.args.x = (const float *)(uintptr_t)v[3];
  job.args.gy = (const float *)(uintptr_t)v[4];
  job.args.y = (float *)(uintptr_t)v[5];
  return run_direct(args[0], DIRECT_WEIGHT_GRAD_NCHW, v, &job);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
  {"isas", py_isas, METH_NOARGS, NULL},
  {"set_runtime", py_set_runtime, METH_O, NULL},
  FAST(geometry),
  FAST(direct_forward),
  FAST(direct_weight_grad),
  {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
  PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void) {
  find_isas();
  return PyModuleDef_Init(&definition);
}
