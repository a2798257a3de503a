"""The Triton kernels of the large depth-wise convolution. Grids and tiles: ``triton_launch.py``.

The outputs of one channel are cut into patches of ``R`` rows and ``T`` columns. All patches of all
images see their inputs through the same weights, so one channel is one matrix product::

    y[patch, (a, t)] = sum over (b, k) of  x[patch, (b, k)] * B[(b, k), (a, t)]
    B[(b, k), (a, t)] = w[b - a, k - t + shift]          (0 where there is no such tap)

with ``(a, t)`` a place in the patch and ``(b, k)`` a place in the patch's input window. ``B`` is a
Toeplitz matrix in rows and in columns. ``(b, k)`` runs in blocks of ``KU`` neighboring columns;
blocks outside of the map are left out.
"""

import triton
import triton.language as tl


@triton.jit
def _finite(value):
    return tl.abs(value) < float('inf')


@triton.jit
def _tf32(value):
    """float32 rounded to TF32, whose low 13 bits are zero; to nearest, ties away from zero."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(_finite(value), rounded, value)


# Sizes are not specialised on: one compilation serves all maps and kernels. What is known of their
# alignment is given by the constants that some of them (names in _v) are divided by.
_SIZES = [
    'size', 'part', 'part_v', 'first_row', 'first', 'rows', 'length', 'length_v', 'kh', 'kw',
    'channels', 'channel0', 'images', 'height', 'width', 'width_v', 'out_height', 'out_width',
    'out_width_v', 'top', 'left', 'before_v', 'patches_i', 'patches_j', 'tiles', 'first_k_v',
    'start_v', 'blocks_i', 'blocks_j', 'tiles_a', 'width_a', 'splits'
]


@triton.jit(do_not_specialize=_SIZES)
def toeplitz_kernel(w_ptr, table_ptr, size, channel0, part, first_row, first, rows, length, kh, kw,
                    V: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Weights with zeros around them, ``V`` times, each copy shifted by one more column.

    table[channel, row, s, j] = w[channel0 + channel, first_row + row, first + j + s]. Any run of a
    kernel row can then be read from some copy at a multiple of V, so in wide, aligned loads. With
    SPLIT = 1 values are rounded to TF32; with SPLIT = 2 the rest follows in a second table, part
    elements on.
    """
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = (e % length).to(tl.int32)
    e_s = e // length
    s = (e_s % V).to(tl.int32)
    e_row = e_s // V
    u = (e_row % rows).to(tl.int32) + first_row
    channel = channel0 + e_row // rows
    v = first + j + s
    tap = (e < size) & (u >= 0) & (u < kh) & (v >= 0) & (v < kw)
    w = tl.load(w_ptr + channel * (kh * kw) + u * kw + v, mask=tap, other=0.0)
    if SPLIT == 0:
        tl.store(table_ptr + e, w, mask=e < size)
    else:
        high = _tf32(w)
        tl.store(table_ptr + e, high, mask=e < size)
        if SPLIT == 2:
            tl.store(table_ptr + part + e, _tf32(w - high), mask=e < size)


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(x_ptr, table_ptr, part_v, w_ptr, bias_ptr, y_ptr,
                   channels, channel0, images, height, width_v, out_height, out_width_v,
                   kh, kw, top, left, before_v, patches_i, patches_j, tiles,
                   rows, length_v, first_row, first_k_v,
                   BM: tl.constexpr, R: tl.constexpr, T: tl.constexpr, BK: tl.constexpr,
                   KU: tl.constexpr, XV: tl.constexpr, YV: tl.constexpr, V: tl.constexpr,
                   SPLIT: tl.constexpr, ONE_COLUMN: tl.constexpr, WIDE: tl.constexpr,
                   HAS_BIAS: tl.constexpr, RELU: tl.constexpr, CHUNK: tl.constexpr,
                   UPCAST: tl.constexpr):
    """One tile of ``BM`` patches of one channel; patches are ordered (column, row, image).

    Names ending in _v are given in units of XV (width, before), YV (out_width) or V (the others).
    `before` is `left` rounded up to XV. ONE_COLUMN: the patches of a tile lie below each other.
    WIDE: offsets between images exceed 32 bits.
    """
    BN: tl.constexpr = R * T
    width = width_v * XV
    out_width = out_width_v * YV
    before = before_v * XV
    length = length_v * V
    pid = tl.program_id(0)
    local_channel = pid // tiles
    channel = channel0 + local_channel
    start = (pid % tiles) * BM
    total = images * patches_i * patches_j
    plane = height * width

    # The window of (b, k) that meets the map for any patch of this tile.
    first = start // images
    last = (tl.minimum(start + BM, total) - 1) // images
    j_low = first // patches_i
    j_high = last // patches_i
    i_low = tl.where(j_low == j_high, first % patches_i, 0)
    i_high = tl.where(j_low == j_high, last % patches_i, patches_i - 1)
    b_low = tl.maximum(0, top - i_high * R)
    b_high = tl.minimum(R + kh - 1, height + top - i_low * R)
    k_end = tl.minimum(T + kw - 1 + before - left, width + before - j_low * T)
    k_end = tl.maximum(k_end + KU - 1, KU) // KU
    k_low = tl.minimum(tl.maximum(0, before - j_high * T) // KU, k_end - 1)
    blocks = k_end - k_low
    inverse = 65536 // blocks + 1  # (z * inverse) >> 16 == z // blocks for the z met here

    m = start + tl.arange(0, BM)
    image = m % images
    patch = m // images
    i0 = tl.where(m < total, (patch % patches_i) * R - top, -(1 << 29))
    j0 = (patch // patches_i) * T - before
    if WIDE:
        x_off = image.to(tl.int64) * channels * plane + i0 * width + j0
    else:
        x_off = image * (channels * plane) + i0 * width + j0
    x_ptr += channel.to(tl.int64) * plane

    n = tl.arange(0, BN)
    turned = T - 1 - n % T
    b_off = (turned % V) * length + turned // V * V - (n // T) * (V * length)
    table_ptr += local_channel.to(tl.int64) * (rows * V * length) - first_k_v * V
    table_ptr -= first_row * (V * length)

    q = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, (b_high - b_low) * blocks, BK // KU):
        z = step + q // KU
        zb = (z * inverse) >> 16
        b = zb + b_low
        k = (z - zb * blocks + k_low) * KU + q % KU
        # One unsigned comparison each, since masks cost as much as addresses.
        inside = (i0[:, None] + b[None, :]).to(tl.uint32) < height.to(tl.uint32)
        if ONE_COLUMN:
            inside &= ((j_low * T - before) + k).to(tl.uint32)[None, :] < width.to(tl.uint32)
        else:
            inside &= (j0[:, None] + k[None, :]).to(tl.uint32) < width.to(tl.uint32)
        x = tl.load(x_ptr + (x_off[:, None] + (b * width + k)[None, :]), mask=inside, other=0.0)
        band_ptr = table_ptr + (b_off[None, :] + (b * (V * length) + k)[:, None])
        band = tl.load(band_ptr)
        if UPCAST:
            acc = tl.dot(x.to(tl.float32), band.to(tl.float32), acc, input_precision='ieee')
        elif SPLIT == 0:
            acc = tl.dot(x, band, acc)
        elif SPLIT == 1:
            acc = tl.dot(x, band, acc, input_precision='tf32')
        else:
            # x * w up to 2^-22: TF32 parts of both, the product of the rests left out. Tensor cores
            # cut sums off instead of rounding them, so each step's sum is added outside of them.
            rest = tl.load(band_ptr + part_v * V)
            high = _tf32(x)
            part = tl.dot(x - high, band, input_precision='tf32')
            part = tl.dot(high, rest, part, input_precision='tf32')
            acc += tl.dot(high, band, part, input_precision='tf32')

    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel).to(tl.float32)
    acc += bias
    oi = i0 + top
    oj = j0 + before
    row = oi[:, None] + (n // T)[None, :]
    column = oj[:, None] + (n % T)[None, :]
    stored = (row >= 0) & (row < out_height) & (column < out_width)
    out_plane = out_height * out_width
    y_ptr += channel.to(tl.int64) * out_plane
    # The zeros of B turn an infinite x into NaN where no tap sees it, and so do the zeros around
    # the map with an infinite weight. Every such output is NaN here, so that looking at the
    # results is enough to know whether this tile must be summed up tap by tap.
    bad = tl.max((stored & ~_finite(acc)).to(tl.int32))
    if bad == 0:
        y_off = image.to(tl.int64) * channels * out_plane + oi * out_width + oj
        y_off = y_off[:, None] + ((n // T) * out_width + n % T)[None, :]
        if RELU:
            acc = tl.where(acc < 0, 0.0, acc)
        tl.store(y_ptr + y_off, acc.to(y_ptr.dtype.element_ty), mask=stored)
    else:
        w_ptr += channel.to(tl.int64) * (kh * kw)
        for chunk in range(0, BM, CHUNK):
            _tap_by_tap(x_ptr, w_ptr, y_ptr, bias, start + chunk, total, images, channels,
                        patches_i, height, width, out_height, out_width, kh, kw, top, left,
                        CHUNK, R, T, RELU)


@triton.jit
def _tap_by_tap(x_ptr, w_ptr, y_ptr, bias, start, total, images, channels, patches_i,
                height, width, out_height, out_width, kh, kw, top, left,
                BM: tl.constexpr, R: tl.constexpr, T: tl.constexpr, RELU: tl.constexpr):
    """BM patches, summed over the taps that fall inside the map and over nothing else."""
    m = start + tl.arange(0, BM)
    patch = m // images
    n = tl.arange(0, R * T)
    row = ((patch % patches_i) * R)[:, None] + (n // T)[None, :]
    column = ((patch // patches_i) * T)[:, None] + (n % T)[None, :]
    stored = (m < total)[:, None] & (row < out_height) & (column < out_width)
    plane = (m % images).to(tl.int64) * channels
    acc = tl.zeros((BM, R * T), dtype=tl.float32)
    for u in range(kh):
        for v in range(kw):
            r = row + (u - top)
            col = column + (v - left)
            inside = stored & (r >= 0) & (r < height) & (col >= 0) & (col < width)
            x = tl.load(x_ptr + (plane * (height * width))[:, None] + (r * width + col),
                        mask=inside, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + u * kw + v).to(tl.float32)
            acc += tl.where(inside, x * w, 0.0)
    y_ptrs = y_ptr + (plane * (out_height * out_width))[:, None] + (row * out_width + column)
    acc += bias
    if RELU:  # NaN stays NaN
        acc = tl.where(acc < 0, 0.0, acc)
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=_SIZES)
def weight_grad_kernel(x_ptr, grad_ptr, sums_ptr, channels, channel0, images, height, width_v,
                       out_height, out_width_v, kh, kw, top, left, start_v, blocks_i, blocks_j,
                       tiles_a, splits,
                       S: tl.constexpr, KD: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
                       VB: tl.constexpr, NB: tl.constexpr, RB: tl.constexpr, XV: tl.constexpr,
                       GV: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
                       QUARTERS: tl.constexpr, UPCAST: tl.constexpr):
    """Partial sums of one channel's weight gradient over a share of its pixels.

    The roles of `forward_kernel` turned round: for a block of ``S`` input rows and the ``A`` output
    rows of one tile::

        G[(b, k), (a, t)] = sum over blocks of  x[block, (b, k)] * grad[block, (a, t)]
        sums[v // KD, (b, v % KD), a] = sum over t of  G[(b, k), (a, t)]
        where  v = k - t + start + left

    Kernel row ``u`` is ``b - a + kh - 1``. A block is S rows by T columns of one image; a step
    takes RB blocks below each other of NB images. start is the input column of k = 0 in the first
    column of blocks. Names ending in _v are in units of XV (width, start) or GV (out_width).
    """
    BM: tl.constexpr = S * KD
    BN: tl.constexpr = A * T
    BK: tl.constexpr = NB * RB
    width = width_v * XV
    start = start_v * XV
    out_width = out_width_v * GV
    pid = tl.program_id(0)
    split = pid % splits
    a0 = (pid // splits) % tiles_a * A
    local_channel = pid // (splits * tiles_a)
    channel = channel0 + local_channel

    # Blocks of rows with any output row inside the map, in steps of RB; then this program's share.
    shift = a0 + top - (kh - 1)  # the output row of a = a0 in block 0
    low = tl.maximum(0, -(shift + A - 1) // S) // RB
    high = tl.maximum((tl.minimum(blocks_i, (out_height - shift + S - 1) // S) + RB - 1) // RB, low)
    steps_n = (images + NB - 1) // NB
    total = (high - low) * blocks_j * steps_n
    begin = (total.to(tl.int64) * split // splits).to(tl.int32)
    end = (total.to(tl.int64) * (split + 1) // splits).to(tl.int32)

    q = tl.arange(0, BK)
    qn = q % NB
    qi = q // NB * S
    m = tl.arange(0, BM)
    b = m // KD
    k = m % KD
    n = tl.arange(0, BN)
    a = n // T
    t = n % T
    if WIDE:
        qn = qn.to(tl.int64)
    x_off = qn * channels * (height * width) + qi * width
    g_off = qn * channels * (out_height * out_width) + qi * out_width
    x_in = b * width + k
    g_in = a * out_width + t
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(begin, end):
        image = step % steps_n * NB
        rest = step // steps_n
        row = (low + rest % (high - low)) * (RB * S)
        column = rest // (high - low) * T
        plane = image.to(tl.int64) * channels + channel
        here = qn < images - image
        x_row = tl.where(here, qi + row, -(1 << 29))
        inside = (x_row[None, :] + b[:, None]).to(tl.uint32) < height.to(tl.uint32)
        inside &= (start + column + k).to(tl.uint32)[:, None] < width.to(tl.uint32)
        x_ptrs = x_ptr + plane * (height * width) + (row * width + start + column)
        x = tl.load(x_ptrs + (x_off[None, :] + x_in[:, None]), mask=inside, other=0.0)
        g_row = tl.where(here, qi + (row + shift), -(1 << 29))
        inside = (g_row[:, None] + a[None, :]).to(tl.uint32) < out_height.to(tl.uint32)
        inside &= (column + t)[None, :] < out_width
        g_ptrs = grad_ptr + plane * (out_height * out_width) + ((row + shift) * out_width + column)
        g = tl.load(g_ptrs + (g_off[:, None] + g_in[None, :]), mask=inside, other=0.0)
        if UPCAST:
            acc = tl.dot(x.to(tl.float32), g.to(tl.float32), acc, input_precision='ieee')
        else:
            acc = tl.dot(x, g, acc, input_precision=PRECISION)

    width_a = tiles_a * A
    out = sums_ptr + (local_channel.to(tl.int64) * splits + split) * (VB * BM * width_a) + a0
    for block in tl.static_range(VB):
        shift = start + left - block * KD
        if QUARTERS:  # fewer registers at once
            low_half, high_half = _halve(acc, BM, BN)
            part0, part1 = _halve(low_half, BM, BN // 2)
            part2, part3 = _halve(high_half, BM, BN // 2)
            _store_diagonals(part0, out, width_a, shift, BM, KD, A // 4, T)
            _store_diagonals(part1, out + A // 4, width_a, shift, BM, KD, A // 4, T)
            _store_diagonals(part2, out + A // 2, width_a, shift, BM, KD, A // 4, T)
            _store_diagonals(part3, out + 3 * A // 4, width_a, shift, BM, KD, A // 4, T)
        else:
            _store_diagonals(acc, out, width_a, shift, BM, KD, A, T)
        out += BM * width_a


@triton.jit
def _halve(value, BM: tl.constexpr, BN: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(value, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def _store_diagonals(acc, out, width_a, shift, BM: tl.constexpr, KD: tl.constexpr,
                     A: tl.constexpr, T: tl.constexpr):
    """out[(b, v), a] = sum over t of acc[(b, v + t - shift), (a, t)]."""
    m = tl.arange(0, BM)
    t = tl.arange(0, A * T) % T
    k = (m % KD)[:, None] + t[None, :] - shift
    found = (k >= 0) & (k < KD)
    acc = tl.gather(acc, tl.where(found, (m // KD * KD)[:, None] + k, 0), 0)
    sums = tl.sum(tl.reshape(tl.where(found, acc, 0.0), (BM, A, T)), 2)
    tl.store(out + m[:, None] * width_a + tl.arange(0, A)[None, :], sums)


@triton.jit(do_not_specialize=_SIZES)
def weight_grad_sum_kernel(x_ptr, grad_ptr, sums_ptr, out_ptr, channels, channel0, images,
                           height, width, out_height, out_width, kh, kw, top, left, width_a, splits,
                           S: tl.constexpr, KD: tl.constexpr, VB: tl.constexpr,
                           TAPS: tl.constexpr, COLUMNS: tl.constexpr):
    """The partial sums of `weight_grad_kernel`, added up in a fixed order."""
    blocks = (kh * kw + TAPS - 1) // TAPS
    local_channel = tl.program_id(0) // blocks
    channel = channel0 + local_channel
    tap = tl.program_id(0) % blocks * TAPS + tl.arange(0, TAPS)
    u = tap // kw
    v = tap % kw
    stored = u < kh
    sums_ptr += local_channel.to(tl.int64) * splits * (VB * S * KD * width_a)
    total = tl.zeros((TAPS,), dtype=tl.float32)
    for _ in range(splits):
        for b in range(S):
            off = (v // KD * (S * KD) + b * KD + v % KD) * width_a + b - u + kh - 1
            total += tl.load(sums_ptr + off, mask=stored, other=0.0)
        sums_ptr += VB * S * KD * width_a
    # Zeros that stand for places outside of the map make NaN of what is infinite: sum up again.
    if tl.max((stored & ~_finite(total)).to(tl.int32), 0) > 0:
        total = tl.zeros((TAPS,), dtype=tl.float32)
        for image in range(images):
            plane = channels.to(tl.int64) * image + channel
            for i in range(out_height):
                r = i + u - top
                for j0 in range(0, out_width, COLUMNS):
                    j = j0 + tl.arange(0, COLUMNS)
                    col = j[None, :] + (v - left)[:, None]
                    inside = (stored & (r >= 0) & (r < height))[:, None] & (col >= 0)
                    inside &= (col < width) & (j < out_width)[None, :]
                    x = tl.load(x_ptr + plane * (height * width) + (r[:, None] * width + col),
                                mask=inside, other=0.0).to(tl.float32)
                    g = tl.load(grad_ptr + plane * (out_height * out_width) + i * out_width + j,
                                mask=j < out_width, other=0.0).to(tl.float32)
                    total += tl.sum(tl.where(inside, x * g[None, :], 0.0), 1)
    tl.store(out_ptr + channel.to(tl.int64) * (kh * kw) + tap,
             total.to(out_ptr.dtype.element_ty), mask=stored)
