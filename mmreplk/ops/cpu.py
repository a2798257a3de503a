"""The CPU path: a product of spectra at the shortest sufficient length.

With ``q = min(p, H - 1)`` only the taps at distances -q..q from the centre ever meet the map, and
``H + q`` points a side suffice: an index that leaves the map on either side then wraps into the
zeros behind it. A convolution padded to ``H + K - 1`` would need up to twice as many a side.
"""

import torch
from torch.nn.functional import pad


def fast_length(n: int) -> int:
    """The smallest even number of at least n whose only prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


class _Geometry:
    """Sizes shared by the three products: reach of the kernel and length of the transform."""

    def __init__(self, map_size, kernel_size):
        self.map_size = map_size
        self.half = [k // 2 for k in kernel_size]
        self.reach = [min(p, n - 1) for p, n in zip(self.half, map_size, strict=True)]
        self.length = [fast_length(n + q) for n, q in zip(map_size, self.reach, strict=True)]

    def crop(self, weight):
        """The taps that reach the map, ``(C, 2qh + 1, 2qw + 1)``."""
        (ph, pw), (qh, qw) = self.half, self.reach
        return weight[:, 0, ph - qh:ph + qh + 1, pw - qw:pw + qw + 1]

    def spectrum_of_map(self, x):
        """``(N, C, H, W)`` to its spectrum at the transform's length."""
        return torch.fft.rfft2(x, s=self.length)

    def spectrum_of_weight(self, weight):
        """``(C, 1, Kh, Kw)`` to its spectrum, the centre of the kernel at index 0."""
        taps = self.crop(weight)
        taps = pad(taps, [0, self.length[1] - taps.shape[2], 0, self.length[0] - taps.shape[1]])
        return torch.fft.rfft2(torch.roll(taps, [-q for q in self.reach], (1, 2)))

    def map_of(self, spectrum):
        """A spectrum to the map, ``(N, C, H, W)``."""
        out = torch.fft.irfft2(spectrum, s=self.length)
        return out[..., :self.map_size[0], :self.map_size[1]]

    def weight_of(self, spectrum):
        """A spectrum to weights ``(C, 1, Kh, Kw)``; taps that never meet the map get 0."""
        (qh, qw), (ph, pw) = self.reach, self.half
        lags = torch.roll(torch.fft.irfft2(spectrum, s=self.length), [qh, qw], (1, 2))
        taps = lags[:, :2 * qh + 1, :2 * qw + 1]
        return pad(taps, [pw - qw, pw - qw, ph - qh, ph - qh]).unsqueeze(1)


class FFTDepthwiseConv(torch.autograd.Function):
    """``y[n,c,i,j] = sum_uv x[n,c,i+u-p,j+v-p] w[c,0,u,v]`` and its gradients.

    Saves the input and the weight alone. The backward pass is made of differentiable operations,
    so second derivatives exist. float16 and bfloat16 are computed in float32.
    """

    @staticmethod
    def forward(ctx, x, weight):
        """Shapes ``(N, C, H, W)`` and ``(C, 1, Kh, Kw)``, Kh and Kw odd; output like x."""
        ctx.save_for_backward(x, weight)
        geometry = _Geometry(x.shape[2:], weight.shape[2:])
        spectrum = geometry.spectrum_of_map(_wide(x))
        spectrum *= geometry.spectrum_of_weight(_wide(weight)).conj()
        return geometry.map_of(spectrum).to(x.dtype, memory_format=_memory_format(x))

    @staticmethod
    def backward(ctx, grad):
        """Gradients of those inputs that ask for one."""
        x, weight = ctx.saved_tensors
        geometry = _Geometry(x.shape[2:], weight.shape[2:])
        spectrum = geometry.spectrum_of_map(_wide(grad))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            product = spectrum * geometry.spectrum_of_weight(_wide(weight))
            grad_x = geometry.map_of(product).to(x.dtype)
        if ctx.needs_input_grad[1]:
            product = (geometry.spectrum_of_map(_wide(x)) * spectrum.conj()).sum(0)
            grad_weight = geometry.weight_of(product).to(weight.dtype)
        return grad_x, grad_weight


def _wide(tensor):
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _memory_format(x):
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
