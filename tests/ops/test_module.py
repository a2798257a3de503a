"""``LargeKernelDWConv2d`` in place of ``nn.Conv2d``."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mmreplk.ops import LargeKernelDWConv2d
from mmreplk.ops.cpu import kernels as native

# Arguments of layers that are depth-wise, by what is special about them.
LAYERS = {
    'same size': dict(kernel_size=13, padding=6),
    'same': dict(kernel_size=13, padding='same'),
    'same, even': dict(kernel_size=(8, 4), padding='same'),
    'same, dilated': dict(kernel_size=(5, 7), padding='same', dilation=(2, 3)),
    'valid': dict(kernel_size=9, padding='valid'),
    'rectangle': dict(kernel_size=(31, 5), padding=(15, 2)),
    'larger than the map': dict(kernel_size=51, padding=25),
    'no bias': dict(kernel_size=13, padding=6, bias=False),
    'stride': dict(kernel_size=9, padding=4, stride=2),
    'two strides': dict(kernel_size=9, padding=4, stride=(1, 2)),
    'dilation': dict(kernel_size=7, padding=6, dilation=2),
    'multiplier': dict(kernel_size=9, padding=4, out_channels=12),
    'multiplier and stride': dict(kernel_size=9, padding=4, stride=2, out_channels=8),
    'one by one': dict(kernel_size=1),
}
# Layers that are not depth-wise.
OTHERS = {
    'dense': dict(kernel_size=5, padding=2), 'pointwise': dict(kernel_size=1, out_channels=7),
    'grouped': dict(kernel_size=5, padding='same', groups=2, out_channels=6),
    'reflecting': dict(kernel_size=5, padding=2, padding_mode='reflect')}
MODES = ['zeros', 'reflect', 'replicate', 'circular']


def make(cls, keywords, **more):
    """A layer of 4 channels in; depth-wise unless groups are given."""
    depthwise = keywords not in OTHERS.values()
    keywords = {**dict(in_channels=4, out_channels=4), **(dict(groups=4) if depthwise else {}),
                **keywords, **more}
    return cls(**keywords)


def both(keywords, **more):
    """Ours and PyTorch's, with the same parameters."""
    ours, theirs = make(LargeKernelDWConv2d, keywords, **more), make(nn.Conv2d, keywords)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def check(compare, ours, theirs, x):
    """The same outputs and gradients; theirs in float64."""
    theirs = copy.deepcopy(theirs).double()
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns of its copy for even kernels
        out, right = ours(inputs[0]), theirs(inputs[1])
    grad = torch.rand_like(out)
    out.backward(grad)
    right.backward(grad.double())
    compare(out.detach(), right.detach(), x.dtype)
    compare(inputs[0].grad, inputs[1].grad, x.dtype)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        compare(a.grad, b.grad, x.dtype)


# -- results ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('case', LAYERS)
def test_depthwise_layers(compare, case):
    ours, theirs = both(LAYERS[case])
    check(compare, ours, theirs, torch.randn(2, 4, 30, 27))
    assert torch.equal(ours(torch.ones(4, 30, 27)), ours(torch.ones(1, 4, 30, 27))[0])


@pytest.mark.parametrize('case', OTHERS)
def test_other_layers_are_plain_convolutions(case):
    ours, theirs = both(OTHERS[case], backend='fft')
    for shape in ((2, 4, 30, 27), (4, 30, 27)):
        x = torch.randn(shape)
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('arguments', [
    dict(kernel_size=13, padding=6), dict(kernel_size=(9, 5), padding=(3, 4)),
    dict(kernel_size=(7, 4), padding='same', dilation=2),
    dict(kernel_size=7, padding='valid'), dict(kernel_size=9, padding=4, stride=2)])
