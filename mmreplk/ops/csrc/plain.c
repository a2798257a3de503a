#include "dwconv.h"

void plain_tile(const struct geometry *g, const float *x, int64_t x_step, const float *w, float bias,
                float *y, int64_t y_step, int64_t row, int64_t row_end, int64_t column,
                int64_t column_end) {
  for (int64_t i = row; i < row_end; i++)
    for (int64_t j = column; j < column_end; j++) {
      float sum = bias;
      for (int64_t u = 0; u < g->kernel_h; u++) {
        int64_t r = i + u * g->dil_h - g->top;
        if (r < 0 || r >= g->height) continue;
        for (int64_t v = 0; v < g->kernel_w; v++) {
          int64_t c = j + v * g->dil_w - g->left;
          if (c >= 0 && c < g->width)
            sum += x[(r * g->width + c) * x_step] * w[u * g->kernel_w + v];
        }
      }
      y[(i * g->out_w + j) * y_step] = sum;
    }
}
