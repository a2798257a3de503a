"""Norms of a trained network folded into the convolutions around them, exactly.

With running statistics a batch norm is ``s * x + t`` for each channel
(:func:`.layers.norm_affine`). Behind a convolution it scales the rows of the weight, before a 1x1
convolution its columns::

    s * (W x + b) + t = (s W) x + (s b + t)          conv-BN of stem, transitions and blocks
    W (s * x + t) + b = (W s) x + (W t + b)          the pre-norms of RepLKBlock and ConvFFN

The second is exact because a 1x1 convolution has no padding: with one, ``t`` would be missing in
the border. Norms of outputs have no convolution behind them within the backbone and become
:class:`.deployed.ChannelAffine`. The source is the paper's re-parameterization (section 3.1), which
merges the large and the small kernel alone.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..ops.torch_internals import children_of, forward_pre_hooks
from .blocks import RepLKNetStage
from .deployed import DEPLOYED, ChannelAffine, FusedSequential
from .layers import check_conv, check_foldable, check_norm, norm_affine, rounded
from .plain import check_forward, is_plain, set_values, unchanged_on_failure, value_of
from .reparam import merge_kernels

_VARIANCE = '.running_var'
_BEHIND = 'bn'  # the norm's name behind the convolution ``conv`` beside it
_BEFORE = ('prelkb_bn', 'preffn_bn')  # before the convolution ``pw1.conv`` beside it
_ALONE = 'norm'  # of an output


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

    What its layers compute decides: also the weights that pruning, weight norm or a parametrization
    computes, which become plain ones.

    Args:
        model (RepLKNet): The network. A second time nothing is left to do.

    Raises:
        TypeError: If a norm keeps no running statistics (:func:`.layers.check_foldable`), or a
            layer that is to be merged was replaced by one that computes something else, or has
            forward hooks. Whatever is raised, nothing is changed then.
        ValueError: If a folded number is beyond the range of its dtype, or the attributes of a
            layer forbid the merge.
    """
    norms = norms_of(model)
    for name, norm in norms.items():
        check_foldable(norm, name)
    owners = {}  # by the name of a convolution, the convolution
    for name, norm in norms.items():
        parent, _, kind = name.rpartition('.')
        if parent.endswith(('lkb_origin', 'small_conv')):
            continue
        check_norm(norm, name)
        if kind == _ALONE:
            stage = model.get_submodule(parent)
            if stage is not model and type(stage).forward is not RepLKNetStage.forward:
                raise TypeError(f'cannot merge {name}: it is not the norm of an output. Call the '
                                f'norm of a layer of your own other than {_ALONE}')
        else:
            owner = f'{parent}.{"pw1." * (kind in _BEFORE)}conv'
            owners[owner] = _owner_of(model, name, owner)
    with unchanged_on_failure(model):
        merge_kernels(model)
        norms = norms_of(model)
        state = {f'{name}.{key}': value for part, keys in (
            (norms, ('weight', 'bias', 'running_mean', 'running_var')),
            (owners, ('weight', 'bias'))) for name, module in part.items() for key in keys
            if (value := value_of(module, key)) is not None}
        fold_norms(state, lambda name: norms[name].eps)
        for name, conv in owners.items():
            set_values(conv, weight=state[f'{name}.weight'], bias=state[f'{name}.bias'])
        for name, norm in norms.items():
            parent_name, _, kind = name.rpartition('.')
            parent = model.get_submodule(parent_name)
            if kind == _ALONE:
                parent.norm = _affine_of(norm, state[f'{name}.weight'], state[f'{name}.bias'])
            elif kind == _BEHIND:
                del parent.bn
            else:
                setattr(parent, kind, nn.Identity())
        for module in model.modules():
            if type(module) is nn.Sequential and hasattr(module, 'conv'):
                # Where another tool fused it; hooks that listen to its place stay.
                if hasattr(module, 'bn') and is_plain(module.bn, nn.Identity):
                    del module.bn
                if hasattr(module, 'nonlinear'):
                    module.__class__ = FusedSequential
            module.__class__ = DEPLOYED.get(type(module), type(module))


def _owner_of(model: nn.Module, norm: str, owner: str) -> nn.Conv2d:
    """The convolution that a norm is folded into, if it can be."""
    parent, _, kind = norm.rpartition('.')
    layers, name = model.get_submodule(parent), owner.rpartition('.')[0]
    if kind in _BEFORE:
        # A deployed block may have been given a norm again.
        check_forward(layers, [kind.forward for pair in DEPLOYED.items() for kind in pair], parent)
        layers = layers.pw1
        if forward_pre_hooks(layers):
            raise TypeError(f'cannot merge {norm}: {name} has forward pre-hooks, which may change '
                            'what it gets. Remove them, and register them anew afterwards')
    check_forward(layers, (nn.Sequential.forward, FusedSequential.forward), name)
    names = list(children_of(layers))
    if names[:1] != ['conv'] or names[1:2] != ['bn'] and (kind == _BEHIND or 'bn' in names):
        raise TypeError(f'cannot merge {norm}: {name} holds {", ".join(names)}, not conv and bn in '
                        'this order. Merge the network before you add layers')
    conv = layers.conv
    check_conv(conv, owner)
    if kind in _BEFORE and not (
            value_of(conv, 'weight').shape[2:] == (1, 1) and conv.groups == 1
            and conv.padding in ('valid', 'same', (0, 0))):
        raise ValueError(f'cannot merge {norm}: {owner} has to be a dense 1x1 convolution without '
                         f'padding, and is {conv}')
    return conv


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a RepLKNet by name; none when it is deployed."""
    return {name: module for name, module in model.named_modules()
            if name.rpartition('.')[2] in (_BEHIND, *_BEFORE, _ALONE)
            and not isinstance(module, (nn.Identity, ChannelAffine))}


def _affine_of(norm: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> ChannelAffine:
    """What is left of a norm, trained where the norm was."""
    affine = ChannelAffine(0)
    trained = all(parameter.requires_grad for parameter in norm.parameters())
    affine.weight, affine.bias = (nn.Parameter(value, requires_grad=trained)
                                  for value in (weight, bias))
    return affine.train(norm.training)
