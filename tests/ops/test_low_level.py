"""``torch.ops.mmreplk.*`` with arguments that are no convolution, and tensors without their memory.

Nothing crashes, hangs or ends in anything but a RuntimeError that names the argument.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from mmreplk.ops import explain, large_kernel_dwconv2d, large_kernel_dwconv2d_pair

OPS = torch.ops.mmreplk
HUGE = [1 << 24, 1 << 40, (1 << 62) + 1, (1 << 63) - 1]
ONE = [1, 1]


def maps(size=20):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 4, size, size, generator=generator),
            torch.randn(4, 1, 5, 5, generator=generator),
            torch.randn(2, 4, size, size, generator=generator))


def calls(x=None, weight=None, grad=None, padding=(2, ) * 4, dilation=(1, 1), backend='auto',
          kernel=(5, 5), bias=None):
    """Each op with one argument changed."""
    of_x, of_weight, of_grad = maps()
    x, weight = of_x if x is None else x, of_weight if weight is None else weight
    grad = of_grad if grad is None else grad
    padding, dilation, kernel = list(padding), list(dilation), list(kernel)
    return {
        'dwconv2d': lambda: OPS.dwconv2d(x, weight, bias, padding, dilation, backend),
        'dwconv2d_weight_grad': lambda: OPS.dwconv2d_weight_grad(
            x, grad, kernel, padding, dilation, backend),
        'dwconv2d_pair': lambda: OPS.dwconv2d_pair(
            x, weight, weight, padding, padding, dilation, backend),
        'dwconv2d_backward': lambda: OPS.dwconv2d_backward(
            x, [grad], [weight], padding, dilation, backend)}


def refused(words, names=None, **changed):
    for name, call in calls(**changed).items():
        if names is None or name in names:
            with pytest.raises(RuntimeError, match=words):
                call()


def test_the_calls_are_right_unchanged():
    x, weight, _ = maps()
    for call in calls().values():
        call()
    right = F.conv2d(x, weight, padding=2, groups=4)
    assert torch.allclose(calls()['dwconv2d'](), right, atol=1e-4)


@pytest.mark.parametrize('backend', ['nonsense', '', 'FFT', 'auto ?'])
def test_unknown_backends(backend):
    refused('backend must be one of auto, triton, cuda, fft, direct, torch', backend=backend)


def test_a_backend_that_cannot_serve():
    """It is an error unless strict is False, which graphs from before there was strict call '?'."""
    x, weight, grad = maps()
    right = F.conv2d(x, weight, padding=2, groups=4)
    with pytest.raises(RuntimeError, match="backend='triton' cannot serve"):
        OPS.dwconv2d(x, weight, None, [2] * 4, [1, 1], 'triton')
    with pytest.raises(RuntimeError, match="backend='triton' cannot serve"):
        OPS.dwconv2d_weight_grad(x, grad, [5, 5], [2] * 4, [1, 1], 'triton')
    for backend, keywords in (('triton', dict(strict=False)), ('triton?', {})):
        out = OPS.dwconv2d(x, weight, None, [2] * 4, [1, 1], backend, **keywords)
        assert torch.allclose(out, right, atol=1e-4)
        OPS.dwconv2d_weight_grad(x, grad, [5, 5], [2] * 4, [1, 1], backend, **keywords)


@pytest.mark.parametrize('numbers', [[], [2], [2] * 3, [2] * 5, [-1] * 4, [2, 2, 2, -(1 << 63)]])
def test_padding(numbers):
    refused('padding', padding=numbers)


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct', 'torch'])
@pytest.mark.parametrize('side', range(4))
@pytest.mark.parametrize('huge', HUGE)
def test_huge_padding_at_once(huge, side, backend):
    padding = [2] * 4
    padding[side] = huge
    refused('padding', padding=padding, backend=backend)


@pytest.mark.parametrize('numbers', [[], [1], [1] * 3, [0, 1], [1, -1], [1, 1 << 20],
                                     *([1, h] for h in HUGE), *([h, h] for h in HUGE)])
def test_dilation(numbers):
    refused('dilation', dilation=numbers)


@pytest.mark.parametrize('numbers', [[], [5], [5] * 3, [0, 5], [5, -5], *([5, h] for h in HUGE),
                                     *([h, 5] for h in HUGE)])
def test_kernel_size(numbers):
    refused('kernel_size', ['dwconv2d_weight_grad'], kernel=numbers)


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct', 'torch'])
@pytest.mark.parametrize('dilation', HUGE)
def test_dilation_of_a_single_tap_plays_no_part(dilation, backend):
    x, weight, grad = maps()
    for kernel, both in (((1, 5), [dilation, 1]), ((5, 1), [1, dilation]),
                         ((1, 1), [dilation] * 2)):
        for last in (False, True):
            if last:
                x = x.contiguous(memory_format=torch.channels_last)
            taps = weight[:, :, :kernel[0], :kernel[1]].contiguous()
            sides = [kernel[0] // 2] * 2 + [kernel[1] // 2] * 2
            leaves = [t.clone().requires_grad_() for t in (x, taps)]
            right = F.conv2d(*leaves, padding=sides[1:3], groups=4)
            for out in (OPS.dwconv2d(*leaves, None, sides, both, backend),
                        large_kernel_dwconv2d(*leaves, None, 1, sides[1:3], both, backend=backend)):
                assert torch.allclose(out, right, atol=1e-4)
                for a, b in zip(torch.autograd.grad(out, leaves, grad),
                                torch.autograd.grad(right, leaves, grad, retain_graph=True),
                                strict=True):
                    assert torch.allclose(a, b, atol=1e-3)


def test_shapes():
    x, weight, grad = maps()
    for shape in ((4, 20, 20), (4, ), (1, 2, 4, 20, 20)):
        refused('x must have 4 dimensions', x=torch.randn(shape))
    for shape in ((4, 5, 5), (4, 2, 5, 5), (4, 0, 5, 5), ()):
        refused('weight|other', ['dwconv2d', 'dwconv2d_pair', 'dwconv2d_backward'],
                weight=torch.randn(shape))
    for outputs in (0, 1, 3, 6):
        refused('output channels', ['dwconv2d', 'dwconv2d_pair', 'dwconv2d_backward'],
                weight=torch.randn(outputs, 1, 5, 5))
        refused('output channels', ['dwconv2d_weight_grad'], grad=torch.randn(2, outputs, 20, 20))
    refused('channels of x', x=x[:, :0])
    refused('kernel', ['dwconv2d', 'dwconv2d_pair', 'dwconv2d_backward'], weight=weight[..., :0])
    for shape in ((2, 4, 19, 20), (1, 4, 20, 20), (2, 4, 20, 0)):
        refused('grad', ['dwconv2d_weight_grad', 'dwconv2d_backward'], grad=torch.randn(shape))
    refused('grad', ['dwconv2d_weight_grad'], grad=grad[0])
    refused('output would be of size', x=x[..., :4], padding=[0] * 4)  # 16 x 0
    refused('bias', ['dwconv2d'], bias=torch.randn(3))
    refused('bias', ['dwconv2d'], bias=torch.randn(4).double())


def test_numbers_of_branches():
    x, weight, grad = maps()
    for grads, weights, count in (
            ([], [], 0), ([grad] * 3, [weight] * 3, 3), ([grad], [], 1), ([], [weight], 1),
            ([grad] * 2, [weight], 2)):
        with pytest.raises(RuntimeError, match='grads and weights must be one or two'):
            OPS.dwconv2d_backward(x, grads, weights, [2] * 4 * count, ONE * count, 'auto')
    for paddings, dilations, name in (([2] * 4, ONE * 2, 'paddings'), ([2] * 8, ONE, 'dilations'),
                                      ([], [], 'paddings'), ([2] * 12, ONE * 2, 'paddings')):
        with pytest.raises(RuntimeError, match=name):
            OPS.dwconv2d_backward(x, [grad] * 2, [weight] * 2, paddings, dilations, 'auto')


UNUSUAL = dict(
    sparse=lambda t: t.to_sparse(),
    mkldnn=lambda t: t.to_mkldnn(),
    quantized=lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    nested=lambda t: torch.nested.nested_tensor(list(t)))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', UNUSUAL)
def test_unusual_tensors(kind):
    x, weight, grad = maps()
    refused('x must be an ordinary', x=UNUSUAL[kind](x))
    refused('weight', ['dwconv2d', 'dwconv2d_pair', 'dwconv2d_backward'],
            weight=UNUSUAL[kind](weight))
    refused('grad', ['dwconv2d_weight_grad', 'dwconv2d_backward'], grad=UNUSUAL[kind](grad))


def test_kinds_that_differ():
    x, weight, grad = maps()
    for other in (torch.float64, torch.float16, torch.int64):
        refused('x|weight|grad', x=x.to(other))
        refused('weight|grad', weight=weight.to(other), grad=grad.to(other))


def test_symbolic_sizes():
    """``make_fx`` makes one graph for all sizes, in inference and training."""
    x, weight, grad = maps(32)

    def train(x, weight):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        out = large_kernel_dwconv2d(x, weight, padding=2)
        both = large_kernel_dwconv2d_pair(x, weight, weight)
        total = out.square().sum() + both[0].sum() + both[1].square().sum()
        return torch.autograd.grad(total, (x, weight))

    def infer(x, weight):
        return (large_kernel_dwconv2d(x, weight, padding=2),
                OPS.dwconv2d(x, weight, None, [2] * 4, ONE, 'auto'))

    for function in (infer, train):
        graph = make_fx(function, tracing_mode='symbolic')(x, weight)
        for size in (32, 41):
            given = torch.randn(2, 4, size, size + 3)
            for a, b in zip(graph(given, weight), function(given, weight), strict=True):
                assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


# -- memory that is not there ----------------------------------------------------------------------

def cut(tensor, bytes_left):
    tensor = tensor.clone(memory_format=torch.preserve_format)
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


def without_memory(kind, last, short):
    """Run in a process of its own, which a read of memory that is not there kills."""
    torch.set_num_threads(1)
    x, weight, grad = (t.to(kind) for t in maps(48))
    bias = torch.randn(4).to(kind)
    if last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    left = 2 if short else 0
    for backend in ('auto', 'fft', 'torch') + (('direct', ) if kind != torch.float64 else ()):
        for place in range(3):
            given = [x, weight, bias]
            large_kernel_dwconv2d(*given, padding=2)  # spectra are kept
            given[place] = cut(given[place], left)
            name = ('x', 'weight', 'bias')[place]
            for amp in (False, True):
                with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                    _raises(name, large_kernel_dwconv2d, *given, padding=2, backend=backend)
            _raises(name, OPS.dwconv2d, *given, [2] * 4, ONE, backend)
        # The very weight whose spectrum is kept.
        frozen = weight.clone()
        for _ in range(2):
            large_kernel_dwconv2d(x, frozen, padding=2, backend=backend)
        frozen.untyped_storage().resize_(left)
        _raises('weight', large_kernel_dwconv2d, x, frozen, padding=2, backend=backend)
        # Between the forward and the backward pass, and the gradient itself.
        for place in range(2):
            leaves = [t.clone().requires_grad_() for t in (x, weight)]
            out = large_kernel_dwconv2d(*leaves, padding=2, backend='fft')
            leaves[place].untyped_storage().resize_(left)
            _raises(('x', 'weight')[place], torch.autograd.grad, out, leaves, grad)
        _raises('grad', OPS.dwconv2d_weight_grad, x, cut(grad, left), [5, 5], [2] * 4, ONE, backend)
        _raises('grad', OPS.dwconv2d_backward, x, [cut(grad, left)], [weight], [2] * 4, ONE,
                backend)
        gapped = torch.randn(2, 4, 60, 60).to(kind)[:, :, 3:51, 3:51]
        gapped.untyped_storage().resize_(gapped.untyped_storage().nbytes() // 2)
        _raises('x', large_kernel_dwconv2d, gapped, weight, padding=2, backend=backend)
    tiny = cut(torch.randn(1, 1, 3, 3), left)
    _raises('x', large_kernel_dwconv2d, tiny, torch.randn(1, 1, 3, 3), padding=1)


def _raises(name, function, *args, **kwargs):
    with pytest.raises(RuntimeError, match=f'{name}.* needs .* holds'):
        function(*args, **kwargs)


@pytest.mark.parametrize('short', [False, True])
@pytest.mark.parametrize('last', [False, True])
def test_memory_that_is_freed_or_cut(last, short):
    code = (
        f'import importlib.util as u; s = u.spec_from_file_location("low", {__file__!r}); '
        'm = u.module_from_spec(s); s.loader.exec_module(m); import torch\n'
        'for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64):\n'
        f'    m.without_memory(kind, {last}, {short})')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tensors_that_share_memory_are_taken():
    x, weight, _ = maps()
    for given in (x[:1].expand(2, -1, -1, -1), x[:, :1].expand(-1, 4, -1, -1), x[..., 3:-2],
                  x.transpose(2, 3), x[:0]):
        out = large_kernel_dwconv2d(given, weight, padding=2, backend='torch')
        assert out.shape == given.shape
        assert explain(x, weight, padding=2).backend in ('fft', 'direct', 'torch')
