"""The classes that deployment gives to blocks: what they keep, and when they are put in place."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

from mmreplk import RepLKNet
from mmreplk.models import deployed
from mmreplk.models.blocks import ConvFFN, RepLKBlock
from mmreplk.models.deployed import DeployedConvFFN, DeployedRepLKBlock
from mmreplk.models.reparam import merge_kernels
from mmreplk.ops import large_kernel_dwconv2d

BLOCKS = (RepLKBlock, ConvFFN, DeployedRepLKBlock, DeployedConvFFN)


def network(tiny_arch, randomize_norms, **options):
    torch.manual_seed(0)
    return randomize_norms(RepLKNet(tiny_arch, drop_path_rate=0.0, **options)).double().eval()


def blocks(model):
    return [type(module) for module in model.modules() if isinstance(module, (RepLKBlock, ConvFFN))]


@torch.no_grad()
def test_deployment_alone_puts_them_in_place(tiny_arch):
    model, x = RepLKNet(tiny_arch).eval(), torch.randn(1, 3, 64, 64)
    with mock.patch.object(deployed, 'large_kernel_dwconv2d',
                           side_effect=large_kernel_dwconv2d) as fused:
        assert blocks(model) == [RepLKBlock, ConvFFN] * 5
        merge_kernels(model)
        expected = model(x)
        assert blocks(model) == [RepLKBlock, ConvFFN] * 5
        assert fused.call_count == 0
        model.switch_to_deploy()
        found = model(x)
        assert blocks(model) == [DeployedRepLKBlock, DeployedConvFFN] * 5
        assert fused.call_count == 5
    assert type(model) is RepLKNet
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('with_cp', [True, 'large_kernel', 'ffn'])
def test_recomputing(tiny_arch, randomize_norms, with_cp):
    """Of a deployed network that is trained: the blocks named run twice, and nothing changes."""
    plain = network(tiny_arch, randomize_norms)
    plain.switch_to_deploy()
    model = network(tiny_arch, randomize_norms, with_cp=with_cp)
    model.switch_to_deploy()
    calls, x = [], torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.register_forward_pre_hook(lambda module, args: calls.append(type(module)))
    for trained in (plain, model):
        sum(out.square().mean() for out in trained.train()(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert calls.count(DeployedRepLKBlock) == (5 if with_cp == 'ffn' else 10)
    assert calls.count(DeployedConvFFN) == (5 if with_cp == 'large_kernel' else 10)


class Named(RepLKBlock):
    """A class of its own, without a forward of its own."""


@torch.no_grad()
def test_classes_of_others_stay(tiny_arch, randomize_norms):
    model, x = network(tiny_arch, randomize_norms), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    model.stages[0].blocks[0].__class__ = Named
    model.switch_to_deploy()
    assert blocks(model)[:2] == [Named, DeployedConvFFN]
    for a, b in zip(model(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('block', 'name'), [(0, 'prelkb_bn'), (1, 'preffn_bn')])
@torch.no_grad()
def test_a_norm_put_back_folds_again(tiny_arch, randomize_norms, block, name):
    model, x = network(tiny_arch, randomize_norms), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model.switch_to_deploy()
    setattr(model.stages[0].blocks[block], name, randomize_norms(nn.BatchNorm2d(8)).double().eval())
    assert not model.deploy
    expected = model(x)
    model.switch_to_deploy()
    assert model.deploy
    for a, b in zip(model(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_copies_and_the_compiler(tiny_arch):
    model, x = RepLKNet(tiny_arch, deploy=True).eval(), torch.randn(1, 3, 64, 64)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert blocks(other) == blocks(model)
        assert all(map(torch.equal, other(x), expected))
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for a, b in zip(compiled(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_subclass_computes_channels_last_too(tiny_arch):
    """In inference; and its own forward gets what it is given."""
    class Watched(RepLKNet):
        def forward(self, x):
            return super().forward(x)

    model = Watched(tiny_arch, deploy=True).eval()
    layouts = []
    model.stem[1].register_forward_hook(lambda module, args, out: layouts.append(
        out.is_contiguous(memory_format=torch.channels_last)))
    x = torch.randn(1, 3, 64, 64)
    outs = model(x)
    with torch.no_grad():
        fast = model(x)
    assert layouts == [False, True]
    assert all(out.is_contiguous() for out in (*outs, *fast))


@torch.no_grad()
def test_compiled_once(tiny_arch, randomize_norms):
    """torch.compile finds one graph without breaks, and another call of that shape keeps to it."""
    model = randomize_norms(RepLKNet(tiny_arch)).eval()
    model.switch_to_deploy()
    torch.compiler.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            x = torch.randn(1, 3, 64, 64)
            for given, wanted in zip(compiled(x), model(x), strict=True):
                torch.testing.assert_close(given, wanted)
        with pytest.raises(Exception, match='size mismatch'):  # the setting acts
            compiled(torch.randn(1, 3, 96, 64))
