"""The operator on any geometry, layout, dtype and magnitude, against a direct sum in float64."""

import torch
from attack_cases import attack, bounds, cases, direct, parts, run, within
from hypothesis import strategies as st

from mmreplk.ops import large_kernel_dwconv2d


def check(case, fill=None):
    *tensors, rooms = parts(case, fill)
    before = [room.clone() for room in rooms]
    actual = run(case, *tensors)
    assert all(t.dtype == case.dtype for t in actual if t is not None)
    for room, kept in zip(rooms, before, strict=True):
        assert torch.equal(room.view(torch.uint8), kept.view(torch.uint8)), 'inputs were written'
    within(actual, direct(case, *tensors), bounds(case, *tensors))


@attack(400, case=cases())
def test_any_geometry_layout_and_dtype(case):
    """Forward and all gradients; nothing beside a view is read (NaN would tell) or written."""
    check(case)


@attack(200, case=cases(backends=('fft', 'direct'), dtypes=(torch.float32, torch.float64)),
        powers=st.tuples(*[st.integers(-30, 30)] * 2), spread=st.sampled_from([0, 0, 3, 10]))
def test_any_magnitude(case, powers, spread):
    """Inputs, weights and gradients from 1e-30 to 1e30, alike or of all sizes at once."""
    # No product overflows.
    powers = dict(x=powers[0], weight=max(-30 - powers[0], min(powers[1], 30 - powers[0])))
    powers['grad'] = -(min(powers.values()) + max(powers.values())) // 2
    powers['bias'] = powers['x'] + powers['weight']

    def fill(normal, what, generator):
        many = torch.rand(normal.shape, generator=generator, dtype=torch.float64)
        return normal * 10.0**(powers[what] + spread * (many - 1))

    check(case, fill)


@attack(150, case=cases(dtypes=(torch.float32, torch.float16)))
def test_denormals(case):
    """Below the smallest normal number, neither lost nor raised."""
    tiny = torch.finfo(case.dtype).tiny

    def fill(normal, what, generator):
        return normal * tiny / 8 if what in ('x', 'grad', 'bias') else normal

    check(case, fill)


@attack(200, case=cases(symmetric=True), stride=st.sampled_from([1, 2, (1, 3)]),
        relu=st.booleans())
def test_public_function(case, stride, relu):
    """With strides and an activation, in inference; those backends refuse by name go to `auto`."""
    x, weight, bias, *_ = parts(case)
    padding, activation = case.padding[::2], 'relu' if relu else None
    arguments = x, weight, bias, stride, padding, case.dilation
    backend = case.backend if stride == 1 else 'auto'
    if stride != 1 and case.dtype.itemsize == 2:
        return  # see the note on 16 bits in attack_cases.py
    with torch.no_grad():
        out = large_kernel_dwconv2d(*arguments, activation=activation, backend=backend)
    dense = case._replace(backend=backend)
    steps = (stride, stride) if isinstance(stride, int) else stride
    every = (slice(None), slice(None), slice(None, None, steps[0]), slice(None, None, steps[1]))
    grad = x.new_zeros(case.batch, weight.shape[0], *case.out_size)
    right = direct(dense, x, weight, bias, grad).out[every]
    allowed = bounds(dense, x, weight, bias, grad).out[every]
    right = right.relu() if relu else right
    assert out.shape == right.shape
    assert bool(((out.double() - right).abs() <= allowed).all())
