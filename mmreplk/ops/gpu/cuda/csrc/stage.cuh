// How rows of a feature map come into shared memory: [row][chunk][image], chunks of 16 bytes.
//
// V elements are copied at once: rows of the map begin at multiples of it, and so do chunks.
#pragma once
constexpr int CHUNK = 16 / (int)sizeof(T);  // columns of a chunk
constexpr int PATCH = 8 / CHUNK;            // chunks of 8 columns

DEVICE int least(int a, int b) { return a < b ? a : b; }
DEVICE int most(int a, int b) { return a > b ? a : b; }
// Rounded up, of any sign.
DEVICE int multiple(int n, int of) { return (n + of - 1) & -of; }
DEVICE bool is_finite(float v) { return (bits_of(v) & 0x7f800000u) != 0x7f800000u; }

struct Stage {
  int log_images;   // images side by side
  int chunks;       // of a row
  int chunk_bytes;  // from one to the next, images in between
  int row_bytes;
};

// Rows `first` to `first + count` of one channel, from column `column` on (a multiple of CHUNK),
// into shared memory; zeros outside of the map and where there is no image.
template <int THREADS_, int V>
DEVICE void stage_rows(const Stage &s, u32 to, const T *map, u64 image_step, int images, int height,
                       int width, int first, int count, int column) {
  // Eight neighboring threads copy neighboring chunks.
  const int images_at_once = 1 << s.log_images;
  for (int q = thread_index() >> 3; q < count << s.log_images; q += THREADS_ / 8) {
    const int image = q & (images_at_once - 1), row = first + (q >> s.log_images);
    const bool there = image < images && row >= 0 && row < height;
    const T *from = map + (there ? image * image_step + (u64)row * width : 0);
    const u32 place = to + (q >> s.log_images) * s.row_bytes + image * 16;
    for (int c = thread_index() & 7; c < s.chunks; c += 8) {
      const u32 at = place + c * s.chunk_bytes;
      const int start = column + c * CHUNK;
      if constexpr (V * sizeof(T) >= 4) {
#pragma unroll
        for (int e = 0; e < CHUNK; e += V) {
          const bool inside = there && start + e >= 0 && start + e < width;
          copy_async<V * (int)sizeof(T)>(at + e * (int)sizeof(T), inside ? from + start + e : map,
                                         inside);
        }
      } else {  // too narrow for asynchronous copies
        u32 v[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int k = start + 2 * e;
          const u32 low = there && k >= 0 && k < width ? (u32)load(from + k) : 0u;
          const u32 high = there && k + 1 >= 0 && k + 1 < width ? (u32)load(from + k + 1) : 0u;
          v[e] = low | high << 16;
        }
        store_shared4(at, v);
      }
    }
  }
}
