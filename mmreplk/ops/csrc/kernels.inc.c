// Every kernel for one instruction set: included by isa_*.c, which define ISA, VF and REGISTERS.
#include "dwconv.h"
#include "simd.h"
#include "lanes.inc.c"
#include "direct.inc.c"
#include "fft1d.inc.c"
#include "fft_lines.inc.c"
#include "fft.inc.c"

#define STRING_(text) #text
#define STRING(text) STRING_(text)

const struct isa SUFFIXED(isa) = {
  .name = STRING(ISA),
  .lanes = VF,
  .kernels = {
    [DIRECT_FORWARD] = {forward_items, forward_scratch, forward_run},
    [DIRECT_WEIGHT_GRAD] = {weight_grad_items, weight_grad_scratch, weight_grad_run},
    [FFT_SPECTRUM] = {spectrum_items, spectrum_scratch, spectrum_run},
    [FFT_FORWARD] = {fft_items, fft_scratch, fft_run},
    [FFT_WEIGHT_GRAD] = {fft_grad_items, fft_grad_scratch, fft_grad_run},
  },
};