def test_padding_modes(compare, arguments, mode):
    ours, theirs = both({**arguments, 'padding_mode': mode})
    check(compare, ours, theirs, torch.randn(2, 4, 22, 19))
    if mode != 'circular':  # PyTorch's circular padding itself gives up the format
        out = ours(torch.randn(1, 4, 22, 19).contiguous(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('backend', ['fft', 'direct', 'torch'])
def test_a_backend_asked_for(compare, backend):
    if backend == 'direct' and not native.available()[0]:
        pytest.skip(native.available()[1])
    layer = make(LargeKernelDWConv2d, LAYERS['same size'], backend=backend)
    x = torch.randn(2, 4, 30, 27)
    out = layer(x)
    theirs = make(nn.Conv2d, LAYERS['same size']).double()
    theirs.load_state_dict(layer.state_dict())
    compare(out.detach(), theirs(x.double()).detach(), torch.float32)


def test_a_backend_that_cannot_serve():
    layer = make(LargeKernelDWConv2d, LAYERS['stride'], backend='fft')
    with pytest.raises(RuntimeError, match=r"backend='fft' cannot serve.*stride 1, not \(2, 2\)"):
        layer(torch.randn(2, 4, 30, 27))
    with pytest.raises(ValueError, match="auto, triton, cuda, fft, direct, torch, not 'cudnn'"):
        make(LargeKernelDWConv2d, LAYERS['stride'], backend='cudnn')


@pytest.mark.parametrize('shape', [(2, 3, 30, 30), (30, 30), (1, 2, 4, 30, 30), (2, 4, 5, 30)])
def test_bad_inputs(shape):
    ours, theirs = both(dict(kernel_size=9, padding=1))
    x = torch.randn(shape)
    with pytest.raises(RuntimeError) as right:
        theirs(x)
    with pytest.raises(RuntimeError) as error:
        ours(x)
    assert str(error.value) == str(right.value)


def test_bad_arguments_are_those_of_conv2d():
    for wrong in (dict(kernel_size=9, groups=3), dict(kernel_size=9, padding='full'),
                  dict(kernel_size=9, padding='same', stride=2),
                  dict(kernel_size=9, padding_mode='mirror')):
        with pytest.raises(ValueError) as right:  # noqa: PT011
            make(nn.Conv2d, wrong)
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make(LargeKernelDWConv2d, wrong)
        assert str(error.value) == str(right.value)


@pytest.mark.parametrize('groups', [1, 4])
def test_3d_kernels_are_refused(groups):
    with pytest.raises(ValueError, match=r'kernel_size must be .*not \(3, 3, 3\).*nn.Conv3d'):
        LargeKernelDWConv2d(4, 4, (3, 3, 3), groups=groups)


def test_quantized_input_is_refused_in_words():
    x = torch.quantize_per_tensor(torch.randn(1, 4, 16, 16), 0.1, 0, torch.quint8)
    with pytest.raises(RuntimeError, match=r'is quantized, .*dequantize\(\) first.*nn.Conv2d'):
        LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)(x)
    layer = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)))
    assert layer(x.dequantize()).shape == x.shape


# -- attributes and state --------------------------------------------------------------------------

@pytest.mark.parametrize('case', [*LAYERS, *OTHERS])
def test_attributes_and_state_of_conv2d(case):
    keywords = {**LAYERS, **OTHERS}[case]
    ours, theirs = both(keywords)
    assert isinstance(ours, nn.Conv2d)
    assert set(vars(ours)) == {*vars(theirs), 'activation', 'backend'}
    for name, value in vars(theirs).items():
        if not isinstance(value, dict):
            assert getattr(ours, name) == value, name
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert ours.extra_repr() == theirs.extra_repr()


def test_same_initial_weights():
    torch.manual_seed(3)
    ours = make(LargeKernelDWConv2d, LAYERS['same size'])
    torch.manual_seed(3)
    theirs = make(nn.Conv2d, LAYERS['same size'])
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_state_dicts_fit_both_ways():
    ours = make(LargeKernelDWConv2d, LAYERS['same size'])
    theirs = make(nn.Conv2d, LAYERS['same size'])
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.weight, ours.weight)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs.weight, ours.weight)
    with pytest.raises(RuntimeError, match='Missing key.*bias'):
        ours.load_state_dict(dict(weight=theirs.weight))


def test_positional_arguments_and_factory_keywords():
    arguments = 4, 8, (5, 7), 1, (2, 3), 1, 4, False, 'reflect', 'cpu', torch.float64
    ours = LargeKernelDWConv2d(*arguments)
    theirs = nn.Conv2d(*arguments)
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.weight.dtype == torch.float64
    assert ours.bias is None
    assert LargeKernelDWConv2d(4, 4, 5, groups=4, device='meta').weight.device.type == 'meta'


def test_extra_repr_shows_the_backend():
    plain = make(LargeKernelDWConv2d, LAYERS['same size'])
    asked = make(LargeKernelDWConv2d, LAYERS['same size'], backend='fft')
    assert 'backend' not in repr(plain)
    assert repr(plain) == repr(make(nn.Conv2d, LAYERS['same size'])).replace(
        'Conv2d', 'LargeKernelDWConv2d')
    assert repr(asked) == repr(plain)[:-1] + ', backend=fft)'


