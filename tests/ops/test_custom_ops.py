"""The operator inside PyTorch's machinery: dispatcher, compiler, exporters, transforms, CUDA."""

import contextlib
import io
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from mmreplk.ops import LargeKernelDWConv2d, explain, large_kernel_dwconv2d

OPS = torch.ops.mmreplk
Dim = torch.export.Dim


def plain(x, weight, bias=None, stride=1, padding=0, dilation=1):
    """What has to come out."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[-3])


def wide(*tensors):
    """Leaves in float64 with the same values."""
    return [None if t is None else t.detach().double().requires_grad_(t.requires_grad)
            for t in tensors]


# -- torch.library ---------------------------------------------------------------------------------

# Shape of the input, kernel, multiplier, padding (top, bottom, left, right), dilation, bias.
SAMPLES = {
    'same': ((2, 3, 16, 17), (9, 7), 1, (4, 4, 3, 3), (1, 1), True),
    'no padding': ((1, 2, 14, 12), (5, 5), 1, (0, 0, 0, 0), (1, 1), False),
    'uneven': ((2, 2, 9, 8), (4, 6), 1, (1, 2, 3, 2), (1, 1), False),
    'multiplier': ((2, 3, 10, 9), (5, 3), 2, (2, 2, 1, 1), (1, 1), True),
    'dilation': ((1, 3, 15, 14), (5, 4), 1, (4, 4, 3, 3), (2, 3), True),
    'more padding than kernel': ((1, 2, 6, 7), (3, 3), 2, (5, 4, 3, 6), (1, 2), False),
    'kernel larger than the map': ((2, 2, 5, 6), (13, 15), 1, (6, 6, 7, 7), (1, 1), True),
    'empty batch': ((0, 2, 8, 8), (5, 5), 1, (2, 2, 2, 2), (1, 1), True),
}


def sample(name, dtype, last=False):
    """Arguments of both ops, all of which need gradients."""
    shape, kernel, multiplier, padding, dilation, has_bias = SAMPLES[name]

    def leaf(*size):
        tensor = torch.randn(size).to(dtype)
        if last and len(size) == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor.requires_grad_()

    x, weight = leaf(*shape), leaf(shape[1] * multiplier, 1, *kernel)
    bias = leaf(shape[1] * multiplier) if has_bias else None
    size = [n + sum(padding[2 * i:2 * i + 2]) - dilation[i] * (kernel[i] - 1)
            for i, n in enumerate(shape[2:])]
    grad = leaf(shape[0], shape[1] * multiplier, *size)
    return x, weight, bias, grad, list(padding), list(dilation)


@pytest.mark.parametrize(('name', 'dtype', 'last', 'backend'), [
    *((name, torch.float32, False, 'auto') for name in SAMPLES),
    ('same', torch.bfloat16, True, 'auto'), ('same', torch.float64, True, 'fft'),
    ('multiplier', torch.float16, False, 'fft'), ('uneven', torch.float32, True, 'direct?')])
def test_opcheck(opcheck, name, dtype, last, backend):
    x, weight, bias, grad, padding, dilation = sample(name, dtype, last)
    # opcheck compares traced with untraced runs, which may round differently where an input comes
    # in another layout.
    tolerance = dict(rtol=2e-2, atol=2e-2) if dtype.itemsize == 2 else dict(rtol=1e-4, atol=1e-4)
    for relu in (False, True):
        opcheck(
            OPS.dwconv2d, (x, weight, bias, padding, dilation, backend, False, relu), **tolerance)
    opcheck(OPS.dwconv2d_weight_grad, (x, grad, weight.shape[2:], padding, dilation, backend),
            **tolerance)


@pytest.mark.parametrize('name', SAMPLES)
def test_the_ops_themselves(compare, name):
    """Called by name, as a compiled graph does."""
    x, weight, bias, grad, padding, dilation = sample(name, torch.float32)
    top, bottom, left, right = padding
    a, b, c = wide(x, weight, bias)
    right_out = plain(F.pad(a, (left, right, top, bottom)), b, c, dilation=dilation)
    out = OPS.dwconv2d(x, weight, bias, padding, dilation, 'auto')
    compare(out.detach(), right_out.detach(), torch.float32)
    right_out.backward(grad.double())
    dw = OPS.dwconv2d_weight_grad(x, grad, weight.shape[2:], padding, dilation, 'auto')
    compare(dw.detach(), b.grad, torch.float32)


def test_shapes_without_data():
    """What fake tensors answer is what the kernels give: shape, dtype and strides."""
    for last in (False, True):
        x, weight, bias, grad, padding, dilation = sample('multiplier', torch.float16, last)
        real = OPS.dwconv2d(x, weight, bias, padding, dilation, 'auto')
        meta = OPS.dwconv2d(x.to('meta'), weight.to('meta'), bias.to('meta'), padding, dilation,
                            'auto')
        assert meta.device.type == 'meta'
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
    layer = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4, device='meta')
    assert layer(torch.empty(2, 4, 32, 30, device='meta')).shape == (2, 4, 32, 30)
    with pytest.raises(RuntimeError, match='taller than the padded input'):
        OPS.dwconv2d(x.to('meta'), torch.empty(3, 1, 99, 3, device='meta'), None, [0] * 4, [1, 1],
                     'auto')


# -- derivatives -----------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', ['auto', 'torch'])
@pytest.mark.parametrize(('multiplier', 'padding', 'dilation'), [
    (1, 'same', 1), (2, (3, 7), 1), (1, 4, (2, 1))])
def test_double_backward(compare, backend, multiplier, padding, dilation):
    """A gradient penalty, as in training with one."""
    x = torch.randn(2, 3, 20, 19, requires_grad=True)
    weight = torch.randn(3 * multiplier, 1, 7, 5, requires_grad=True)
    bias = torch.randn(3 * multiplier, requires_grad=True)
    results = []
    for inputs in ([x, weight, bias], wide(x, weight, bias)):
        function = large_kernel_dwconv2d if inputs[0] is x else plain
        keywords = dict(backend=backend) if inputs[0] is x else {}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # PyTorch warns of its copy for even kernels
            out = function(*inputs, 1, padding, dilation, **keywords)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        results.append((*first, *torch.autograd.grad(
            sum(g.square().mean() for g in first), inputs)))
    for actual, reference in zip(*results, strict=True):
        compare(actual.detach(), reference.detach(), torch.float32)


@pytest.mark.parametrize('dims', [(0, None), (None, 0), (0, 0), (1, 2)])
@pytest.mark.parametrize('with_bias', [False, True])
def test_vmap(compare, dims, with_bias):
    x = torch.randn(2, 3, 24, 23) if dims[0] is None else torch.randn(4, 2, 3, 24, 23)
    weight = torch.randn(6, 1, 9, 9) if dims[1] is None else torch.randn(4, 6, 1, 9, 9)
    x = x if not dims[0] else x.movedim(0, dims[0])
    weight = weight if not dims[1] else weight.movedim(0, dims[1])
    bias = torch.randn(4, 6) if with_bias else None
    dims = (*dims, 0 if with_bias else None)
    out = torch.vmap(lambda a, b, c: large_kernel_dwconv2d(a, b, c, 1, 4), dims)(x, weight, bias)
    right = torch.vmap(lambda a, b, c: plain(a, b, c, 1, 4), dims)(*wide(x, weight, bias))
    compare(out, right, torch.float32)


def loss(function, **keywords):
    return lambda x, weight, bias: function(x, weight, bias, 1, 4, **keywords).square().sum()


@pytest.mark.parametrize('backend', ['auto', 'fft', 'torch'])
def test_func_grad(compare, backend):
    arguments = torch.randn(2, 3, 24, 23), torch.randn(3, 1, 9, 9), torch.randn(3)
    grads = torch.func.grad(loss(large_kernel_dwconv2d, backend=backend), (0, 1, 2))(*arguments)
    right = torch.func.grad(loss(plain), (0, 1, 2))(*wide(*arguments))
    for actual, reference in zip(grads, right, strict=True):
        compare(actual, reference, torch.float32)


@pytest.mark.parametrize('backend', ['auto', 'torch'])
def test_per_sample_gradients(compare, backend):
    """A gradient of the weights for every image, as in differential privacy."""
    x, weight, bias = torch.randn(4, 3, 24, 23), torch.randn(3, 1, 9, 9), torch.randn(3)
    function = torch.func.grad(loss(large_kernel_dwconv2d, backend=backend), (1, 2))
    grads = torch.vmap(function, (0, None, None))(x, weight, bias)
    function = torch.func.grad(loss(plain), (1, 2))
    right = torch.vmap(function, (0, None, None))(*wide(x, weight, bias))
    for actual, reference in zip(grads, right, strict=True):
        compare(actual, reference, torch.float32)


@pytest.mark.parametrize('backend', ['auto', 'fft', 'torch'])
@pytest.mark.parametrize('how', ['func', 'dual', 'vectorized'])
def test_forward_mode(compare, backend, how):
    """A directional derivative; never a zero in place of one that was not implemented."""
    arguments = torch.randn(2, 3, 24, 23), torch.randn(3, 1, 9, 9), torch.randn(3)
    tangents = torch.randn(2, 3, 24, 23), torch.randn(3, 1, 9, 9), torch.randn(3)

    def function(*inputs):
        return large_kernel_dwconv2d(*inputs, 1, 4, backend=backend)

    def derivative():
        if how == 'func':
            return torch.func.jvp(function, arguments, tangents)[1]
        if how == 'vectorized':
            return torch.vmap(lambda *t: torch.func.jvp(function, arguments, t)[1])(
                *(t[None] for t in tangents))[0]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(
                function(*map(forward_ad.make_dual, arguments, tangents))).tangent

    try:
        tangent = derivative()
    except RuntimeError:
        # A backend asked for by name may have no derivative of this kind; auto takes what has.
        if backend == 'fft':
            return
        raise
    right = torch.func.jvp(lambda *inputs: plain(*inputs, 1, 4), tuple(wide(*arguments)),
                           tuple(wide(*tangents)))[1]
    assert tangent is not None
    compare(tangent, right, torch.float32)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_of_a_training_step(compare, dtype):
    """In bfloat16, with gradients in the parameters' own dtype."""
    layer = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)
    x = torch.randn(2, 4, 30, 31).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert out.dtype == torch.bfloat16
    assert x.grad.dtype == dtype
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    inputs = [t.detach().bfloat16().double().requires_grad_()
              for t in (x, layer.weight, layer.bias)]
    right = plain(*inputs, 1, 6)
    right.backward(grad.double())
    compare(out.detach(), right.detach(), torch.bfloat16)
    for actual, reference in zip((x, layer.weight, layer.bias), inputs, strict=True):
        compare(actual.grad, reference.grad, torch.bfloat16)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=False):
        assert layer(x.detach().float()).dtype == torch.float32


