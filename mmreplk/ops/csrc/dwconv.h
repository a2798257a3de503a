// The contract between the Python module (module.c), which splits work among threads, and the
// kernels, each of which is compiled once for every instruction set (see simd.h).
#pragma once
#include <stddef.h>
#include <stdint.h>

// One depth-wise convolution of stride 1 in float32, with c the output channel:
//   y[n,c,i,j] = bias[c] + sum_{u,v} x[n, c / multiplier, i + u*dil_h - top, j + v*dil_w - left] * w[c,u,v]
// where reads outside the map are 0. Maps are dense, in NCHW order or, with channels_last, in NHWC
// order; input and output share the order. Weights are always [out channel][kernel_h][kernel_w].
// All sizes are at least 1 and top, left >= 0; the padding at the bottom and right is implied by
// out_h and out_w. Element counts can exceed 2^31: every index is an int64_t.
struct dw_args {
  const float *x;
  const float *w;     // weights (forward), unused by a weight gradient
  const float *bias;  // one per output channel, or NULL
  const float *gy;    // gradient of the output (weight gradients only)
  float *y;           // output map (forward), or gradient of the weights
  int64_t batch, channels, height, width, multiplier;
  int64_t kernel_h, kernel_w, top, left, dil_h, dil_w, out_h, out_w;
  int channels_last;
};

// A kernel is three functions of the arguments: how many independent items of work there are, how
// many bytes of 64-byte aligned scratch a thread needs, and one that does items [begin, end).
// Items write disjoint memory and the order of additions inside an item is fixed, so the result
// does not depend on the number of threads.
struct dw_kernel {
  int64_t (*items)(const struct dw_args *);
  size_t (*scratch)(const struct dw_args *);
  void (*run)(const struct dw_args *, int64_t begin, int64_t end, void *scratch);
};
