// The kernels in what every machine of the compiler's target has: SSE2 on x86-64, NEON on ARM64.
#define ISA baseline
#define VF 4
#define REGISTERS 16
#include "kernels.inc.c"
