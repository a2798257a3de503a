"""The large kernel with its parallel small kernel, and their exact merge (paper, section 3.1)."""

import torch
from torch import nn

from ..ops import LargeKernelDWConv2d, large_kernel_dwconv2d_pair
from ..ops.symbolic import refuse_script
from ..ops.torch_internals import children_of
from .branch import Branch
from .layers import conv_bn, rounded
from .plain import is_plain, unchanged_on_failure


class ReparamLargeKernelConv(nn.Module):
    """A depth-wise KxK conv-BN, plus a small conv-BN on the same input during training.

    Deployed, it is one convolution with a bias. The sub-modules carry the official names:
    ``lkb_origin`` and ``small_conv`` in training, ``lkb_reparam`` when merged.

    Args:
        channels (int): Channels C of input and output.
        kernel_size (int): The large kernel K, odd.
        small_kernel (int, optional): The small kernel, odd and at most K; None for no such branch.
        norm_cfg (dict, optional): Config of the norms. Defaults to None, BN.
    """

    def __init__(self,
                 channels: int,
                 kernel_size: int,
                 small_kernel: int | None = None,
                 norm_cfg: dict | None = None):
        super().__init__()
        self.kernel_size = kernel_size
        self.small_kernel = small_kernel
        self.lkb_origin = conv_bn(
            channels,
            channels,
            kernel_size,
            groups=channels,
            norm_cfg=norm_cfg,
            conv_layer=LargeKernelDWConv2d)
        if small_kernel is not None:
            self.small_conv = conv_bn(
                channels,
                channels,
                small_kernel,
                groups=channels,
                norm_cfg=norm_cfg,
                conv_layer=LargeKernelDWConv2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        if self.deploy:
            return self.lkb_reparam(x)
        if self.small_kernel is None:
            return self.lkb_origin(x)
        if not (isinstance(x, torch.Tensor) and _go_as_pair(self.lkb_origin, self.small_conv)):
            return self.lkb_origin(x) + self.small_conv(x)
        large, small = self.lkb_origin.conv, self.small_conv.conv
        out, small_out = large_kernel_dwconv2d_pair(
            x, large.weight, small.weight, backend=large.backend)
        return self.lkb_origin.bn(out) + self.small_conv.bn(small_out)

    __prepare_scriptable__ = refuse_script

    @property
    def deploy(self) -> bool:
        """Whether the branches are merged."""
        return hasattr(self, 'lkb_reparam')

    @torch.no_grad()
    def merge_kernel(self) -> None:
        """Replace the branches by the one convolution that equals them in evaluation mode.

        The merge is computed in float64 and rounded once. Merging twice does nothing.

        What the branches compute decides: their biases, strides, paddings and dilations count, and
        weights that pruning, weight norm or a parametrization computes.

        Raises:
            TypeError: If a norm keeps no running statistics, or a branch has a forward of its own
                or forward hooks; nothing is changed then.
            ValueError: If a number of the merged convolution is not finite or beyond the range of
                the weight's dtype, or the small kernel does not lie on taps of the large one;
                nothing is changed then.
        """
        merge_kernels(self)

    reparameterize = merge_kernel  # the name under which timm's reparameterize_model asks for it

    @torch.no_grad()
    def merged(self, name: str = '') -> LargeKernelDWConv2d:
        """The merged convolution; the branches stay.

        Args:
            name (str): What messages put before the names of the branches. Defaults to ''.

        Returns:
            LargeKernelDWConv2d: Weight ``(C, 1, K, K)`` and bias ``(C, )``, in the dtype of the
            large kernel's weight.

        Raises:
            TypeError: As :meth:`merge_kernel`.
            ValueError: As :meth:`merge_kernel`.
        """
        large = Branch(self.lkb_origin, f'{name}lkb_origin')
        weight, bias = large.fused()
        if self.small_kernel is not None:
            small = Branch(self.small_conv, f'{name}small_conv')
            rows, columns = large.taps_of(small)
            small_weight, small_bias = small.fused()
            weight[:, :, rows[:, None], columns] += small_weight
            bias = bias + small_bias
        dtype = large.weight.dtype
        weight, bias = (rounded(value, dtype, f'the {name} of a large kernel')
                        for value, name in ((weight, 'weight'), (bias, 'bias')))
        return large.alike(weight, bias).train(self.training)

    def _replace_branches(self, merged: LargeKernelDWConv2d) -> None:
        del self.lkb_origin
        if self.small_kernel is not None:
            del self.small_conv
        self.lkb_reparam = merged


def merge_kernels(model: nn.Module) -> int:
    """Merge every re-parameterized kernel of a network, in place.

    Args:
        model (nn.Module): RepLKNet, an enlarged network, or whatever holds one.

    Returns:
        int: How many were merged; those that are merged already do not count.

    Raises:
        TypeError: As :meth:`ReparamLargeKernelConv.merge_kernel`. Whatever is raised, nothing is
            changed then.
        ValueError: As :meth:`ReparamLargeKernelConv.merge_kernel`.
    """
    kernels = {name: module for name, module in model.named_modules()
               if isinstance(module, ReparamLargeKernelConv) and not module.deploy}
    merged = [kernel.merged(f'{name}.' if name else '') for name, kernel in kernels.items()]
    with unchanged_on_failure(model):
        for kernel, conv in zip(kernels.values(), merged, strict=True):
            kernel._replace_branches(conv)
    return len(kernels)


def _go_as_pair(large: nn.Module, small: nn.Module) -> bool:
    """Whether two branches are unmodified and without hooks, so that they may run as one."""
    if not all(is_plain(branch, nn.Sequential) and list(children_of(branch)) == ['conv', 'bn']
               and is_plain(branch.conv, LargeKernelDWConv2d) for branch in (large, small)):
        return False
    large, small = large.conv, small.conv
    return large.backend == small.backend and all(
        conv.bias is None and conv.activation is None and conv.padding_mode == 'zeros'
        and conv.groups == conv.in_channels == conv.out_channels
        and tuple(conv.stride) == tuple(conv.dilation) == (1, 1)
        and all(k % 2 for k in conv.weight.shape[2:])
        and (conv.padding == 'same' or tuple(conv.padding) == tuple(
            k // 2 for k in conv.weight.shape[2:])) for conv in (large, small))
