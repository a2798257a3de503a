"""A network trained with the operator learns as it does with plain convolutions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmreplk import RepLKNet
from mmreplk.ops import LargeKernelDWConv2d

STEPS = 200
ARCH = dict(large_kernel_sizes=[31, 29, 27, 13], layers=[1, 1, 1, 1], channels=[8, 12, 16, 20],
            small_kernel=5, dw_ratio=1, ffn_ratio=2)


def plain(net):
    """A copy whose large kernels are `nn.Conv2d` with the same weights."""
    net = copy.deepcopy(net)
    replaced = 0
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LargeKernelDWConv2d):
                conv = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size,
                                 padding=child.padding, groups=child.groups, bias=False)
                conv.load_state_dict(child.state_dict())
                setattr(module, name, conv.to(child.weight.dtype))
                replaced += 1
    assert replaced >= sum(ARCH['layers'])
    return net


def batches(dtype):
    """`STEPS` batches of four classes of stripes, told apart by width and direction."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(64.)
    for _ in range(STEPS):
        labels = torch.randint(4, (8, ), generator=generator)
        phase = 6.3 * torch.rand(8, 1, 1, generator=generator)
        width = torch.where(labels % 2 == 0, 0.4, 0.55)[:, None, None]
        wave = torch.where((labels < 2)[:, None, None], place[:, None], place[None, :])
        images = torch.sin(wave * width + phase)[:, None].repeat(1, 3, 1, 1)
        images = images + 0.3 * torch.randn(images.shape, generator=generator)
        yield images.to(dtype), labels


def loss_of(net, images, labels):
    return F.cross_entropy(net(images)[-1].mean((2, 3))[:, :4], labels)


def losses(net, dtype, other=None):
    """The loss of each step of training `net`, and `other`'s with the weights of that step."""
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    net.train()
    curve, others = [], []
    for images, labels in batches(dtype):
        if other is not None:
            other.load_state_dict(net.state_dict())
            with torch.no_grad():
                others.append(loss_of(other.train(), images, labels).item())
        loss = loss_of(net, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return torch.tensor(curve), torch.tensor(others)


@pytest.fixture
def pair(request):
    torch.manual_seed(0)
    ours = RepLKNet(ARCH, drop_path_rate=0.0).to(request.param)
    return ours, plain(ours), request.param


@pytest.mark.slow
@pytest.mark.parametrize('pair', [torch.float64], indirect=True, ids=['float64'])
def test_same_loss_curve(pair):
    ours, theirs, dtype = pair
    ours, theirs = losses(ours, dtype)[0], losses(theirs, dtype)[0]
    assert theirs[-40:].mean() < 0.7 * theirs[:40].mean()  # it learns
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('pair', [torch.float32], indirect=True, ids=['float32'])
def test_same_loss_at_every_step(pair):
    # In exact arithmetic many gradients are zero here (the scale or shift of a norm that another
    # norm follows). AdamW divides their rounding errors by their own size, so that any two float32
    # runs part within ten steps. Compared is therefore each step at the weights of one run.
    ours, theirs, dtype = pair
    ours, theirs = losses(ours, dtype, theirs)
    assert ours[-40:].mean() < 0.7 * ours[:40].mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