# -- torch.compile ---------------------------------------------------------------------------------

class Net(nn.Module):
    """A large kernel between others."""

    def __init__(self, **keywords):
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1)
        self.large = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4, **keywords)
        self.after = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.after(F.gelu(self.large(self.before(x))))


@pytest.fixture
def compiling():
    """``compiling(function)`` compiled afresh without graph breaks, and what counts its graphs."""
    torch._dynamo.reset()

    def compiled(function, backend='aot_eager'):
        counter = CompileCounterWithBackend(backend)
        return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter

    yield compiled
    torch._dynamo.reset()


def graph_targets(counter):
    return [node.target for graph in counter.graphs for node in graph.graph.nodes
            if node.op == 'call_function']


SIZES = [(2, 3, 32, 30), (3, 3, 20, 41), (2, 3, 9, 8), (4, 3, 50, 50)]


@pytest.mark.parametrize('backend', ['auto', 'fft', 'torch'])
def test_compiled_forward(compiling, backend):
    """One graph for all sizes, with our op inside, so that the choice falls when it runs."""
    net = Net(backend=backend).eval()
    compiled, counter = compiling(net)
    for size in SIZES:
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    assert (OPS.dwconv2d.default in graph_targets(counter)) == (backend != 'torch')


@pytest.mark.parametrize('backend', ['auto', 'fft'])
def test_compiled_training_step(compiling, backend):
    net = Net(backend=backend)
    compiled, counter = compiling(net)
    for size in SIZES:
        runs = []
        x = torch.randn(size)
        for function in (compiled, net):
            net.zero_grad()
            inputs = x.clone().requires_grad_()
            out = function(inputs)
            out.square().sum().backward()
            runs.append([out.detach(), inputs.grad, *(p.grad.clone() for p in net.parameters())])
        for actual, reference in zip(*runs, strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


ARGUMENTS = {
    'stride': dict(stride=2, padding=4), 'same': dict(padding='same', dilation=2),
    'valid': dict(padding='valid'), 'pairs': dict(padding=(4, 3), dilation=(1, 2)),
    'dilation': dict(padding=8, dilation=[2, 2]), 'unbatched': dict(padding=4)}


@pytest.mark.parametrize('case', ARGUMENTS)
def test_compiled_arguments(compiling, case):
    x, weight, bias = torch.randn(2, 3, 30, 29), torch.randn(6, 1, 9, 8), torch.randn(6)
    x = x[0] if case == 'unbatched' else x
    compiled, _ = compiling(lambda *a: large_kernel_dwconv2d(*a, **ARGUMENTS[case]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns of its copy for even kernels
        right = plain(*wide(x, weight, bias), **ARGUMENTS[case]).float()
    torch.testing.assert_close(compiled(x, weight, bias), right, rtol=1e-4, atol=1e-4)


def test_compiled_layouts_and_dtypes(compiling):
    layer = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)
    compiled, _ = compiling(layer)
    x = torch.randn(2, 4, 32, 30)
    for format in (torch.contiguous_format, torch.channels_last):
        out = compiled(x.to(memory_format=format))
        assert out.is_contiguous(memory_format=format)
        torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)
    assert compiled(x[:0]).shape == (0, 4, 32, 30)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), layer(x))
    layer.double()
    torch.testing.assert_close(compiled(x.double()), layer(x.double()))


