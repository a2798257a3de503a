"""Random RepLKNets with random changes from outside: attributes, hooks, replaced layers.

The layers decide: a network computes what its layers give when each is called and convolves as
``nn.Conv2d`` does, and every hook fires as often. ``switch_to_deploy()`` keeps the function, or
raises and changes nothing.
"""

import contextlib
import copy
import warnings
from collections import Counter
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from attack_cases import attack
from hypothesis import strategies as st
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from mmreplk import RepLKNet
from mmreplk.models.blocks import ConvFFN, RepLKBlock
from mmreplk.models.cpu_inference import pointwise
from mmreplk.models.cpu_inference.pointwise import PointwiseConv2d
from mmreplk.models.deployed import DeployedConvFFN, DeployedRepLKBlock, FusedSequential
from mmreplk.models.reparam import ReparamLargeKernelConv
from mmreplk.ops import LargeKernelDWConv2d

HOOKS = ('forward', 'forward_pre', 'full_backward', 'full_backward_pre', 'changing forward',
         'changing forward_pre')


# -- the plain network: every layer is called, every convolution is PyTorch's ----------------------

def _convolved(conv, x, residual=None, activation=None):
    out = nn.Conv2d.forward(conv, x)
    if conv.activation is not None:
        out = getattr(F, conv.activation)(out)
    out = out if activation is None else activation(out)
    return out if residual is None else residual + out


def _branches(layer, x):
    if layer.deploy:
        return layer.lkb_reparam(x)
    out = layer.lkb_origin(x)
    return out if layer.small_kernel is None else out + layer.small_conv(x)


def _large(block, x):
    out = block.lk_nonlinear(block.large_kernel(block.pw1(block.prelkb_bn(x))))
    return x + block.drop_path(block.pw2(out))


def _feed_forward(block, x):
    return x + block.drop_path(block.pw2(block.nonlinear(block.pw1(block.preffn_bn(x)))))


PLAIN = {LargeKernelDWConv2d: _convolved, PointwiseConv2d: _convolved, RepLKBlock: _large,
         ReparamLargeKernelConv: _branches, ConvFFN: _feed_forward, DeployedRepLKBlock: _large,
         DeployedConvFFN: _feed_forward, FusedSequential: nn.Sequential.forward}


@contextlib.contextmanager
def plainly():
    """Networks compute without any of our fast paths."""
    with contextlib.ExitStack() as stack:
        for kind, forward in PLAIN.items():
            stack.enter_context(mock.patch.object(kind, 'forward', forward))
        stack.enter_context(mock.patch.object(pointwise, 'faster_channels_last',
                                              return_value=False))
        yield


# -- what outside does -----------------------------------------------------------------------------

class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def _plain_copy(conv, kind=nn.Conv2d):
    new = kind(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
               conv.dilation, conv.groups, conv.bias is not None)
    with torch.no_grad():
        new.weight.copy_(conv.weight)
    return new


def _replaced(kind):
    def replace(model, name):
        parent, _, own = name.rpartition('.')
        setattr(model.get_submodule(parent), own, _plain_copy(model.get_submodule(name), kind))
    return replace


def _of(change):
    return lambda model, name: change(model.get_submodule(name))


def _biased(conv):
    conv.bias = nn.Parameter(torch.randn(conv.out_channels))