# -- copies ----------------------------------------------------------------------------------------

def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_save(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize('how', [copy.deepcopy, through_pickle, through_save])
def test_copies(how):
    layer = make(LargeKernelDWConv2d, LAYERS['same size'], backend='fft').eval()
    layer.bias.requires_grad_(False)
    x = torch.randn(1, 4, 30, 27)
    with torch.no_grad():
        right = layer(x)  # with a spectrum at hand
    twin = how(layer)
    assert type(twin) is LargeKernelDWConv2d
    assert (twin.backend, twin.training, twin.bias.requires_grad) == ('fft', False, False)
    assert twin.weight.data_ptr() != layer.weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(twin(x), right)
        twin.weight.zero_()
        assert torch.equal(twin(x), twin.bias.view(1, -1, 1, 1).expand_as(right))
        assert torch.equal(layer(x), right)


def test_pickles_without_a_backend():
    """Of a layer whose class was changed by hand, or written by an earlier version."""
    layer = make(LargeKernelDWConv2d, LAYERS['same size'])
    state = {name: value for name, value in layer.__dict__.items() if name != 'backend'}
    old = LargeKernelDWConv2d.__new__(LargeKernelDWConv2d)
    old.__setstate__(state)
    assert old.backend == 'auto'
    x = torch.randn(1, 4, 30, 27)
    assert torch.equal(old(x), layer(x))


# -- from_conv2d -----------------------------------------------------------------------------------

@pytest.mark.parametrize('case', [*LAYERS, *OTHERS])
def test_from_conv2d(compare, case):
    conv = make(nn.Conv2d, {**LAYERS, **OTHERS}[case])
    layer = LargeKernelDWConv2d.from_conv2d(conv)
    assert type(layer) is LargeKernelDWConv2d
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert layer.backend == 'auto'
    assert layer.extra_repr() == conv.extra_repr()
    assert list(layer.state_dict()) == list(conv.state_dict())
    x = torch.randn(2, 4, 30, 27)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns of its copy for even kernels
        compare(layer(x), copy.deepcopy(conv).double()(x.double()), torch.float32)


@pytest.mark.parametrize('mode', MODES)
def test_from_conv2d_keeps_padding_modes(compare, mode):
    conv = make(nn.Conv2d, dict(kernel_size=(9, 4), padding='same', padding_mode=mode))
    layer = LargeKernelDWConv2d.from_conv2d(conv)
    assert (layer.padding_mode, layer.padding) == (mode, 'same')
    check(compare, layer, copy.deepcopy(conv), torch.randn(2, 4, 22, 19))


def test_from_conv2d_keeps_everything_else():
    conv = make(nn.Conv2d, LAYERS['same size']).double().eval()
    conv.weight.requires_grad_(False)
    layer = LargeKernelDWConv2d.from_conv2d(conv, backend='fft')
    assert layer.backend == 'fft'
    assert not layer.training
    assert layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert LargeKernelDWConv2d.from_conv2d(conv.train()).training
    again = LargeKernelDWConv2d.from_conv2d(layer)
    assert again.weight is conv.weight
    meta = LargeKernelDWConv2d.from_conv2d(conv.to('meta'))
    assert meta.weight.device.type == 'meta'
    with pytest.raises(ValueError, match="not 'cudnn'"):
        LargeKernelDWConv2d.from_conv2d(make(nn.Conv2d, LAYERS['same size']), backend='cudnn')


def test_from_conv2d_does_not_touch_random_numbers():
    conv = make(nn.Conv2d, LAYERS['same size'])
    state = torch.get_rng_state()
    LargeKernelDWConv2d.from_conv2d(conv)
    assert torch.equal(torch.get_rng_state(), state)


def test_from_conv2d_in_a_trained_network():
    """An optimizer that holds the parameters goes on."""
    conv = make(nn.Conv2d, LAYERS['same size'])
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    layer = LargeKernelDWConv2d.from_conv2d(conv)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 4, 30, 27)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_from_conv2d_refuses():
    """What is not a convolution of maps, or does something of its own."""

    class Own(nn.Conv2d):

        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Conv2d):
        pass

    for wrong in (nn.Conv1d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 3, groups=4),
                  Own(4, 4, 3, groups=4), nn.Identity(), None):
        with pytest.raises(TypeError, match=f'plain torch.nn.Conv2d, not {type(wrong).__name__}'):
            LargeKernelDWConv2d.from_conv2d(wrong)
    assert LargeKernelDWConv2d.from_conv2d(Renamed(4, 4, 3, groups=4)).groups == 4