# What the kernels must never see: they trust their arguments.
BAD = {
    'negative padding': dict(padding=-1), 'kernel too large': dict(kernel=49),
    'dtype of the weight': dict(weight=torch.float64),
    'dtype of the bias': dict(bias=torch.float64),
    'size of the bias': dict(biases=4), 'negative dilation': dict(dilation=-1),
    'no dilation': dict(dilation=0), 'three paddings': dict(padding=(1, 2, 3)),
    'word of the padding': dict(padding='full'), 'not depth-wise': dict(inputs=2)}


def bad_arguments(padding=4, dilation=1, kernel=9, inputs=1, weight=torch.float32,
                  bias=torch.float32, biases=3):
    return (torch.randn(2, 3, 30, 29), torch.randn(3, inputs, kernel, kernel).to(weight),
            torch.randn(biases).to(bias), 1, padding, dilation)


def print_bad_cases_that_are_served():
    """Run in a process of its own, which a kernel that gets such arguments may end."""
    for case, change in BAD.items():
        print('tried', case, flush=True)
        x, weight, bias, *rest = bad_arguments(**change)
        torch._dynamo.reset()
        function = torch.compile(
            lambda *a, rest=rest: large_kernel_dwconv2d(*a, *rest), backend='aot_eager')
        with contextlib.suppress(RuntimeError):
            function(x, weight, bias)
            print('served', case, flush=True)


