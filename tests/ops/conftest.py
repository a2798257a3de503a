"""The one table of tolerances of the operator, and how its results are compared."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

# pytest's import mode leaves out what the tests of test_attack_*.py share, attack_cases.py.
sys.path.insert(0, str(Path(__file__).parent))

# By dtype: the largest error allowed, as a share of the reference's root mean square, and as a
# share of each value; the two are added up. 16-bit outputs are rounded. Direct sums of normal
# numbers in float32 have erred by 0.82e-5 of the root mean square for 31 x 31 kernels on 512 x 512
# maps and by 1.14e-5 for 51 x 51, for which the README promises 2e-5.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


def compare(actual, reference, dtype, times=1):
    """Assert that a result is the float64 reference's, within `times` the tolerance."""
    assert actual.shape == reference.shape
    assert torch.equal(torch.isfinite(actual), torch.isfinite(reference))
    reference = torch.nan_to_num(reference, 0.0, 0.0, 0.0)
    of_all, of_each = TOLERANCE[dtype]
    scale = reference.square().mean().sqrt() if reference.numel() else reference.new_tensor(0.0)
    allowed = times * (of_all * scale + of_each * reference.abs()) + torch.finfo(torch.float64).tiny
    error = (torch.nan_to_num(actual.double(), 0.0, 0.0, 0.0) - reference).abs()
    assert (error <= allowed).all(), f'{(error / allowed).max():.2f} times the tolerance'


@pytest.fixture(name='compare', scope='session')
def _compare():
    return compare


@pytest.fixture(scope='session')
def opcheck():
    """``torch.library.opcheck`` with tolerances, where it takes them."""
    if 'rtol' in inspect.signature(torch.library.opcheck).parameters:
        return torch.library.opcheck

    def without_tolerances(op, args, rtol=None, atol=None):
        # That of torch 2.5 compares traced with untraced runs to nearly the last bit: left out.
        torch.library.opcheck(op, args, test_utils=(
            'test_schema', 'test_autograd_registration', 'test_faketensor'))

    return without_tolerances
