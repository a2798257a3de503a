import pytest

pytest.importorskip('timm')
import mmreplk.timm  # noqa: E402, F401  # registers the variants

NARROW = ['replknet_31b_narrow', 'replknet_31l_narrow', 'replknet_xl_narrow']
FULL = ['replknet_31b', 'replknet_31l', 'replknet_xl']


@pytest.fixture(params=NARROW)
def narrow(request):
    """The name of each narrow variant."""
    return request.param


@pytest.fixture(params=FULL)
def full(request):
    """The name of each published variant."""
    return request.param
