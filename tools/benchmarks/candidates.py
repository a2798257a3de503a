"""What is timed against what: this project's operator, PyTorch's, and others a user could take.

A candidate's ``call(x, weight, bias, padding)`` is the depth-wise convolution of stride 1 with
weights ``(C, 1, Kh, Kw)`` and padding ``(ph, pw)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}


class Candidate(NamedTuple):
    """One way to compute the convolution.

    Attributes:
        name (str): Of the row.
        layout (str): Memory format of the input, a key of `LAYOUTS`.
        call (Callable): ``(x, weight, bias, padding) -> y``.
        backend (str, optional): The backend asked for, if this is the project's operator. Defaults
            to None, which marks a baseline.
    """
    name: str
    layout: str
    call: Callable[[Tensor, Tensor, Tensor | None, tuple[int, int]], Tensor]
    backend: str | None = None

    @property
    def ours(self) -> bool:
        return self.backend is not None


def ours(backend: str = 'auto', layout: str = 'nchw') -> Candidate:
    """The project's operator."""
    from mmreplk.ops import large_kernel_dwconv2d

    def call(x, weight, bias, padding):
        return large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=backend)

    name = 'ours' if backend == 'auto' else f'ours:{backend}'
    return Candidate(_with_layout(name, layout), layout, call, backend)


def backend_of(candidate: Candidate, x: Tensor, weight: Tensor, bias: Tensor | None,
               padding: tuple[int, int]) -> tuple[str | None, str | None]:
    """The backend that serves a call of the operator, and why; (None, None) for a baseline."""
    if not candidate.ours:
        return None, None
    from mmreplk.ops import explain
    choice = explain(x, weight, bias, padding=padding, backend=candidate.backend)
    return choice.backend, choice.reason


def baselines(device_type: str) -> tuple[list[Candidate], dict[str, str]]:
    """All others, and those that are not installed here, with the reason."""
    found = [Candidate(_with_layout('conv2d', layout), layout, _conv2d) for layout in LAYOUTS]
    if device_type == 'cuda':
        # F.conv2d has its own rules when to take cuDNN for a depth-wise kernel; this is always it.
        found += [Candidate(_with_layout('cudnn', layout), layout, _cudnn) for layout in LAYOUTS]
    found.append(Candidate('fft', 'nchw', fft_product))
    try:
        from torch_fftconv.functional import fft_conv2d
    except ImportError as error:
        return found, {'torch-fftconv': f'not installed ({error}): see requirements/benchmarks.txt'}

    def call(x, weight, bias, padding):
        y = fft_conv2d(_wide(x), _wide(weight), None if bias is None else _wide(bias),
                       padding=padding, groups=x.shape[1])
        return y.to(x.dtype)

    found.append(Candidate('torch-fftconv', 'nchw', call))
    return found, {}


def fft_product(x: Tensor, weight: Tensor, bias: Tensor | None,
                padding: tuple[int, int]) -> Tensor:
    """An FFT convolution padded to ``H + K - 1``, as it is usually written with ``torch.fft``."""
    sizes = list(zip(x.shape[2:], weight.shape[2:], padding, strict=True))
    length = [h + k - 1 for h, k, _ in sizes]
    spectrum = torch.fft.rfft2(_wide(x), s=length)
    spectrum = spectrum * torch.fft.rfft2(_wide(weight)[:, 0].flip(1, 2), s=length)
    rows, columns = (slice(k - 1 - p, h + p) for h, k, p in sizes)
    y = torch.fft.irfft2(spectrum, s=length)[:, :, rows, columns]
    if bias is not None:
        y = y + _wide(bias)[:, None, None]
    return y.to(x.dtype)


def _conv2d(x, weight, bias, padding):
    return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


def _cudnn(x, weight, bias, padding):
    # padding, stride, dilation, groups, benchmark, deterministic, allow_tf32
    y = torch.cudnn_convolution(x, weight, list(padding), [1, 1], [1, 1], x.shape[1], True, False,
                                torch.backends.cudnn.allow_tf32)
    return y if bias is None else y + bias[:, None, None]


def _wide(tensor: Tensor) -> Tensor:
    # torch.fft takes no 16-bit numbers on a CPU, and only powers of two of them on a GPU.
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _with_layout(name: str, layout: str) -> str:
    return name if layout == 'nchw' else f'{name} {layout}'