def test_compiled_bad_input_raises():
    """As without the compiler; PyTorch wraps some of the errors in its own."""
    code = (f'import importlib.util as u; s = u.spec_from_file_location("here", {__file__!r}); '
            'm = u.module_from_spec(s); s.loader.exec_module(m); '
            'm.print_bad_cases_that_are_served()')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith('served')] == []
    assert done.returncode == 0, f'{lines[-1:]} ended the process: {done.stderr}'
    assert len(lines) == len(BAD)


def test_compiled_forced_backend_that_cannot_serve(compiling):
    compiled, _ = compiling(
        lambda a, b: large_kernel_dwconv2d(a, b, None, 1, 4, backend='triton'))
    with pytest.raises(RuntimeError, match="backend='triton' cannot serve.*is on the CPU"):
        compiled(torch.randn(2, 3, 30, 29), torch.randn(3, 1, 9, 9))


@pytest.mark.slow
def test_inductor(compiling):
    """Through PyTorch's code generator as well."""
    net = Net()
    compiled, _ = compiling(net, 'inductor')
    for size in SIZES[:2]:
        runs = []
        x = torch.randn(size)
        for function in (compiled, net):
            net.zero_grad()
            out = function(x)
            out.square().sum().backward()
            runs.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
        for actual, reference in zip(*runs, strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)


# -- export ----------------------------------------------------------------------------------------

DYNAMIC = dict(x={0: Dim('n'), 2: Dim('h'), 3: Dim('w')})


@pytest.mark.parametrize('strict', [False, True])
def test_export(strict, tmp_path):
    """A program for any size, which can be written, read and run."""
    net = Net().eval()
    program = torch.export.export(
        net, (torch.randn(SIZES[0]), ), dynamic_shapes=DYNAMIC, strict=strict)
    torch.export.save(program, tmp_path / 'net.pt2')
    program = torch.export.load(tmp_path / 'net.pt2')
    assert OPS.dwconv2d.default in [node.target for node in program.graph.nodes]
    module = program.module()
    for size in (*SIZES, (1, 3, 2, 3)):
        x = torch.randn(size)
        torch.testing.assert_close(module(x), net(x), rtol=1e-5, atol=1e-5)


