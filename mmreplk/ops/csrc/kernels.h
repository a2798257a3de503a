// What each instruction set offers to module.c.
#pragma once
#include "dwconv.h"

enum { DIRECT_FORWARD_NCHW, DIRECT_FORWARD_LANES, DIRECT_WEIGHT_GRAD_NCHW, DIRECT_WEIGHT_GRAD_LANES,
       DIRECT_COUNT };

struct dw_isa {
  const char *name;
  int lanes;
  const struct dw_kernel *direct[DIRECT_COUNT];
};

extern const struct dw_isa dw_isa_baseline;
#ifdef __x86_64__
extern const struct dw_isa dw_isa_avx2, dw_isa_avx512;
#endif
