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
      y[(i * g->out_w + j) * y_step] = g->relu && sum < 0 ? 0 : sum;
    }
}

void plain_grad(const struct work *k, int64_t c, int64_t from, int64_t to) {
  const struct geometry *g = &k->g;
  int64_t outputs = g->channels * g->multiplier, source = c / g->multiplier;
  int64_t pixels = g->height * g->width, out_pixels = g->out_h * g->out_w;
  int64_t x_step = g->channels_last ? g->channels : 1, y_step = g->channels_last ? outputs : 1;
  for (int64_t u = from; u < to; u++)
    for (int64_t v = 0; v < g->kernel_w; v++) {
      int64_t down = u * g->dil_h - g->top, right = v * g->dil_w - g->left;
      int64_t begin = max64(0, -right), end = min64(g->out_w, g->width - right);
      double sum = 0;
      for (int64_t n = 0; n < g->batch; n++) {
        const float *x = k->x + (g->channels_last ? n * pixels * g->channels + source
                                                  : (n * g->channels + source) * pixels);
        const float *gy = k->gy + (g->channels_last ? n * out_pixels * outputs + c
                                                    : (n * outputs + c) * out_pixels);
        for (int64_t i = max64(0, -down); i < min64(g->out_h, g->height - down); i++)
          for (int64_t j = begin; j < end; j++)
            sum += (double)x[((i + down) * g->width + j + right) * x_step] *
                   gy[(i * g->out_w + j) * y_step];
      }
      k->y[(c * g->kernel_h + u) * g->kernel_w + v] = (float)sum;
    }
}
