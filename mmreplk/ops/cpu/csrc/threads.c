#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

// --- Memory --------------------------------------------------------------------------------------
// A fresh block of megabytes costs a page fault every 4 KB, more time than a small convolution. So
// blocks are kept between calls: at most POOL of them, none with more than KEEP bytes a thread.
// Taking and giving back are atomic exchanges, which a fork at any moment leaves intact.
enum { POOL = 4, KEEP = 6 << 20, LINE = 64 };

struct block {
  size_t bytes;
};
static _Atomic(struct block *) pool[POOL];

static struct block *take(size_t bytes) {
  for (int i = 0; i < POOL; i++) {
    struct block *block = atomic_exchange(&pool[i], NULL);
    if (block && block->bytes >= bytes) return block;
    free(block);
  }
  void *memory;
  if (bytes > SIZE_MAX - 2 * LINE || posix_memalign(&memory, LINE, bytes + LINE)) return NULL;
  struct block *block = memory;
  block->bytes = bytes;
  return block;
}

static void give_back(struct block *block, int64_t threads) {
#ifdef MMREPLK_NO_POOL  // tools/sanitize.sh: scratch that is used too long is to be noticed
  threads = 0;
#endif
  if (threads && block->bytes / (size_t)threads <= KEEP)
    for (int i = 0; i < POOL; i++) {
      struct block *expected = NULL;
      if (atomic_compare_exchange_strong(&pool[i], &expected, block)) return;
    }
  free(block);
}

void dw_expect_writes(void *begin, size_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t huge = 2 << 20;
  uintptr_t from = ((uintptr_t)begin + huge - 1) / huge * huge, to = ((uintptr_t)begin + bytes) / huge * huge;
  if (bytes >= 4 * huge && from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

// --- Threads -------------------------------------------------------------------------------------
typedef void gomp_parallel(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel *runtime;
static atomic_int in_child;

// The threads of the parent's pool do not exist in a forked child, and waiting for them would last
// for ever: a child works on the calling thread alone.
static void after_fork(void) { atomic_store(&in_child, 1); }

void dw_set_runtime(uintptr_t address) {
  static atomic_flag registered = ATOMIC_FLAG_INIT;
  if (!atomic_flag_test_and_set(&registered)) pthread_atfork(NULL, NULL, after_fork);
  runtime = (gomp_parallel *)address;
}

// What the caller has told its processor to do with denormal numbers and with rounding
// (torch.set_flush_denormal): each thread has a mode of its own, and results would depend on which
// thread did what. The flags of what has happened stay with their thread.
#if defined(__SSE__)
#include <xmmintrin.h>
enum { FLAGS = 0x3f };
static uint64_t float_mode(void) { return _mm_getcsr(); }
static void set_float_mode(uint64_t mode) {
  unsigned now = _mm_getcsr(), next = ((unsigned)mode & ~FLAGS) | (now & FLAGS);
  if (next != now) _mm_setcsr(next);
}
#elif defined(__aarch64__)
static uint64_t float_mode(void) {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
static void set_float_mode(uint64_t mode) {
  if (mode != float_mode()) __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}
#else
static uint64_t float_mode(void) { return 0; }
static void set_float_mode(uint64_t mode) { (void)mode; }
#endif

struct job {
  dw_work *work;
  const void *data;
  int64_t items, step;
  size_t scratch;
  char *memory;
  uint64_t mode;
  _Atomic int64_t next;
  atomic_int threads;
};

static void worker(void *data) {
  struct job *job = data;
  char *scratch = job->memory + (size_t)atomic_fetch_add(&job->threads, 1) * job->scratch;
  uint64_t own = float_mode();
  set_float_mode(job->mode);
  for (;;) {
    int64_t begin = atomic_fetch_add(&job->next, job->step);
    if (begin >= job->items) break;
    int64_t end = begin + job->step < job->items ? begin + job->step : job->items;
    job->work(job->data, begin, end, scratch);
  }
  set_float_mode(own);
}

int dw_parallel(dw_work *work, const void *data, int64_t items, size_t scratch, int64_t threads) {
  if (items <= 0) return 0;
  if (!runtime || atomic_load(&in_child) || threads < 1) threads = 1;
  if (threads > items) threads = items;
  scratch = (scratch + 2 * LINE - 1) / LINE * LINE;
  if (scratch > SIZE_MAX / 2 / (size_t)threads) return -1;
  struct block *block = take(scratch * (size_t)threads);
  if (!block) return -1;
  // Several helpings a thread, so that one that was held up does not hold up the others.
  int64_t step = items / (threads * 8);
  struct job job = {work, data, items, step > 0 ? step : 1, scratch, (char *)block + LINE, float_mode(), 0, 0};
  if (threads == 1)
    work(data, 0, items, job.memory);
  else
    runtime(worker, &job, (unsigned)threads, 0);
  give_back(block, threads);
  return 0;
}