def test_from_conv2d_of_a_lazy_layer():
    """It has no parameters yet to share, and would be told of its size alone."""
    lazy = nn.LazyConv2d(4, 3, groups=4)
    with pytest.raises(TypeError, match='LazyConv2d without weights'):
        LargeKernelDWConv2d.from_conv2d(lazy)
    lazy(torch.randn(1, 4, 9, 9))
    assert LargeKernelDWConv2d.from_conv2d(lazy).weight is lazy.weight


@pytest.mark.parametrize('what', ['hook', 'weight_norm', 'pruned'])
def test_from_conv2d_does_not_lose_what_changes_the_result(what):
    """Hooks and parametrizations are no part of the layer: kept, or refused, never dropped."""
    conv = make(nn.Conv2d, LAYERS['same size'])
    if what == 'hook':
        conv.register_forward_hook(lambda module, args, out: 2 * out)
    elif what == 'weight_norm':
        nn.utils.parametrizations.weight_norm(conv)
    else:
        prune.l1_unstructured(conv, 'weight', 0.5)
    x = torch.randn(1, 4, 30, 27)
    try:
        layer = LargeKernelDWConv2d.from_conv2d(conv)
    except TypeError:
        return
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-4)
    assert {id(p) for p in layer.parameters()} == {id(p) for p in conv.parameters()}


# -- in the company of other modules ---------------------------------------------------------------

def test_parametrizations():
    """The weights are a new tensor in every call."""
    layer = make(LargeKernelDWConv2d, LAYERS['same size'], backend='fft')
    nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(1, 4, 30, 27)
    for _ in range(2):
        right = nn.functional.conv2d(x, layer.weight, layer.bias, 1, 6, 1, 4)
        torch.testing.assert_close(layer(x), right, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            assert torch.equal(layer(x), layer(x))
            layer.parametrizations.weight.original0.mul_(2)


def test_conversions():
    layer = make(LargeKernelDWConv2d, LAYERS['same size'])
    x = torch.randn(1, 4, 30, 27)
    assert layer.half()(x.half()).dtype == torch.float16
    assert layer.double()(x.double()).dtype == torch.float64
    layer.float().to(memory_format=torch.channels_last)
    out = layer(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    fused = nn.utils.fuse_conv_bn_eval(layer.eval(), nn.BatchNorm2d(4).eval())
    assert type(fused) is LargeKernelDWConv2d


def test_in_data_parallel_replicas():
    """``replicate`` copies modules without calling their constructors."""
    layer = make(LargeKernelDWConv2d, LAYERS['same size'], backend='fft')
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight.clone(), layer.bias.clone()
    assert replica.backend == 'fft'
    x = torch.randn(1, 4, 30, 27)
    torch.testing.assert_close(replica(x), layer(x))


# -- imports ---------------------------------------------------------------------------------------

ALONE = '''
import sys

import torch

HIDDEN = {'mmcv', 'mmengine', 'mmseg', 'mmdet', 'mmpretrain', 'triton', 'timm', 'scipy',
          'torchvision', 'onnx'}


class Hide:
    """A finder that does not find some packages, as if they were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if name.split('.')[0] in HIDDEN else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)


before = {name.split('.')[0] for name in sys.modules}
sys.meta_path[:] = map(Hide, sys.meta_path)
from mmreplk.ops import LargeKernelDWConv2d, explain, large_kernel_dwconv2d
after = {name.split('.')[0] for name in sys.modules}
assert not after & (HIDDEN - before), after & HIDDEN
assert after - before - set(sys.stdlib_module_names) == {'mmreplk'}, after - before
assert not any(name.startswith(('mmreplk.models', 'mmreplk.engine', 'mmreplk.registry'))
               for name in sys.modules)

layer = LargeKernelDWConv2d(3, 3, 13, padding=6, groups=3)
x = torch.randn(2, 3, 40, 40, requires_grad=True)
right = torch.nn.Conv2d.forward(layer, x)
torch.testing.assert_close(layer(x), right, rtol=1e-4, atol=1e-4)
layer(x).sum().backward()
with torch.no_grad():
    torch.testing.assert_close(layer(x), right, rtol=1e-4, atol=1e-4)
assert 'triton' in str(explain(x, layer.weight, None, 1, 6))
assert not {name.split('.')[0] for name in sys.modules} & (HIDDEN - before)
'''


def test_needs_torch_alone():
    done = subprocess.run(
        [sys.executable, '-c', ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
