"""Recomputed blocks (``with_cp``) under what training does to them: errors, two passes, compiling.
"""

import pytest
import torch

from mmreplk import RepLKNet

ARCH = dict(large_kernel_sizes=[5], layers=[1], channels=[6], small_kernel=3)


def network(with_cp=True):
    torch.manual_seed(0)
    return RepLKNet(ARCH, drop_path_rate=0.0, with_cp=with_cp).train()


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('interrupted', [RuntimeError, KeyboardInterrupt])
def test_an_error_that_is_kept_leaves_other_graphs_alone(interrupted):
    """As an error of memory that a program catches, or that a notebook keeps."""
    model, runs = network(), []

    def fail(module, given, out):
        runs.append(module)
        raise interrupted('no memory')

    handle = model.stages[0].blocks[1].register_forward_hook(fail)
    with pytest.raises(interrupted, match='no memory') as kept:
        model(images())
    handle.remove()
    assert len(runs) == 1
    weight = torch.tensor([2.0], requires_grad=True)
    grad, = torch.autograd.grad((weight * weight).exp().sum(), weight)
    assert torch.allclose(grad, 4 * torch.exp(torch.tensor([4.0])))
    loss = sum(out.square().mean() for out in model(images()))
    plain = network(False)
    for _ in range(2):  # the run that failed counted up to the failure
        expected = sum(out.square().mean() for out in plain(images()))
    for a, b in zip(torch.autograd.grad(loss, list(model.parameters())),
                    torch.autograd.grad(expected, list(plain.parameters())), strict=True):
        assert torch.equal(a, b)
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize('with_cp', [True, 'large_kernel', 'ffn'])
def test_two_backward_passes_over_one_graph(with_cp):
    model, plain = network(with_cp), network(False)
    found = []
    for each in (model, plain):
        outs = each(images())
        weights = list(each.parameters())
        found.append([
            *torch.autograd.grad(outs[0].square().mean(), weights, retain_graph=True),
            *torch.autograd.grad(outs[0].sin().mean(), weights)])
    assert all(map(torch.equal, *found))
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled(backend):
    model, plain = network(), network(False)
    for each in (torch.compile(model, backend=backend), plain):
        sum(out.square().mean() for out in each(images())).backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
