"""1x1 convolutions, which take nine tenths of a RepLKNet's time once its large kernels are fast."""

from collections.abc import Callable, Sequence
from functools import cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.symbolic import is_symbolic
from ...ops.torch_internals import current_dispatch_mode, linear_pointwise, mode_padding

ACTIVATIONS = dict(relu=nn.ReLU, gelu=nn.GELU)


def name_of(activation: nn.Module | None) -> str | None:
    """What :data:`ACTIVATIONS` calls a layer; None for others, as GELU by tanh."""
    for name, kind in ACTIVATIONS.items():
        if type(activation) is kind and getattr(activation, 'approximate', 'none') == 'none':
            return name
    return None


class PointwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a 1x1 kernel that computes a matrix product where that is faster.

    On a CPU a channels-last feature map is a matrix of ``N * H * W`` rows and C columns, and the
    matrix product of oneDNN is faster than its convolution; an activation and the addition of a
    residual are done in its epilogue. That serves inference in float32 and bfloat16. Elsewhere, and
    where a gradient is wanted, it is ``nn.Conv2d``: in training the convolution is the faster one.

    Args:
        in_channels (int): Input channels.
        out_channels (int): Output channels.
        kernel_size (int): 1.
        stride (int): 1.
        padding (int): 0.
        groups (int): 1.
        bias (bool): Whether there is a bias. Defaults to True.
        activation (str, optional): 'relu' or 'gelu' (exact) behind it; an attribute that may be set
            later. Defaults to None.

    Raises:
        ValueError: If it would not be a dense 1x1 convolution, or activation is unknown.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1,
                 padding: int = 0, groups: int = 1, bias: bool = True,
                 activation: str | None = None):
        if (kernel_size, stride, padding, groups) != (1, 1, 0, 1):
            raise ValueError('PointwiseConv2d is a dense 1x1 convolution, not one with '
                             f'{kernel_size=}, {stride=}, {padding=}, {groups=}')
        if activation not in (None, *ACTIVATIONS):
            raise ValueError(f'activation must be None or one of {", ".join(ACTIVATIONS)}, not '
                             f'{activation!r}')
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None,
                activation: nn.Module | None = None) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``.

        Args:
            x (Tensor): The feature map.
            residual (Tensor, optional): Added to the result, behind the activation. Shaped like it.
                Defaults to None.
            activation (nn.Module, optional): The layer behind the convolution and its own
                activation, done with it where that is known how. Defaults to None.

        Returns:
            Tensor: In the memory format of x.
        """
        # Read once: parametrizations compute it each time, and spectral norm moves on in training.
        weight = self.weight
        if _fuses(x, weight, self.bias, residual) and self._is_dense(weight):
            own = self.activation
            if own is None:
                own = name_of(activation)
                activation = None if own else activation
            return self._fused(x, weight, residual, own, activation)
        out = self._conv_forward(x, weight, self.bias)
        if self.activation is not None:
            out = F.relu(out) if self.activation == 'relu' else F.gelu(out)
        out = out if activation is None else activation(out)
        return out if residual is None else residual + out

    def _fused(self, x: Tensor, weight: Tensor, residual: Tensor | None, own: str | None,
               behind: nn.Module | None) -> Tensor:
        rows, weight = pixels(x), weight[:, :, 0, 0]
        linear = linear_pointwise()
        if residual is not None and own is None and behind is None:
            out = linear.binary(rows, pixels(residual), weight, self.bias, 'add')
            residual = None
        else:
            # Not 'relu': oneDNN's makes 0 of NaN.
            out = linear(rows, weight, self.bias, 'gelu' if own == 'gelu' else 'none', [], 'none')
            if own == 'relu':
                out.relu_()
        out = out.view(*x.permute(0, 2, 3, 1).shape[:3], -1).permute(0, 3, 1, 2)
        out = out if behind is None else behind(out)
        return out if residual is None else residual + out

    def _is_dense(self, weight: Tensor) -> bool:
        """Whether it still is a dense 1x1 convolution: attributes may be set from outside."""
        return (weight.shape[2:] == (1, 1) and self.groups == 1
                and tuple(self.stride) == (1, 1) and tuple(self.padding) == (0, 0)
                and not (self.padding_mode != 'zeros'
                         and any(mode_padding(self))))

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s, and the activation."""
        return super().extra_repr() + (f', activation={self.activation}' if self.activation else '')


def pixels(x: Tensor) -> Tensor:
    """A feature map ``(N, C, H, W)`` as a matrix ``(N * H * W, C)``; a view if channels-last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def channels_last_inference(forward: Callable) -> Callable:
    """A decorator of a network's forward: compute in channels-last where that is faster.

    On a CPU it is in inference, for the sake of :class:`PointwiseConv2d`; in training the layouts
    are level. Feature maps alone are converted: the weight of a 1x1 convolution is the same in
    both. Who calls the network gets its outputs in the memory format of the images.

    Args:
        forward (Callable): Maps images ``(N, C, H, W)`` to a tuple of feature maps; other
            arguments are passed on.
    """
    @wraps(forward)
    def converted(network: nn.Module, x: Tensor, *args, **kwargs) -> tuple[Tensor, ...]:
        if not faster_channels_last(network, x):
            return forward(network, x, *args, **kwargs)
        outs = forward(network, x.contiguous(memory_format=torch.channels_last), *args, **kwargs)
        return tuple(out.contiguous() for out in outs)

    return converted


def faster_channels_last(network: nn.Module, x: Tensor) -> bool:
    """Whether a network is to compute in channels-last although x, its input, is not."""
    return (runs_products(x) and x.dim() == 4 and not torch.is_grad_enabled()
            and any(isinstance(module, PointwiseConv2d) for module in network.modules())
            and not x.is_contiguous(memory_format=torch.channels_last))


def _fuses(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Whether oneDNN's product of matrices can serve."""
    tensors = [t for t in (x, weight, bias, residual) if t is not None]
    return (runs_products(x) and all(are_rows(t) for t in (x, residual) if t is not None)
            and all(t.dtype == x.dtype for t in tensors) and are_plain(tensors))


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are PyTorch's own kind, and no gradient of them is wanted."""
    return (all(type(t) in (Tensor, nn.Parameter) for t in tensors)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)))


def are_rows(x: Tensor) -> bool:
    """Whether x is a channels-last feature map without gaps between its pixels."""
    return (x.dim() == 4 and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[1] > 1)  # with one channel the formats are the same


def runs_products(x: Tensor) -> bool:
    """Whether products of oneDNN may stand for convolutions of x, gradients aside."""
    # What reads or rewrites the network, such as an exporter, is to find a convolution. The
    # compiler is asked about first: it cannot read the rest.
    return (not is_symbolic(x) and not torch.compiler.is_compiling()
            and x.device.type == 'cpu' and x.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled('cpu')
            and not torch.jit.is_tracing() and current_dispatch_mode() is None
            and _multiplies(x.dtype))


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has these products on this CPU: without AVX-512 it has none of bfloat16."""
    one = torch.ones(1, 2, dtype=dtype, device='cpu')
    try:
        linear_pointwise()(one, one, None, 'gelu', [], 'none')
        linear_pointwise().binary(one, one[:, :1].contiguous(), one, None, 'add')
    except RuntimeError:
        return False
    return True
