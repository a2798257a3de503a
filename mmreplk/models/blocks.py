"""The two residual blocks of RepLKNet and the stage that alternates them (paper, section 4.1)."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..ops.symbolic import is_symbolic
from ..ops.torch_internals import NormBase
from .drop_path import DropPath
from .layers import activation_layer, conv_bn, norm_layer
from .reparam import ReparamLargeKernelConv


def drop_path_layer(rate: float) -> nn.Module:
    """Stochastic depth with the given drop probability; the identity where it is 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


class RepLKBlock(nn.Module):
    """BN, 1x1-BN-act, large (and small) depth-wise kernel, act, 1x1-BN, drop-path, add.

    Args:
        channels (int): Channels C of input and output.
        dw_channels (int): Channels of the depth-wise convolution.
        kernel_size (int): The large kernel, odd.
        small_kernel (int, optional): The parallel small kernel, or None.
        drop_path (float): Drop probability of the residual branch.
        norm_cfg (dict | None): Of the norms, as of :func:`.layers.norm_layer`.
        act_cfg (dict | type): As of :func:`.layers.activation_layer`, of both activations.
    """

    def __init__(self, channels: int, dw_channels: int, kernel_size: int,
                 small_kernel: int | None, drop_path: float, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        self.prelkb_bn = norm_layer(norm_cfg, channels)
        self.pw1 = conv_bn(channels, dw_channels, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.large_kernel = ReparamLargeKernelConv(dw_channels, kernel_size, small_kernel,
                                                   norm_cfg)
        self.lk_nonlinear = activation_layer(act_cfg)
        self.pw2 = conv_bn(dw_channels, channels, 1, norm_cfg=norm_cfg)
        self.drop_path = drop_path_layer(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        out = self.pw1(self.prelkb_bn(x))
        out = self.lk_nonlinear(self.large_kernel(out))
        return x + self.drop_path(self.pw2(out))


class ConvFFN(nn.Module):
    """BN, 1x1-BN, act, 1x1-BN, drop-path, add: the feed-forward block after each RepLKBlock.

    Args:
        channels (int): Channels C of input and output.
        hidden_channels (int): Channels between the two 1x1 convolutions.
        drop_path (float): Drop probability of the residual branch.
        norm_cfg (dict | None): Of the norms, as of :func:`.layers.norm_layer`.
        act_cfg (dict | type): As of :func:`.layers.activation_layer`, of the activation.
    """

    def __init__(self, channels: int, hidden_channels: int, drop_path: float, norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        self.preffn_bn = norm_layer(norm_cfg, channels)
        self.pw1 = conv_bn(channels, hidden_channels, 1, norm_cfg=norm_cfg)
        self.nonlinear = activation_layer(act_cfg)
        self.pw2 = conv_bn(hidden_channels, channels, 1, norm_cfg=norm_cfg)
        self.drop_path = drop_path_layer(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        out = self.nonlinear(self.pw1(self.preffn_bn(x)))
        return x + self.drop_path(self.pw2(out))


# What with_cp may name beside all and nothing.
CHECKPOINTS = {'large_kernel': RepLKBlock, 'ffn': ConvFFN}


class RepLKNetStage(nn.Module):
    """A stage: RepLKBlock and ConvFFN in turn, one pair for each drop-path rate.

    Args:
        channels (int): Channels C of the stage.
        kernel_size (int): The large kernel of all its blocks.
        small_kernel (int, optional): The parallel small kernel, or None.
        drop_path_rates (list[float]): One rate for each pair of blocks.
        dw_ratio (float): Depth-wise channels over C.
        ffn_ratio (float): Hidden channels of ConvFFN over C.
        norm_output (bool): Whether to own a norm for the features handed out of the network.
        norm_cfg (dict | None): Of the norms, as of :func:`.layers.norm_layer`.
        act_cfg (dict | type): As of :func:`.layers.activation_layer`, of the activations in
            RepLKBlock.
        ffn_act_cfg (dict | type): The same for ConvFFN.
        with_cp (bool | str): Which blocks to recompute in the backward pass: all, or those that
            :data:`CHECKPOINTS` names.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None,
                 drop_path_rates: list[float], dw_ratio: float, ffn_ratio: float,
                 norm_output: bool, norm_cfg: dict, act_cfg: dict, ffn_act_cfg: dict,
                 with_cp: bool | str):
        super().__init__()
        self.with_cp = with_cp
        self.blocks = nn.ModuleList()
        for rate in drop_path_rates:
            self.blocks.append(
                RepLKBlock(channels, int(channels * dw_ratio), kernel_size, small_kernel, rate,
                           norm_cfg, act_cfg))
            self.blocks.append(
                ConvFFN(channels, int(channels * ffn_ratio), rate, norm_cfg, ffn_act_cfg))
        self.norm = norm_layer(norm_cfg, channels) if norm_output else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape, without :attr:`norm`."""
        for block in self.blocks:
            with_cp = self.with_cp is True or isinstance(block, CHECKPOINTS.get(self.with_cp, ()))
            x = run_layer(block, x, with_cp)
        return x


def run_layer(layer: nn.Module, x: torch.Tensor, with_cp: bool) -> torch.Tensor:
    """Run a layer, recomputing it in the backward pass if ``with_cp`` and gradients are wanted."""
    if not (with_cp and torch.is_grad_enabled()) or is_symbolic(x):
        return layer(x)
    return _checkpointed(layer, x)


@torch.compiler.disable  # to the compiler, the second run would be as the first
def _checkpointed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    raised, runs = [], 0

    def run(x):
        nonlocal runs
        runs += 1
        if runs > 1:  # once for each backward pass: there may be several
            with _running_stats_kept(layer):
                return layer(x)
        try:
            return layer(x)
        except BaseException as error:
            raised.append(error)
            return None

    # An error that passes through PyTorch's checkpoint leaves its hooks on saved tensors in force
    # for as long as someone holds the error: every later graph would recompute this layer.
    out = checkpoint(run, x, use_reentrant=False)
    if raised:
        raise raised.pop()
    return out


@contextlib.contextmanager
def _running_stats_kept(layer: nn.Module):
    """Normalize by batch statistics without updating the running ones.

    A checkpointed layer runs twice a step; without this its running statistics would move twice.
    """
    norms = [m for m in layer.modules() if isinstance(m, NormBase) and m.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: autograd saves the running tensors, and the recomputation
        # has to save as many tensors as the forward pass did.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
