// Runs a kernel's items on several threads, and the memory they work in.
#pragma once
#include <stdint.h>
#include "dwconv.h"

// The OpenMP runtime's entry point (GOMP_parallel) in the process; 0 for none. A second runtime
// beside PyTorch's would fight it for the cores, so nothing is linked: Python passes the address in.
void dw_set_runtime(uintptr_t gomp_parallel);

// Work on items [begin, end) of what `data` describes, with a thread's own scratch.
typedef void dw_work(const void *data, int64_t begin, int64_t end, void *scratch);

// Calls work on [0, items) in at most `threads` threads, all of them in the caller's floating point mode
// (denormals flushed to zero or not). `scratch` is the bytes that each needs.
// Returns 0, or -1 if there was not enough memory: then nothing was called.
int dw_parallel(dw_work *work, const void *data, int64_t items, size_t scratch, int64_t threads);

// Asks for huge pages behind a large array that is about to be written. Where PyTorch has just got it from the
// system, the page faults of ordinary pages would take longer than the convolution.
void dw_expect_writes(void *begin, size_t bytes);
