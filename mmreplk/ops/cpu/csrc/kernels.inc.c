// Every kernel for one instruction set: included by isa_*.c, which define ISA, VF and REGISTERS.
#include "dwconv.h"
#include "simd.h"
#include "lanes.inc.c"
#include "direct.inc.c"
#include "direct_lanes.inc.c"
#include "direct_stream.inc.c"
#include "direct_rows.inc.c"
#include "fft1d.inc.c"
#include "fft_lines.inc.c"
#include "fft_guard.inc.c"
#include "fft.inc.c"

#define STRING_(text) #text
#define STRING(text) STRING_(text)

const struct isa SUFFIXED(isa) = {
  .name = STRING(ISA),
  .lanes = VF,
  .kernels = {
    [LANES_FORWARD] = {lanes_items, lanes_scratch, lanes_run},
    [LANES_WEIGHT_GRAD] = {lanes_grad_items, lanes_grad_scratch, lanes_grad_run},
    [ROWS_FORWARD] = {rows_items, rows_scratch, rows_run},
    [ROWS_WEIGHT_GRAD] = {rows_grad_items, rows_grad_scratch, rows_grad_run},
    [FFT_SPECTRUM] = {spectrum_items, spectrum_scratch, spectrum_run},
    [FFT_FORWARD] = {fft_items, fft_scratch, fft_run},
    [FFT_WEIGHT_GRAD] = {fft_grad_items, fft_grad_scratch, fft_grad_run},
    [FFT_BACKWARD] = {fft_grad_items, fft_back_scratch, fft_back_run},
  },
};