def _dilated(conv):
    conv.dilation, conv.padding = (2, 2), tuple(2 * (k // 2) for k in conv.kernel_size)


def _set(**attributes):
    def change(module):
        for key, value in attributes.items():
            setattr(module, key, value)
    return _of(change)


def _pruned(module):
    prune.l1_unstructured(module, 'weight', 0.3)


def _forward_of_its_own(module):
    module.forward = lambda x, forward=module.forward: forward(x).sin()


def _without_norm(branch):
    if isinstance(branch, nn.Sequential):
        fuse_conv_bn(branch)


CONVS = {
    'bias': _of(_biased),
    'circular': _set(padding_mode='circular'),
    'reflect': _set(padding_mode='reflect'),
    'replicate': _set(padding_mode='replicate'),
    'dilated': _of(_dilated),
    'stride': _set(stride=(2, 2)),
    'unpadded': _set(padding=(0, 0)),
    'same': _set(padding='same'),
    'backend torch': _set(backend='torch'),
    'backend fft': _set(backend='fft'),
    'relu': _set(activation='relu'),
    'weight norm': _of(parametrizations.weight_norm),
    'weight norm by hooks': _of(weight_norm),
    'spectral norm': _of(parametrizations.spectral_norm),
    'spectral norm by hooks': _of(spectral_norm),
    'pruned': _of(_pruned),
    'frozen': _of(lambda conv: conv.requires_grad_(False)),
    'own forward': _of(_forward_of_its_own),
    'plain convolution': _replaced(nn.Conv2d),
    'another class': _replaced(Doubled),
}
NORMS = {
    'eps': _set(eps=0.3),
    'no weight': _set(weight=None),
    'no bias': _set(bias=None),
    'pruned': _of(_pruned),
    'in evaluation': _of(lambda norm: norm.eval()),
    'own forward': _of(_forward_of_its_own),
    'frozen': _of(lambda norm: norm.requires_grad_(False)),
}
COMPUTED = {name for name in CONVS if name.startswith(('weight', 'spectral', 'pruned'))}
# Both branches alike, which merges.
BOTH = ['bias', 'circular', 'reflect', 'dilated', 'same', 'backend torch', 'weight norm', 'pruned']


class Network(NamedTuple):
    options: dict
    changes: tuple  # of (kind, change, which module)
    hooks: tuple  # of (kind, which module)
    everywhere: str | None  # a hook of all modules
    training: bool
    seed: int


@st.composite
def networks(draw, hooks=(0, 6), changes=(0, 4)):
    pick, integers = (lambda *values: draw(st.sampled_from(values))), st.integers
    stages = draw(integers(1, 2))
    kernels = [pick(5, 7, 9, 13) for _ in range(stages)]
    options = dict(
        arch=dict(large_kernel_sizes=kernels, layers=[1] * stages,
                  channels=[pick(4, 6, 9) for _ in range(stages)],
                  dw_ratio=pick(1, 1, 2), ffn_ratio=pick(1, 2)),
        small_kernel=pick(None, 3, 5, 5), drop_path_rate=0.0, final_norm=pick(False, True),
        norm_intermediate_features=pick(False, True), with_cp=pick(False, False, True, 'ffn'),
        act_cfg=dict(type=pick('ReLU', 'ReLU', 'GELU', 'Tanh')),
        ffn_act_cfg=dict(type=pick('GELU', 'GELU', 'ReLU')))
    change = st.one_of(
        st.tuples(st.just('conv'), st.sampled_from(list(CONVS)), integers(0, 60)),
        st.tuples(st.just('large'), st.sampled_from(list(CONVS)), integers(0, 3)),
        st.tuples(st.just('both'), st.sampled_from(BOTH), integers(0, 3)),
        st.tuples(st.just('norm'), st.sampled_from(list(NORMS)), integers(0, 60)),
        st.tuples(st.just('fused'), st.just(''), integers(0, 60)))
    listeners = [draw(st.tuples(st.sampled_from(HOOKS), integers(0, 200)))
                 for _ in range(draw(integers(*hooks)))]
    changed = [draw(change) for _ in range(draw(integers(*changes)))]
    return Network(options, tuple(changed), tuple(listeners),
                   pick(*[None] * 8, 'forward', 'forward_pre'), pick(False, False, True),
                   draw(integers(0, 2**31)))


def build(network, dtype, calls=None):
    """The network, always the same, with hooks that count themselves in ``calls``."""
    torch.manual_seed(network.seed)
    model = RepLKNet(**network.options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train(network.training)
    for kind, name, place in network.changes:
        _change(model, kind, name, place)
    model.to(dtype)
    names = [name for name, module in model.named_modules()
             if name and not isinstance(module, nn.ModuleList) and 'parametrizations' not in name]
    for number, (kind, place) in enumerate(network.hooks):
        name = names[place % len(names)]
        _listen(model.get_submodule(name), kind, calls, (number, kind, name))
    return model


def _change(model, kind, name, place):
    def those(wanted):
        found = [key for key, module in model.named_modules() if wanted(key, module)]
        return found[place % len(found):][:1]

    if kind == 'norm':
        picked, change = those(lambda key, m: isinstance(m, nn.BatchNorm2d)), NORMS[name]
    elif kind == 'fused':
        picked, change = those(lambda key, m: type(m) is nn.Sequential and hasattr(m, 'bn')), _of(
            _without_norm)
    elif kind == 'conv':
        picked, change = those(lambda key, m: isinstance(m, nn.Conv2d)), CONVS[name]
    else:
        at = those(lambda key, m: isinstance(m, ReparamLargeKernelConv))
        picked, change = [f'{key}.lkb_origin.conv' for key in at], CONVS[name]
        if kind == 'both' and _has_small(model):
            picked += [f'{key}.small_conv.conv' for key in at]
    for key in picked:
        module = model.get_submodule(key)
        if name in COMPUTED and (parametrize.is_parametrized(module) or any(
                key.startswith('weight_') for key in module._parameters)):
            continue  # PyTorch's ways to compute a weight do not go together
        # What cannot be done to a layer, as pruning a norm without weight, is not.
        with contextlib.suppress(ValueError, RuntimeError, AttributeError, KeyError, TypeError):
            change(model, key)


def _has_small(model):
    return any(key.endswith('small_conv') for key, _ in model.named_modules())


def _listen(module, kind, calls, key):
    changing, kind = kind.startswith('changing'), kind.removeprefix('changing ')

    def count(module, given, *out):
        if calls is not None:
            calls[key] += 1
        if changing:
            return tuple(0.5 * t + 0.1 for t in given) if kind == 'forward_pre' else out[0] + 0.1
        return None

    getattr(module, f'register_{kind}_hook')(count)


@contextlib.contextmanager
def everywhere(kind, calls):
    """A hook of all modules of the process."""
    if kind is None:
        yield
        return

    def count(module, *args):
        calls[type(module).__name__] += 1

    handle = getattr(nn.modules.module, f'register_module_{kind}_hook')(count)
    try:
        yield
    finally:
        handle.remove()


RAISED = RuntimeError, TypeError


def outcome(model, x, calls, kind=None, grad=False):
    """Outputs, and gradients of everything if asked for; what it raised instead."""
    calls.clear()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(grad)
    try:
        with torch.set_grad_enabled(grad), everywhere(kind, calls):
            outs = model(x)
            if not grad:
                return [*outs]
            wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
            total = sum((out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum()
                        for out in outs)
            grads = torch.autograd.grad(total, wanted, allow_unused=True)
            return [*(out.detach() for out in outs), *grads]
    # Sizes that do not fit any more; PyTorch's older weight norm on what its own fusing replaced.
    except RAISED as error:
        return error


def agree(found, wanted, tolerance):
    if isinstance(wanted, RAISED):
        assert isinstance(found, RAISED), f'only the plain network raises: {wanted}'
        return
    assert not isinstance(found, RAISED), f'the plain network does not raise: {found}'
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is None:
            continue
        assert a.shape == b.shape
        scale = b.abs().max().clamp(min=1e-3)
        assert (a.double() - b).abs().max() <= tolerance * scale


def image(network, size, last, dtype):
    generator = torch.Generator().manual_seed(network.seed)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float32).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


SIZES = st.tuples(*[st.sampled_from([32, 35, 48])] * 2)


@attack(40, network=networks(), size=SIZES, last=st.booleans(), grad=st.booleans())
def test_the_layers_decide(network, size, last, grad):
    """Outputs, gradients and every hook, as of the plain network in float64."""
    with warnings.catch_warnings():
        # Of PyTorch, about its older weight norm and hooks where no gradient is wanted.
        warnings.simplefilter('ignore')
        # By batch statistics of a few pixels, rounding in float32 would be magnified.
        dtype = torch.float64 if network.training or grad else torch.float32
        calls, expected = Counter(), Counter()
        model, right = build(network, dtype, calls), build(network, torch.float64, expected)
        x = image(network, size, last, torch.float32)
        for _ in range(2):  # the second call has the spectra of the first
            found = outcome(model, x.to(dtype), calls, network.everywhere, grad)
            with plainly():
                wanted = outcome(right, x.double(), expected, network.everywhere, grad)
            agree(found, wanted, 1e-8 if dtype == torch.float64 else 1e-3)
            if not isinstance(wanted, RAISED):
                assert calls == expected
        if not isinstance(wanted, RAISED):
            for (name, a), b in zip(model.named_buffers(), right.buffers(), strict=True):
                assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3), name


def _everything(model):
    """All that a failed deployment must leave as it is."""
    return [(name, id(module), type(module), module.training, [
        (key, list(getattr(module, key).items())) for key in (
            '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')], [
        (key, id(value), value.requires_grad) for key, value in module._parameters.items()
        if value is not None]) for name, module in model.named_modules()]


@attack(80, network=st.one_of(networks((0, 0), (1, 2)), networks((1, 1), (0, 1))), size=SIZES,
        last=st.booleans())
def test_deployment_keeps_the_function_or_changes_nothing(network, size, last):
    with warnings.catch_warnings():
        # Of PyTorch, about its older weight norm and hooks where no gradient is wanted.
        warnings.simplefilter('ignore')
        network = network._replace(everywhere=None)
        calls = Counter()
        model, x = build(network, torch.float64, calls), image(network, size, last, torch.float64)
        model.eval()
        with plainly():
            expected = outcome(model, x, calls)
        model.train(network.training)
        before, text, state = _everything(model), str(model), {
            key: value.clone() for key, value in model.state_dict().items()}
        refusal = None
        try:
            model.switch_to_deploy()
        except (TypeError, ValueError) as error:
            refusal = str(error)
        if refusal is not None:
            assert refusal.startswith('cannot merge')
            assert not model.deploy
            assert _everything(model) == before
            assert str(model) == text
            assert list(model.state_dict()) == list(state)
            assert all(map(torch.equal, model.state_dict().values(), state.values()))
            agree(outcome(model.eval(), x, calls), expected, 1e-9)
            return
        assert model.deploy
        agree(outcome(model.eval(), x, calls), expected, 1e-9)
        counted = copy.copy(calls)
        with plainly():
            agree(outcome(model, x, calls), expected, 1e-9)
        if not isinstance(expected, RAISED):
            assert calls == counted
        # What float32 makes of it by the faster products.
        if not isinstance(expected, RAISED):
            agree(outcome(model.float(), x.float(), calls), expected, 1e-3)
