"""Spectra of unchanged weights are kept in inference, and never used for other weights."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import LargeKernelDWConv2d, dispatch, large_kernel_dwconv2d
from mmreplk.ops.cpu import backend as cpu, kept_spectra, kernels as native
from mmreplk.ops.torch_fft import backend as torch_fft, conv as fft

LIMIT = kept_spectra.KeptSpectra.GEOMETRIES


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """A keeper of its own for each test, empty at first."""
    keeper = kept_spectra.KeptSpectra()
    for module in (cpu, torch_fft):
        monkeypatch.setattr(module, 'kept_spectra', keeper)
    return keeper


@pytest.fixture(params=['compiled', 'torch.fft'])
def made(request, monkeypatch):
    """Weak references to the spectra made so far, by the kernels and by what stands in for them."""
    spectra = []

    def watch(module, name):
        transform = getattr(module, name)

        def watched(*args, **keywords):
            out = transform(*args, **keywords)
            spectra.append(weakref.ref(out))
            return out

        monkeypatch.setattr(module, name, watched)

    if request.param == 'compiled':
        if not native.available()[0]:
            pytest.skip(native.available()[1])
        watch(native, 'fft_spectrum')
    else:
        monkeypatch.setattr(native, 'available', lambda: (False, 'left out by the test'))
        watch(fft, 'spectrum_of_weight')
    # The choices made with and without the kernels differ.
    dispatch.forget()
    yield spectra
    dispatch.forget()


def layer(channels=3, kernel=13, **keywords):
    return LargeKernelDWConv2d(channels, channels, kernel, padding=kernel // 2, groups=channels,
                               backend='fft', **keywords).requires_grad_(False)


def check(compare, conv, x, dtype=torch.float32):
    """The output is that of the weights as they are now."""
    with torch.no_grad():
        bias = None if conv.bias is None else conv.bias.double()
        right = F.conv2d(x.double(), conv.weight.double(), bias, 1, conv.padding, 1, conv.groups)
        out = conv(x)
    compare(out, right, dtype)


# -- kept ------------------------------------------------------------------------------------------

def test_made_once_for_weights_that_stay(compare, made):
    conv = layer()
    for _ in range(3):
        check(compare, conv, torch.randn(1, 3, 24, 23))
    assert len(made) == 1


def test_one_for_any_batch_layout_and_bias(compare, made):
    conv = layer()
    for batch in (1, 3, 1):
        for last in (False, True):
            x = torch.randn(batch, 3, 24, 23)
            check(compare, conv,
                  x.contiguous(memory_format=torch.channels_last) if last else x)
    conv.bias = None
    check(compare, conv, torch.randn(2, 3, 24, 23))
    assert len(made) == 1


def test_kept_where_the_input_alone_needs_a_gradient(made):
    """A frozen layer in a network that is trained."""
    conv = layer()
    for _ in range(3):
        x = torch.randn(1, 3, 24, 23, requires_grad=True)
        before = len(made)
        out = conv(x)
        forward = len(made) - before
        out.sum().backward()
    assert forward == 0
    gc.collect()
    # The turned weights of the backward pass are new each time: theirs are gone.
    assert [spectrum() is not None for spectrum in made].count(True) == 1


def test_kept_in_inference_mode(compare, made):
    with torch.inference_mode():
        conv = layer()
        x = torch.randn(1, 3, 24, 23)
        conv(x)
        check(compare, conv, x)
        assert len(made) == 1
        conv.weight.mul_(2)
        check(compare, conv, x)
        assert len(made) == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_weights_of_16_bits(compare, made, dtype):
    conv = layer().to(dtype)
    for _ in range(3):
        check(compare, conv, torch.randn(1, 3, 24, 23).to(dtype), dtype)
    assert len(made) == 1
    with torch.no_grad():
        # The last bit of one weight.
        conv.weight.view(torch.int16)[1, 0, 4, 5] ^= 1
    check(compare, conv, torch.randn(1, 3, 24, 23).to(dtype), dtype)
    assert len(made) == 2


def test_weights_that_are_not_contiguous(compare, made):
    conv = layer()
    conv.weight.data = torch.randn(3, 1, 13, 26)[..., ::2]
    for _ in range(2):
        check(compare, conv, torch.randn(1, 3, 24, 23))
    assert len(made) == 1
    conv.weight.data[2, 0, 12, 12] += 1
    check(compare, conv, torch.randn(1, 3, 24, 23))
    assert len(made) == 2


# -- changed ---------------------------------------------------------------------------------------

def step(conv):
    """One step of an optimizer."""
    conv.requires_grad_(True)
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    with torch.enable_grad():
        F.conv2d(torch.randn(1, 3, 24, 23), conv.weight, conv.bias, 1, 6, 1, 3).sum().backward()
    optimizer.step()
    conv.requires_grad_(False)


def one_weight(conv):
    conv.weight[1, 0, 12, 0] += 1e-3


def through_numpy(conv):
    conv.weight.numpy()[2, 0, 3, 4] = 5


def through_a_view(conv):
    conv.weight.detach().view(-1)[17] = 5


def in_shared_memory(conv):
    conv.weight.untyped_storage().copy_(torch.randn(3, 1, 13, 13).untyped_storage())


def load(conv):
    conv.load_state_dict(layer().state_dict())


def assign(conv):
    conv.load_state_dict(layer().state_dict(), assign=True)


def new_data(conv):
    conv.weight.data = torch.randn(3, 1, 13, 13)


def new_parameter(conv):
    conv.weight = torch.nn.Parameter(torch.randn(3, 1, 13, 13), requires_grad=False)


CHANGES = [
    lambda conv: conv.weight.mul_(2), lambda conv: conv.weight.data.mul_(2),
    lambda conv: torch.nn.init.normal_(conv.weight), lambda conv: conv.weight.swapaxes_(2, 3),
    step, one_weight, through_numpy, through_a_view, in_shared_memory, load, assign, new_data,
    new_parameter]
NAMES = ['in place', 'data', 'init', 'transposed in place', *(c.__name__ for c in CHANGES[4:])]


@pytest.mark.parametrize('change', CHANGES, ids=NAMES)
def test_changed_weights_are_transformed_anew(compare, made, change):
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    check(compare, conv, x)
    with torch.no_grad():
        change(conv)
    check(compare, conv, x)
    assert len(made) == 2
    check(compare, conv, x)
    assert len(made) == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_changed_dtype(compare, made, dtype):
    """Values that both dtypes can hold, so that nothing but the dtype tells."""
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    conv.weight.data = torch.randint(-8, 8, (3, 1, 13, 13)).float()
    for to in (torch.float32, dtype, torch.float32):
        conv.to(to)
        check(compare, conv, x.to(to), to)


def test_changed_number_of_channels(compare, made):
    conv, x = layer(bias=False), torch.randn(1, 3, 24, 23)
    check(compare, conv, x)
    conv.weight.data = torch.randn(6, 1, 13, 13)
    check(compare, conv, x)
    conv.weight.data = conv.weight.data[:3].clone()
    check(compare, conv, x)


def test_other_geometries_of_one_weight(compare, made):
    """Sizes, paddings and dilations that need other spectra get them."""
    weight = torch.randn(3, 1, 7, 7)
    for _ in range(2):
        for size, padding, dilation in (((24, 23), 3, 1), ((23, 24), 3, 1), ((24, 23), (3, 6), 1),
                                        ((24, 23), 6, 2), ((24, 23), (6, 3), (2, 1))):
            x = torch.randn(1, 3, *size)
            out = large_kernel_dwconv2d(x, weight, None, 1, padding, dilation, backend='fft')
            right = F.conv2d(x.double(), weight.double(), None, 1, padding, dilation, 3)
            compare(out, right, torch.float32)
    # More at the top, or at the bottom: the sizes are the same.
    for sides in ([2, 4, 3, 3], [4, 2, 3, 3], [3, 3, 2, 4], [3, 3, 4, 2]):
        out = torch.ops.mmreplk.dwconv2d(x, weight, None, sides, [1, 1], 'fft')
        padded = F.pad(x.double(), (*sides[2:], *sides[:2]))
        compare(out, F.conv2d(padded, weight.double(), groups=3), torch.float32)


def test_weights_with_nan(compare, made, kept):
    """They spread as in a direct sum, and do not pile up."""
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    check(compare, conv, x)
    once = kept.bytes()
    with torch.no_grad():
        # The tap in the middle meets the map at every output: whether a NaN meets the padding, too,
        # is answered in different ways by PyTorch's own convolutions.
        conv.weight[1, 0, 6, 6] = torch.nan
    for _ in range(3):
        check(compare, conv, x)
    assert kept.bytes() == once
    with torch.no_grad():
        conv.weight[1, 0, 6, 6] = 1
    check(compare, conv, x)


def test_weights_that_come_and_go(compare, made):
    """A new tensor may get the address of a dead one."""
    x = torch.randn(1, 2, 16, 15)
    addresses = set()
    for _ in range(300):
        weight = torch.randn(2, 1, 9, 9)
        addresses.add((id(weight), weight.data_ptr()))
        right = F.conv2d(x.double(), weight.double(), None, 1, 4, 1, 2)
        compare(large_kernel_dwconv2d(x, weight, None, 1, 4, backend='fft'), right, torch.float32)
        del weight
    assert len(addresses) < 300


# -- given up --------------------------------------------------------------------------------------

def test_freed_with_the_weight(made, kept):
    conv = layer()
    with torch.no_grad():
        conv(torch.randn(1, 3, 24, 23))
        conv(torch.randn(1, 3, 25, 23))
    assert kept.bytes() > 2 * conv.weight.nbytes
    assert all(spectrum() is not None for spectrum in made)
    weight = weakref.ref(conv.weight)
    del conv
    gc.collect()
    assert weight() is None
    assert all(spectrum() is None for spectrum in made)
    assert kept.bytes() == 0


def test_changed_weights_free_the_old_spectrum(made):
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    with torch.no_grad():
        conv(x)
        conv.weight.mul_(2)
        conv(x)
    gc.collect()
    assert [spectrum() is not None for spectrum in made] == [False, True]


def test_memory_is_bounded(compare, made, kept):
    """However many sizes come by, a weight holds no more than a few spectra: the latest."""
    conv = layer()
    sizes = range(14, 14 + 3 * LIMIT)
    for size in sizes:
        check(compare, conv, torch.randn(1, 3, size, 20))
    gc.collect()
    assert [spectrum() is not None for spectrum in made] == (
        [False] * 2 * LIMIT + [True] * LIMIT)
    held = sum(s().numel() * s().element_size() for s in made[-LIMIT:])
    assert kept.bytes() == held + LIMIT * conv.weight.nbytes


def test_a_few_sizes_in_turn_are_made_once(made):
    conv = layer()
    with torch.no_grad():
        for _ in range(3):
            for size in range(20, 20 + LIMIT):
                conv(torch.randn(1, 3, size, 20))
    assert len(made) == LIMIT


@pytest.mark.parametrize('input_too', [False, True])
def test_not_kept_while_weights_are_trained(made, kept, input_too):
    """They change with every step: a copy and a spectrum of each would be held for nothing."""
    conv = layer().requires_grad_(True)
    x = torch.randn(1, 3, 24, 23, requires_grad=input_too)
    out = conv(x)
    assert kept.bytes() == 0
    out.sum().backward()
    gc.collect()
    assert kept.bytes() == 0
    assert not any(spectrum() is not None for spectrum in made)


def test_copies_and_pickles_carry_none(compare, made):
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    check(compare, conv, x)
    small = len(pickle.dumps(layer()))
    assert len(pickle.dumps(conv)) == small
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.mul_(3)
    check(compare, twin, x)
    check(compare, conv, x)
    assert len(made) == 2


# -- threads ---------------------------------------------------------------------------------------

def test_several_threads(made, kept):
    """Layers of their own and shared ones, with more sizes than are kept."""
    convs = [layer(channels) for channels in (2, 3)]
    jobs = [(conv, torch.randn(1, conv.in_channels, size, 18))
            for conv in convs for size in range(16, 17 + LIMIT)]
    with torch.no_grad():
        right = [conv(x) for conv, x in jobs]
    problems = []

    def work(start):
        try:
            own = layer(2)
            with torch.no_grad():
                for i in range(start, start + 3 * len(jobs)):
                    conv, x = jobs[i * 7 % len(jobs)]
                    if not torch.equal(conv(x), right[i * 7 % len(jobs)]):
                        problems.append(i)
                    own.weight.add_(1)
                    out = own(jobs[0][1])
                    want = F.conv2d(jobs[0][1], own.weight, own.bias, 1, 6, 1, 2)
                    if not torch.allclose(out, want, rtol=1e-3, atol=1e-2):
                        problems.append(-i)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(start, )) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    gc.collect()
    assert sum(spectrum() is not None for spectrum in made) == len(convs) * LIMIT


def test_two_threads_ask_for_the_first_time(made, monkeypatch):
    """Both are inside the transform at once: each gets a right answer and one spectrum is left."""
    conv, x = layer(), torch.randn(1, 3, 24, 23)
    module, name = ((native, 'fft_spectrum') if native.available()[0]
                    else (fft, 'spectrum_of_weight'))
    transform, both = getattr(module, name), threading.Barrier(2, timeout=20)

    def slow(*args):
        both.wait()
        return transform(*args)

    monkeypatch.setattr(module, name, slow)
    outs = []

    def work():
        with torch.no_grad():
            outs.append(conv(x))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*outs)
    gc.collect()
    assert [spectrum() is not None for spectrum in made].count(True) == 1
