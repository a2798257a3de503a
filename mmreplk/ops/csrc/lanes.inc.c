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

// Pixels [from, from + count) into out[0 .. count).
static inline void gather(const struct view *v, int64_t from, int64_t count, vf *out) {
  if (v->together) {
    const float *p = v->lane[0] + from * v->step;
    if (v->lanes == VF)
      for (int64_t i = 0; i < count; i++) out[i] = load(p + i * v->step);
    else
      for (int64_t i = 0; i < count; i++) {
        vf t = {};
        memcpy(&t, p + i * v->step, sizeof(float) * v->lanes);
        out[i] = t;
      }
    return;
  }
  if (v->step != 1) {
    for (int64_t i = 0; i < count; i++) {
      vf t = {};
      for (int l = 0; l < v->lanes; l++) t[l] = v->lane[l][(from + i) * v->step];
      out[i] = t;
    }
    return;
  }
  int64_t i = 0;
  for (; i + VF <= count; i += VF) {
    vf block[VF];
    for (int l = 0; l < VF; l++) block[l] = l < v->lanes ? load(v->lane[l] + from + i) : (vf){};
    transpose(block);
    for (int l = 0; l < VF; l++) out[i + l] = block[l];
  }
  if (i < count) {
    vf block[VF];
    for (int l = 0; l < VF; l++) {
      block[l] = (vf){};
      if (l < v->lanes) memcpy(&block[l], v->lane[l] + from + i, sizeof(float) * (count - i));
    }
    transpose(block);
    for (int64_t l = 0; l < count - i; l++) out[i + l] = block[l];
  }
}

// The reverse: in[0 .. count) to pixels [from, from + count) of a view of writable memory.
static inline void scatter(const struct view *v, int64_t from, int64_t count,
                                     const vf *in) {
  if (v->together) {
    float *p = (float *)v->lane[0] + from * v->step;
    if (v->lanes == VF)
      for (int64_t i = 0; i < count; i++) store(p + i * v->step, in[i]);
    else
      for (int64_t i = 0; i < count; i++)
        memcpy(p + i * v->step, &in[i], sizeof(float) * v->lanes);
    return;
  }
  if (v->step != 1) {
    for (int64_t i = 0; i < count; i++)
      for (int l = 0; l < v->lanes; l++) ((float *)v->lane[l])[(from + i) * v->step] = in[i][l];
    return;
  }
  int64_t i = 0;
  for (; i < count; i += VF) {
    vf block[VF];
    int64_t n = min64(VF, count - i);
    for (int l = 0; l < VF; l++) block[l] = l < n ? in[i + l] : (vf){};
    transpose(block);
    for (int l = 0; l < v->lanes; l++) {
      float *p = (float *)v->lane[l] + from + i;
      if (n == VF)
        store(p, block[l]);
      else
        memcpy(p, &block[l], sizeof(float) * n);
    }
  }
}

// Weights of VF channels, or any [channel][count] array, into out[0 .. count).
static inline void gather_weights(const float *w, int64_t first, int64_t outputs,
                                            int64_t count, vf *out) {
  struct view v = {.step = 1, .lanes = (int)min64(VF, outputs - first), .together = 0};
  for (int l = 0; l < v.lanes; l++) v.lane[l] = w + (first + l) * count;
  gather(&v, 0, count, out);
}
