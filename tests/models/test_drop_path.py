import pytest
import torch

from mmreplk.models.drop_path import DropPath


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_whole_images_at_the_rate_and_the_mean_kept(rate):
    x = torch.rand(20000, 2, 1, 3) + 1
    out = DropPath(rate)(x)
    kept = out[:, 0, 0, 0] != 0
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.02)
    assert not out[~kept].any()
    torch.testing.assert_close(out[kept], x[kept] / (1 - rate))


@pytest.mark.parametrize('rate', [0., 0.3])
def test_the_identity_where_nothing_is_to_be_dropped(rate):
    x = torch.rand(4, 2, 3, 3)
    assert DropPath(rate).eval()(x) is x
    assert (DropPath(rate)(x) is x) == (rate == 0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_images_as_mmcvs_layer(dtype):
    bricks = pytest.importorskip('mmcv.cnn.bricks')
    x = torch.rand(64, 3, 2, 2).to(dtype)
    outs = []
    for layer in (DropPath(0.4), bricks.DropPath(0.4)):
        torch.manual_seed(3)
        outs.append(layer(x))
    assert torch.equal(*outs)