def test_export_of_a_training_step():
    """Export decomposed to core operators keeps the op and stays differentiable."""
    net = Net()
    x = torch.randn(SIZES[0])
    program = torch.export.export(net, (x, ), dynamic_shapes=DYNAMIC).run_decompositions()
    module = program.module()
    module(x).square().sum().backward()
    net(x).square().sum().backward()
    grads = dict(module.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(grads[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)


def onnx_model(module, x, dynamo):
    """The bytes of the exported model."""
    onnx = pytest.importorskip('onnx')
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # both exporters warn of themselves
        if dynamo:
            pytest.importorskip('onnxscript')
            torch.onnx.export(module, (x, ), dynamo=True, dynamic_shapes=DYNAMIC,
                              verbose=False).save(buffer)
        else:
            axes = {0: 'n', 2: 'h', 3: 'w'}
            torch.onnx.export(module, (x, ), buffer, dynamo=False, input_names=['x'],
                              dynamic_axes=dict(x=axes))
    model = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(model)
    return model


class Many(nn.Module):
    """One layer of every kind, in a row."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(
            LargeKernelDWConv2d(4, groups=4, **{'out_channels': 4, **keywords}) for keywords in (
                dict(kernel_size=13, padding=6),
                dict(kernel_size=(31, 5), padding=(15, 2), backend='fft'),
                dict(kernel_size=13, padding=6, bias=False, backend='torch'),
                dict(kernel_size=7, padding=6, dilation=2),
                dict(kernel_size=9, padding='same'),
                dict(kernel_size=9, padding='valid'),
                dict(kernel_size=9, padding=4, stride=2, out_channels=8))))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(dynamo):
    """A graph for other runtimes holds plain convolutions, for any size, and the same numbers."""
    runtime = pytest.importorskip('onnxruntime')
    if dynamo and torch.__version__.startswith('2.5'):
        pytest.skip('the exporter of torch 2.5 does not decompose operators of others')
    net = Many().eval()
    model = onnx_model(net, torch.randn(2, 4, 33, 32), dynamo)
    nodes = list(model.graph.node)
    assert [node.op_type for node in nodes] == ['Conv'] * len(net.layers)
    assert [a.i for node in nodes for a in node.attribute if a.name == 'group'] == [4] * len(nodes)
    assert not any(node.domain for node in nodes)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider'])
    for size in ((2, 4, 33, 32), (1, 4, 40, 35)):
        x = torch.randn(size)
        out, = session.run(None, {'x': x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), net(x), rtol=1e-4, atol=1e-4)


def test_jit_trace():
    layer = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the sizes that the checks look at
        traced = torch.jit.trace(layer, torch.randn(2, 4, 32, 30))
    assert 'aten::_convolution' in str(traced.inlined_graph)
    x = torch.randn(1, 4, 50, 41)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-5)


# -- CUDA ------------------------------------------------------------------------------------------

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')


def on_gpu(dtype=torch.float16, batch=2, channels=8, size=40, kernel=13, device='cuda'):
    x = torch.randn(batch, channels, size, size, device=device).to(dtype).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, device=device).to(dtype).requires_grad_()
    bias = torch.randn(channels, device=device).to(dtype).requires_grad_()
    return x, weight, bias


@pytest.fixture
def exact_float32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@cuda
@pytest.mark.parametrize('backend', ['auto', 'triton', 'fft', 'torch'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('size', 'kernel'), [(40, 13), (14, 27), (56, 31), (7, 7)])
def test_cuda_forward_and_backward(compare, exact_float32, backend, dtype, size, kernel):
    for last in (False, True):
        x, weight, bias = on_gpu(dtype, size=size, kernel=kernel)
        x = x.detach().to(
            memory_format=torch.channels_last if last else torch.contiguous_format
        ).requires_grad_()
        out = large_kernel_dwconv2d(x, weight, bias, 1, kernel // 2, backend=backend)
        assert out.is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format)
        inputs = wide(x, weight, bias)
        right = plain(*inputs, 1, kernel // 2)
        grad = torch.randn_like(out)
        out.backward(grad)
        right.backward(grad.double())
        compare(out.detach(), right.detach(), dtype)
        for actual, reference in zip((x, weight, bias), inputs, strict=True):
            compare(actual.grad, reference.grad, dtype)


@cuda
def test_cuda_tf32_follows_the_switch(compare):
    """On where PyTorch allows it for convolutions, and never otherwise."""
    x, weight, bias = on_gpu(torch.float32)
    right = plain(*wide(x, weight, bias), 1, 6).detach()
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        compare(large_kernel_dwconv2d(x, weight, bias, 1, 6).detach(), right, torch.float32)
        torch.backends.cudnn.allow_tf32 = True
        compare(large_kernel_dwconv2d(x, weight, bias, 1, 6).detach(), right, torch.float16)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@cuda
@pytest.mark.parametrize('backend', ['auto', 'triton'])
def test_cuda_graph(compare, backend):
    x, weight, bias = on_gpu()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and tunes before the capture
            for _ in range(3):
                large_kernel_dwconv2d(x, weight, bias, 1, 6, backend=backend)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = large_kernel_dwconv2d(x, weight, bias, 1, 6, backend=backend)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            weight.copy_(torch.randn_like(weight))
            graph.replay()
            torch.cuda.synchronize()
            compare(out, plain(*wide(x, weight, bias), 1, 6).detach(), torch.float16)


@cuda
@pytest.mark.parametrize('backend', ['auto', 'triton', 'fft'])
def test_cuda_streams(compare, backend):
    """Work is queued on the caller's stream: behind what fills its input, before what reads it."""
    x, weight, bias = on_gpu()
    right = plain(*wide(x, weight, bias), 1, 6).detach()
    large_kernel_dwconv2d(x, weight, bias, 1, 6, backend=backend)
    torch.cuda.synchronize()
    outs = []
    streams = [torch.cuda.Stream() for _ in range(4)]
    for stream in streams:
        with torch.cuda.stream(stream), torch.no_grad():
            late = torch.full_like(x, torch.nan)
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            outs.append(large_kernel_dwconv2d(late, weight, bias, 1, 6, backend=backend).clone())
    torch.cuda.synchronize()
    for out in outs:
        compare(out, right, torch.float16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there are not two CUDA devices')
@pytest.mark.parametrize('backend', ['auto', 'triton'])
def test_cuda_devices(compare, backend):
    """On the device of the input, whichever is current."""
    for device in range(torch.cuda.device_count()):
        x, weight, bias = on_gpu(device=f'cuda:{device}')
        out = large_kernel_dwconv2d(x, weight, bias, 1, 6, backend=backend)
        assert out.device == x.device
        out.sum().backward()
        inputs = wide(x, weight, bias)
        right = plain(*inputs, 1, 6)
        right.sum().backward()
        compare(out.detach(), right.detach(), torch.float16)
        compare(weight.grad, inputs[1].grad, torch.float16)
    x, weight, _ = on_gpu(device='cuda:0')
    with pytest.raises(RuntimeError):
        large_kernel_dwconv2d(x, weight.to('cuda:1'), None, 1, 6)


@cuda
def test_cuda_opcheck(opcheck):
    x, weight, bias = on_gpu(torch.float32)
    sides, step = [6, 6, 6, 6], [1, 1]
    grad = torch.randn_like(x).requires_grad_()
    opcheck(OPS.dwconv2d, (x, weight, bias, sides, step, 'auto'), rtol=1e-2, atol=1e-2)
    opcheck(OPS.dwconv2d_weight_grad, (x, grad, [13, 13], sides, step, 'auto'), rtol=1e-2,
            atol=1e-2)


@cuda
def test_cuda_mixed_devices_raise(compiling):
    x, weight, _ = on_gpu()
    compiled, _ = compiling(large_kernel_dwconv2d)
    for arguments in ((x, weight.cpu()), (x.cpu(), weight)):
        for function in (large_kernel_dwconv2d, explain, compiled):
            with pytest.raises(RuntimeError):
                function(*arguments, None, 1, 6)


@cuda
def test_cuda_autocast(compare):
    layer = LargeKernelDWConv2d(8, 8, 13, padding=6, groups=8, device='cuda')
    x = torch.randn(2, 8, 40, 40, device='cuda')
    with torch.autocast('cuda', dtype=torch.float16):
        out = layer(x)
    assert out.dtype == torch.float16
    compare(out.detach(), plain(*wide(x, layer.weight, layer.bias), 1, 6).detach(), torch.float16)


@cuda
def test_cuda_compiled(compiling):
    net = Net().cuda()
    compiled, counter = compiling(net)
    for size in SIZES:
        x = torch.randn(size, device='cuda')
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-2, atol=1e-2)
    assert counter.frame_count == 1
