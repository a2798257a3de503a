"""The convolution of resized maps against resizing, concatenating and convolving in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from mmreplk.models.cpu_inference import resized_conv
from mmreplk.models.cpu_inference.resized_conv import conv2d_of_resized, serves

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason='this PyTorch has no sparse products of MKL, or no oneDNN')


def direct(maps, weight, size, align_corners):
    maps = [F.interpolate(m, size, mode='bilinear', align_corners=align_corners) for m in maps]
    return F.conv2d(torch.cat(maps, 1), weight, padding=[k // 2 for k in weight.shape[2:]])


def draw(sizes, channels, out_channels, kernel=(3, 3), batch=1):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, c, *s, generator=generator)
            for c, s in zip(channels, sizes, strict=True)]
    return maps, torch.randn(out_channels, sum(channels), *kernel, generator=generator)


side = st.integers(1, 9)
part = st.tuples(st.integers(1, 5), side, side)


@settings(max_examples=150, deadline=None)
@given(st.lists(part, min_size=1, max_size=4), st.tuples(st.integers(1, 24), st.integers(1, 24)),
       st.sampled_from([(1, 1), (3, 3), (5, 3), (1, 7)]), st.integers(1, 6), st.integers(1, 3),
       st.booleans())
def test_any_sizes(parts, size, kernel, out_channels, batch, align_corners):
    channels, sizes = [c for c, *_ in parts], [tuple(s) for _, *s in parts]
    maps, weight = draw(sizes, channels, out_channels, kernel, batch)
    out = conv2d_of_resized(maps, weight, size, align_corners)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = direct([m.double() for m in maps], weight.double(), size, align_corners)
    # Every output is a sum of so many products, each at most of this size.
    scale = sum(channels) * kernel[0] * kernel[1]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_sizes_of_upernet(layout):
    """As accurate as the direct way, up to what the order of sums makes out."""
    maps, weight = draw([(32, 48), (16, 24), (8, 12), (4, 6)], [64] * 4, 48, batch=2)
    maps = [m.contiguous(memory_format=layout) for m in maps]
    expected = direct([m.double() for m in maps], weight.double(), (32, 48), False)
    error = (conv2d_of_resized(maps, weight, (32, 48)) - expected).abs().max()
    assert error < 2e-6 * expected.abs().max()


def test_outputs_beyond_reach_stay_clear_of_nan():
    maps, weight = draw([(4, 4), (8, 8)], [3, 3], 2)
    maps[0][:, :, 0, 0] = float('nan')
    out = conv2d_of_resized(maps, weight, (8, 8))
    expected = direct(maps, weight, (8, 8), False)
    # F.interpolate multiplies some pixels by 0, which makes NaN of NaN too.
    assert not (out.isnan() & ~expected.isnan()).any()
    assert out[:, :, 0, 0].isnan().all()
    seen = ~expected.isnan()
    torch.testing.assert_close(out[seen], expected[seen], rtol=1e-4, atol=1e-4)


def test_the_matrices_are_kept_for_few_sizes():
    assert resized_conv._resizing.cache_info().maxsize == 16
    maps, weight = draw([(3, 3)], [2], 2)
    resized_conv._resizing.cache_clear()
    with torch.inference_mode():
        first = conv2d_of_resized(maps, weight, (7, 7))
    assert torch.equal(conv2d_of_resized(maps, weight, (7, 7)), first)
    assert resized_conv._resizing.cache_info().hits == 1


def test_where_it_serves():
    maps, weight = draw([(4, 4), (8, 8)], [3, 3], 2)
    assert serves(maps, weight)
    assert not serves(maps, weight.requires_grad_())
    with torch.no_grad():
        assert serves(maps, weight)
        assert not serves([m.bfloat16() for m in maps], weight)
        assert not serves([m.double() for m in maps], weight.double())
        assert not serves([m[:0] for m in maps], weight)
        assert not serves([m.to('meta') for m in maps], weight)
        with torch.autocast('cpu', torch.bfloat16):
            assert not serves(maps, weight)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not serves(maps, weight)


def test_what_reads_a_network_finds_a_convolution():
    found = []

    class Net(nn.Module):
        def forward(self, x, weight):
            found.append(serves([x], weight))
            return F.conv2d(x, weight)

    maps, weight = draw([(4, 4)], [3], 2)
    torch.jit.trace(Net(), (maps[0], weight), check_trace=False)
    assert found == [False]
