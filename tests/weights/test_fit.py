"""Comparing weights with those of a network."""

import torch
from torch import nn

from mmreplk import RepLKNet
from mmreplk.weights.fit import Misfit, compare


def network() -> nn.Module:
    with torch.device('meta'):
        return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))


def test_fits():
    own = network()
    state = own.state_dict()
    state.pop('1.num_batches_tracked')  # as in old files
    for each in own, own.state_dict():
        misfit = compare(each, state)
        assert not misfit
        assert misfit == Misfit([], [], [])
        assert misfit.describe() == ''


def test_misfits_of_each_kind():
    own = network()
    state = {**own.state_dict(), '0.weight': torch.empty(4, 6, 1, 1, device='meta'), 'a': None,
             'b': None, 'c': None, 'd': None}
    state.pop('1.bias')
    for each in own, own.state_dict():
        misfit = compare(each, state)
        assert misfit
        assert misfit.missing == ['1.bias']
        assert set(misfit.unexpected) <= set('abcd')
        assert misfit.shapes == ['0.weight (4, 6, 1, 1) instead of (4, 3, 1, 1)']
    assert misfit.describe() == (
        '1 missing (1.bias); 4 unexpected (a, b, c, ...); '
        '1 of other shape (0.weight (4, 6, 1, 1) instead of (4, 3, 1, 1))')


def test_modules_that_rename_what_they_read(tiny_arch):
    """MMPretrain's name for the final norm is no misfit of a network, but is of its state dict."""
    with torch.device('meta'):
        own = RepLKNet(tiny_arch, final_norm=True)
    last = f'stages.{own.num_stages - 1}.norm.'
    state = {name.replace('norm.', last) if name.startswith('norm.') else name: value
             for name, value in own.state_dict().items()}
    assert not compare(own, state)
    assert compare(own.state_dict(), state)
