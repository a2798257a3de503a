// Every kernel for one instruction set: included by isa_*.c, which define ISA and VF.
#include "kernels.h"
#include "simd.h"

#if __has_include("direct.inc.c")
#include "direct.inc.c"
#define DIRECT(name) &SUFFIXED(name)
#else
#define DIRECT(name) NULL
#endif

#define STRING_(text) #text
#define STRING(text) STRING_(text)

const struct dw_isa SUFFIXED(dw_isa) = {
  .name = STRING(ISA),
  .lanes = VF,
  .direct = {DIRECT(direct_forward_nchw), DIRECT(direct_forward_lanes),
             DIRECT(direct_weight_grad_nchw), DIRECT(direct_weight_grad_lanes)},
};
