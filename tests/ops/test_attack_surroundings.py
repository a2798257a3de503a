"""What surrounds a call: the process's defaults, flush-to-zero, and storages that were freed.

None of them plays a part in the results, and memory that is not there is an error, never a crash.
"""

import contextlib

import pytest
import torch
from attack_cases import LAYOUTS, Case, attack, bounds, cases, direct, parts, run, within
from hypothesis import strategies as st

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d
from mmreplk.ops.cpu import kernels as native

OPS = torch.ops.mmreplk
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BACKENDS = ('auto', 'fft', 'fft') + ('direct', ) * native.available()[0]


@contextlib.contextmanager
def defaults(dtype, device):
    """Of the process, put back afterwards; a device of None is left alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    if device is not None:
        torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


@contextlib.contextmanager
def surrounded(flush, threads):
    """Flush-to-zero of this thread, and the number of threads, put back afterwards."""
    before = torch.get_num_threads()
    torch.set_flush_denormal(flush)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def same(found, wanted):
    """The same bits of the same kinds."""
    for a, b in zip(found, wanted, strict=True):
        if b is not None:
            assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
            assert torch.equal(a, b)


def public(case, x, weight, bias, frozen):
    """The function in inference, where it keeps spectra, and the layer, with its activation."""
    symmetric = case.padding[0] == case.padding[1] and case.padding[2] == case.padding[3]
    padding = case.padding[::2] if symmetric else 'valid'
    if not symmetric and min(s - d * (k - 1) for s, d, k in zip(
            case.size, case.dilation, case.kernel, strict=True)) < 1:
        return
    for _ in range(2):
        yield large_kernel_dwconv2d(x, frozen, bias, 1, padding, case.dilation,
                                    backend=case.backend)
    layer = LargeKernelDWConv2d(
        case.channels, len(weight), case.kernel, 1, padding, case.dilation, case.channels,
        bias is not None, device='meta', activation='relu', backend=case.backend)
    leaves = {'weight': weight} if bias is None else {'weight': weight, 'bias': bias}
    leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
    out = torch.func.functional_call(layer, leaves, x)
    yield out.detach()
    yield from torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))


@attack(40, case=cases(backends=(*BACKENDS, 'torch'), symmetric=True),
        default=st.sampled_from(FLOATS), device=st.sampled_from([None, 'cpu', 'meta']),
        first=st.booleans())
def test_defaults_of_the_process(case, default, device, first):
    """The same bits under any default dtype and device; also where the first call is under them."""
    if case.backend == 'torch' and case.dtype.itemsize == 2:
        case = case._replace(backend='auto')  # F.conv2d itself may crash, see cases()
    x, weight, bias, grad, _ = parts(case)

    def everything():
        return [*run(case, x, weight, bias, grad),
                *public(case, x, weight, bias, weight.clone(memory_format=torch.preserve_format))]

    expected = None if first else everything()
    with defaults(default, device):
        found = everything()
    same(found, everything() if first else expected)


@pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
@attack(25, case=cases(backends=('fft', 'direct'), longest=40, dtypes=(torch.float32, ) * 3 + (
        torch.float16, )), power=st.sampled_from([0, 0, -16, -19, -22, -30, -37, -38, -40]),
        threads=st.lists(st.integers(1, 5), min_size=2, max_size=4), batch=st.sampled_from([1, 4]))
def test_flush_to_zero(case, power, threads, batch):
    """Repeats for any number of threads, and the mode of the caller is the one it had."""
    # No bias: PyTorch sums its gradient, in worker threads that do not take the caller's mode.
    case = case._replace(batch=batch, channels=17, bias=False)

    def fill(normal, what, generator):
        return normal * 10.0 ** (power if what != 'bias' else 2 * power)

    x, weight, bias, grad, _ = parts(case, fill)
    denormal = torch.tensor([1e-40])
    for flush in (True, False):
        if flush and not torch.set_flush_denormal(True):
            continue  # a processor that cannot
        results = []
        for count in (1, *threads):
            with surrounded(flush, count):
                results.append(run(case, x, weight, bias, grad))
                kept = bool(denormal * 1 == 0)
            assert kept == flush
            same(results[-1], results[0])
        if power == 0:
            within(results[0], direct(case, x, weight, bias, grad),
                   bounds(case, x, weight, bias, grad))


@st.composite
def missing(draw):
    """What lacks its memory, how much is left of it, and by what call it is noticed."""
    call = draw(st.sampled_from(['op', 'function', 'layer', 'between', 'weight_grad', 'backward',
                                 'autograd', 'pair']))
    among = dict(op='x weight bias', function='x weight bias', layer='x weight bias',
                 between='x weight', weight_grad='x grad', backward='x weight grad',
                 autograd='grad', pair='x weight')[call].split()
    return call, draw(st.sampled_from(among)), draw(st.sampled_from([0, 0, 0.3, 0.9, 1]))


def shorten(tensor, share):
    """Keep a share of the bytes that the tensor reaches to, but never all of them."""
    last = 1 + sum((size - 1) * step for size, step in zip(
        tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last) * tensor.element_size()
    tensor.untyped_storage().resize_(min(int(share * needed), needed - 1))


@attack(80, case=cases(backends=(*BACKENDS, 'torch'), symmetric=True), what=missing())
def test_storage_that_was_freed_or_cut(case, what):
    """A RuntimeError, no crash and no garbage; and the next call is as right as the one before."""
    call, name, share = what
    if name == 'bias':
        case = case._replace(bias=True)
    if case.backend == 'torch' and case.dtype.itemsize == 2:
        case = case._replace(backend='auto')  # F.conv2d itself may crash, see cases()
    x, weight, bias, grad, _ = parts(case)
    before = run(case, x, weight, bias, grad)
    tensors = dict(zip(('x', 'weight', 'bias', 'grad'), parts(case)[:4], strict=True))
    use = calls(case, **tensors, other=weight)[call]
    use()  # which is right, and leaves a spectrum where that is kept
    shorten(tensors[name], share)
    with pytest.raises(RuntimeError, match='needs .* bytes, but its storage holds'):
        use()
    same(run(case, x, weight, bias, grad), before)


def calls(case, x, weight, bias, grad, other):
    """What uses the tensors, by the names of `missing`."""
    sides, padding, how = list(case.padding), case.padding[::2], (case.dilation, case.backend)
    leaves = [t.detach().requires_grad_() for t in (x, weight)]  # of the same storages
    out = OPS.dwconv2d(*leaves, bias, sides, *how)
    layer = LargeKernelDWConv2d(
        case.channels, len(weight), case.kernel, 1, padding, case.dilation, case.channels,
        bias is not None, device='meta', backend=case.backend)
    layer.weight = torch.nn.Parameter(weight)
    layer.bias = None if bias is None else torch.nn.Parameter(bias)

    def differentiate():
        torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return {
        'op': lambda: OPS.dwconv2d(x, weight, bias, sides, *how),
        'function': lambda: large_kernel_dwconv2d(
            x, weight, bias, 1, padding, case.dilation, backend=case.backend),
        'layer': lambda: layer(x),
        'between': differentiate,
        'autograd': differentiate,
        'weight_grad': lambda: OPS.dwconv2d_weight_grad(x, grad, case.kernel, sides, *how),
        'backward': lambda: OPS.dwconv2d_backward(x, [grad], [weight], sides, *how),
        'pair': lambda: OPS.dwconv2d_pair(x, weight, other, sides, sides, *how)}


@attack(30, layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(FLOATS), batch=st.integers(1, 3),
        channels=st.integers(1, 17), size=st.tuples(*[st.integers(1, 12)] * 2),
        share=st.sampled_from([0, 0.5, 1]), name=st.sampled_from(['x', 'weight']))
def test_freed_storage_of_small_maps(layout, dtype, batch, channels, size, share, name):
    """Which go to PyTorch at once."""
    case = Case(batch, channels, size, (1, 1), (0, ) * 4, (1, 1), 1, dtype, (layout, 'dense'),
                'auto', False, 0)
    x, weight, *_ = parts(case)
    shorten(x if name == 'x' else weight, share)
    with pytest.raises(RuntimeError, match='needs .* bytes, but its storage holds'):
        large_kernel_dwconv2d(x, weight)
