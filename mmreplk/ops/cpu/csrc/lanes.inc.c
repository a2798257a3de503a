// Maps in and out of vectors whose lanes are channels.

// The float offset of an element is plane * image_and_channel + pixel * step.
struct view {
  const float *lane[VF];  // pixel 0 of each lane's plane; beyond the lanes in use, of the last of them
  int64_t step;           // floats from a pixel to the next
  int lanes;              // lanes in use; the others read as 0
  int together;           // the lanes lie side by side in memory (channels-last)
};

static inline struct view view_of(const struct geometry *g, const float *x, int64_t image,
                                            int64_t first, int64_t channels, int64_t multiplier,
                                            int64_t pixels) {
  struct view v;
  int64_t outputs = channels * multiplier;
  v.lanes = (int)min64(VF, outputs - first);
  v.step = g->channels_last ? channels : 1;
  v.together = g->channels_last && multiplier == 1;
  for (int l = 0; l < VF; l++) {
    int64_t c = min64(first + l, outputs - 1) / multiplier;
    v.lane[l] = x + (g->channels_last ? image * pixels * channels + c
                                      : (image * channels + c) * pixels);
  }
  return v;
}

INLINE void clear(float *p, int64_t count) {
  int64_t i = 0;
  for (; i + VF <= count; i += VF) store(p + i, zero());
  if (i < count) store_part(p + i, zero(), count - i);
}

// Pixel from + r * row_step + c of a view to or from vectors `row` and `column` floats apart.
// Rows that lie end to end are one run, so that narrow maps fill the transposed blocks.
INLINE void move_pixels(const int in, const struct view *v, int64_t from, int64_t rows,
                        int64_t row_step, int64_t columns, float *p, int64_t row, int64_t column) {
  if (v->step != 1 || v->together) {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c++) {
        int64_t pixel = (from + r * row_step + c) * v->step;
        float *q = p + r * row + c * column;
        if (v->together && v->lanes == VF) {
          if (in) store(q, load(v->lane[0] + pixel));
          else store((float *)v->lane[0] + pixel, load(q));
        } else if (v->together) {
          if (in) store(q, load_part(v->lane[0] + pixel, v->lanes));
          else store_part((float *)v->lane[0] + pixel, load(q), v->lanes);
        } else {
          if (in) clear(q, VF);
          for (int l = 0; l < v->lanes; l++)
            if (in) q[l] = v->lane[l][pixel];
            else ((float *)v->lane[l])[pixel] = q[l];
        }
      }
    return;
  }
  int64_t run = columns, runs = rows;
  if (row_step == columns) run = rows * columns, runs = 1;
  for (int64_t s = 0; s < runs; s++)
    for (int64_t i = 0; i < run; i += VF) {
      // The last block of a run ends where the run does, and overlaps the one before.
      int64_t n = min64(VF, run), at = min64(i, run - n);
      const float *base[VF];
      for (int l = 0; l < VF; l++) base[l] = v->lane[l < v->lanes ? l : 0] + from + s * row_step + at;
      vf t[VF];
      float *q = p + s * row + at / columns * row + at % columns * column;
      int64_t left = columns - at % columns;
      if (in) {
        if (n == VF) UNROLL for (int l = 0; l < VF; l++) t[l] = load(base[l]);
        else for (int l = 0; l < VF; l++) t[l] = load_part(base[l], n);
        if (v->lanes < VF)
          for (int l = 0; l < VF; l++) t[l] = l < v->lanes ? t[l] : zero();
        transpose(t);
        for (int64_t l = 0; l < n; l++, q += column) {
          if (left-- == 0) q += row - columns * column, left = columns - 1;
          store(q, t[l]);
        }
      } else {
        for (int64_t l = 0; l < n; l++, q += column) {
          if (left-- == 0) q += row - columns * column, left = columns - 1;
          t[l] = load(q);
        }
        for (int64_t l = n; l < VF; l++) t[l] = zero();
        transpose(t);
        for (int l = 0; l < v->lanes; l++) store_part((float *)base[l], t[l], n);
      }
    }
}
NOINLINE void pixels_in(const struct view *v, int64_t from, int64_t rows, int64_t row_step,
                        int64_t columns, float *p, int64_t row, int64_t column) {
  move_pixels(1, v, from, rows, row_step, columns, p, row, column);
}
NOINLINE void pixels_out(const struct view *v, int64_t from, int64_t rows, int64_t row_step,
                         int64_t columns, float *p, int64_t row, int64_t column) {
  move_pixels(0, v, from, rows, row_step, columns, p, row, column);
}

// The [channel][count] array of the weights, or of their gradient, `count` floats a channel.
static struct view weights_view(const float *w, int64_t first, int64_t channels, int64_t count) {
  const struct geometry flat = {0};
  return view_of(&flat, w, 0, first, channels, 1, count);
}
