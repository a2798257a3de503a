"""Norms of a trained network folded into the convolutions around them, exactly.

With running statistics a batch norm is ``s * x + t`` for each channel
(:func:`.layers.norm_affine`). Behind a convolution it scales the rows of the weight, before a 1x1
convolution its columns::

    s * (W x + b) + t = (s W) x + (s b + t)          conv-BN of stem, transitions and blocks
    W (s * x + t) + b = (W s) x + (W t + b)          the pre-norms of RepLKBlock and ConvFFN

The second is exact because a 1x1 convolution has no padding: with one, ``t`` would be missing in
the border. Norms of outputs have no convolution behind them within the backbone and become
:class:`ChannelAffine`. The source is the paper's re-parameterisation (section 3.1), which merges
the large and the small kernel alone.
"""

from collections.abc import Callable

import torch
from torch import nn

from .blocks import ConvFFN, RepLKBlock
from .layers import check_foldable, norm_affine, rounded
from .pointwise import ACTIVATIONS, PointwiseConv2d
from .reparam import merge_kernels

_VARIANCE = '.running_var'
_BEHIND = 'bn'  # the norm's name behind the convolution ``conv`` beside it
_BEFORE = ('prelkb_bn', 'preffn_bn')  # before the convolution ``pw1.conv`` beside it
_ALONE = 'norm'  # of an output


class ChannelAffine(nn.Module):
    """``weight * x + bias`` for each channel: what is left of a norm that nothing follows.

    Args:
        channels (int): Channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        return torch.addcmul(self.bias.reshape(-1, 1, 1), x, self.weight.reshape(-1, 1, 1))


@torch.no_grad()
def fold_norms(state: dict[str, torch.Tensor], eps: float | Callable[[str], float] = 1e-5,
               prefix: str = '') -> None:
    """Fold the norms of a backbone with merged kernels into its convolutions, among its weights.

    Computed in float64 and rounded once. A norm whose convolution is missing stays as it is.

    Args:
        state (dict[str, Tensor]): Weights. The names of norms disappear from it, those of biases
            come; the tensors themselves are not changed.
        eps (float | Callable): Of the norms; or the function that gives it for the name of a norm
            without prefix. Defaults to 1e-5, PyTorch's.
        prefix (str): What stands before the backbone's names. Defaults to ''.

    Raises:
        ValueError: If a folded number is not finite or beyond the range of its dtype. Nothing is
            changed then.
    """
    norms = [name.removesuffix(_VARIANCE) for name in state
             if name.startswith(prefix) and name.endswith(_VARIANCE)]
    # Those before a convolution come last, when its weight has the scale of the norm behind it.
    norms.sort(key=lambda name: name.endswith(_BEFORE))
    exact, gone = {}, []
    for norm in norms:
        parent, _, kind = norm.rpartition('.')
        owner = norm if kind == _ALONE else f'{parent}.{"pw1." * (kind in _BEFORE)}conv'
        weight, bias = f'{owner}.weight', f'{owner}.bias'
        if kind != _ALONE and weight not in state:
            continue
        scale, shift = norm_affine(
            *(state.get(f'{norm}.{key}')
              for key in ('running_mean', 'running_var', 'weight', 'bias')),
            eps(norm.removeprefix(prefix)) if callable(eps) else eps)
        gone += [f'{norm}.{key}' for key in (
            'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]
        if kind == _ALONE:
            exact[weight], exact[bias] = scale, shift
            continue
        if weight not in exact:
            exact[weight] = state[weight].double()
            exact[bias] = state[bias].double() if bias in state else torch.zeros_like(
                exact[weight][:, 0, 0, 0])
        if kind in _BEFORE:
            exact[bias] = exact[bias] + exact[weight].flatten(1) @ shift
            exact[weight] = exact[weight] * scale.reshape(1, -1, 1, 1)
        else:
            exact[bias] = exact[bias] * scale + shift
            exact[weight] = exact[weight] * scale.reshape(-1, 1, 1, 1)
    folded = {}
    for name, value in exact.items():
        owner = name.rpartition('.')[0]
        like = state.get(f'{owner}.weight', state.get(owner + _VARIANCE))
        folded[name] = rounded(value, like.dtype, name)
    for name in gone:
        state.pop(name, None)
    state.update(folded)


def deploy_network(model: nn.Module) -> None:
    """Merge the kernels of a RepLKNet and fold its norms, in place.

    Beside that, the ReLU behind each large kernel becomes part of the operator, and the others work
    in place.

    Args:
        model (RepLKNet): The network. A second time nothing is left to do.

    Raises:
        TypeError: If a norm keeps no running statistics (:func:`.layers.check_foldable`). Nothing
            is changed then.
        ValueError: If a folded number is beyond the range of its dtype.
    """
    for name, norm in norms_of(model).items():
        check_foldable(norm, name)
    merge_kernels(model)
    norms = norms_of(model)
    state = model.state_dict()
    fold_norms(state, lambda name: norms[name].eps)
    for name, norm in norms.items():
        parent_name, _, kind = name.rpartition('.')
        parent = model.get_submodule(parent_name)
        if kind == _ALONE:
            with torch.device(norm.running_var.device):
                parent.norm = _alike(ChannelAffine(norm.num_features), norm.running_var, norm)
        elif kind == _BEHIND:
            del parent.bn
            _add_bias(parent.conv)
        else:
            setattr(parent, kind, nn.Identity())
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, RepLKBlock) and type(module.lk_nonlinear) is nn.ReLU:
            module.large_kernel.lkb_reparam.activation = 'relu'
            module.lk_nonlinear = nn.Identity()
        elif isinstance(module, ConvFFN):
            module.nonlinear = _into(module.pw1.conv, module.nonlinear)
        elif isinstance(module, nn.Sequential) and hasattr(module, 'nonlinear'):
            module.nonlinear = _into(module.conv, module.nonlinear)
    for module in model.modules():
        if type(module) is nn.ReLU:  # behind a convolution, which does not need its result again
            module.inplace = True


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a RepLKNet by name; none when it is deployed."""
    return {name: module for name, module in model.named_modules()
            if name.rpartition('.')[2] in (_BEHIND, *_BEFORE, _ALONE)
            and not isinstance(module, (nn.Identity, ChannelAffine))}


def _into(conv: nn.Conv2d, activation: nn.Module) -> nn.Module:
    """Make an activation a part of the convolution before it; what is left of the activation."""
    for name, kind in ACTIVATIONS.items() if isinstance(conv, PointwiseConv2d) else ():
        if type(activation) is kind and getattr(activation, 'approximate', 'none') == 'none':
            conv.activation = name
            return nn.Identity()
    return activation


def _add_bias(conv: nn.Conv2d) -> None:
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]),
                                 requires_grad=conv.weight.requires_grad)


def _alike(module: nn.Module, tensor: torch.Tensor, norm: nn.Module) -> nn.Module:
    """The module with the device and dtype of a tensor, and trained where the norm was."""
    trained = norm.weight is None or norm.weight.requires_grad
    return module.to(tensor).requires_grad_(trained).train(norm.training)
