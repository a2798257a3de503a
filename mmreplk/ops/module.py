"""``LargeKernelDWConv2d``: the operator as a drop-in for ``nn.Conv2d``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import CHOICES
from .functional import large_kernel_dwconv2d
from .symbolic import is_symbolic
from .torch_internals import has_forward_hooks, mode_padding


class LargeKernelDWConv2d(nn.Conv2d):
    """``nn.Conv2d`` that runs depth-wise convolutions through `large_kernel_dwconv2d`.

    It has the arguments, attributes, state dict and results of ``nn.Conv2d``. Where the layer is
    not depth-wise (``groups == in_channels``), it is ``nn.Conv2d``. In any mm config,
    ``conv_cfg=dict(type='mmreplk.LargeKernelDWConv2d')`` puts it in place of every convolution.

    Args:
        *args, **kwargs: As of ``nn.Conv2d``.
        activation (str, optional): As of `large_kernel_dwconv2d`; an attribute that may be set
            later. Defaults to None.
        backend (str): As of `large_kernel_dwconv2d`. Defaults to 'auto'.

    Raises:
        ValueError: If backend or activation is unknown, kernel_size has not two sides, or as
            ``nn.Conv2d``.
    """

    def __init__(self, *args, activation: str | None = None, backend: str = 'auto', **kwargs):
        super().__init__(*args, **kwargs)
        if len(self.kernel_size) != 2:
            raise ValueError('kernel_size must be a number or two of them, down and right, not '
                             f'{self.kernel_size}: for 3-d convolutions, use torch.nn.Conv3d')
        if backend not in CHOICES:
            raise ValueError(f'backend must be one of {", ".join(CHOICES)}, not {backend!r}')
        if activation not in (None, 'relu'):
            raise ValueError(f"activation must be 'relu' or None, not {activation!r}")
        self.activation, self.backend = activation, backend

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, backend: str = 'auto') -> 'LargeKernelDWConv2d':
        """The same layer as ``conv``, sharing its parameters.

        The parameters are the very objects of ``conv``, so an optimizer that holds them goes on.

        Raises:
            TypeError: If conv is not a ``nn.Conv2d``, or is a subclass with a forward of its own,
                whose behavior would be lost; is not initialized yet; or has forward hooks.
        """
        if not isinstance(conv, nn.Conv2d) or type(conv).forward not in (
                nn.Conv2d.forward, LargeKernelDWConv2d.forward):
            raise TypeError(f'from_conv2d takes a plain torch.nn.Conv2d, not {type(conv).__name__}')
        if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
            raise TypeError('from_conv2d got a LazyConv2d without weights: run it once first')
        if has_forward_hooks(conv):
            raise TypeError('from_conv2d got a layer with forward hooks, which the new layer would '
                            'lack: remove them, and register them on what it returns')
        new = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, device='meta',
            activation=getattr(conv, 'activation', None), backend=backend)
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def __setstate__(self, state):
        super().__setstate__(state)
        # Pickles of a plain nn.Conv2d's state, and of earlier versions, have neither.
        self.__dict__.setdefault('backend', 'auto')
        self.__dict__.setdefault('activation', None)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` or ``(C, H, W)`` as ``nn.Conv2d`` does.

        ``torch.fx`` finds one call of `large_kernel_dwconv2d` here, and ``torch.jit.script``, as
        ``torch.jit.trace``, PyTorch's convolution.
        """
        if torch.jit.is_scripting():
            out = self._conv_forward(input, self.weight, self.bias)
            return out if self.activation is None else F.relu(out)
        else:  # noqa: RET505  # the compiler leaves out an else alone
            return self._fast_forward(input)

    def _fast_forward(self, input: Tensor) -> Tensor:
        symbolic = is_symbolic(input)
        if self.groups != self.in_channels or not symbolic and (
                input.dim() not in (3, 4) or input.shape[-3] != self.in_channels):
            out = super().forward(input)
            return out if self.activation is None else F.relu(out)
        padding = self.padding
        if self.padding_mode != 'zeros':
            input = F.pad(input, mode_padding(self), mode=self.padding_mode)
            padding = 0
        return large_kernel_dwconv2d(input, self.weight, self.bias, self.stride, padding,
                                     self.dilation, self.groups if symbolic else None,
                                     activation=self.activation, backend=self.backend)

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s, and what was asked for besides."""
        asked = '' if self.activation is None else f', activation={self.activation}'
        asked += '' if self.backend == 'auto' else f', backend={self.backend}'
        return super().extra_repr() + asked
