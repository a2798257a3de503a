"""The quick start as a newcomer runs it, and the ADE20K config at its full size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


def run(script, *args, cwd):
    done = subprocess.run([sys.executable, REPO / 'tools' / script, *map(str, args)], cwd=cwd,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_quickstart_learns(tmp_path):
    text = run('quickstart.py', '--root', tmp_path, cwd=tmp_path)
    miou = float(re.search(r'mIoU on 80 held-out scenes: ([\d.]+)', text)[1])
    baseline = float(re.search(r'everywhere: +([\d.]+)', text)[1])
    assert miou >= 70
    assert baseline < 5
    assert (tmp_path / 'run_001' / 'predictions.png').is_file()


@pytest.mark.slow
def test_ade20k_config_trains_at_full_size(tmp_path):
    """Two iterations of UperNet-RepLKNet-31B with crops of 512, on scenes with ADE20K labels."""
    run('dataset/draw_scenes.py', tmp_path / 'ade', '--num-train', 4, '--num-val', 1, '--size', 512,
        cwd=tmp_path)
    options = [
        'train_dataloader.dataset.data_root=ade', 'val_dataloader.dataset.data_root=ade',
        'train_dataloader.batch_size=2', 'train_dataloader.num_workers=1',
        'model.backbone.init_cfg=None', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
        'randomness.seed=0',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2',
        # The full optimizer state would be written too: 1.4 GB for nothing.
        'default_hooks.checkpoint.save_optimizer=False', 'default_hooks.checkpoint.save_best=None',
    ]
    text = run('train.py', 'mmreplk::upernet_replknet31b_ade20k.py', '--work-dir', 'work',
               '--cfg-options', *options, cwd=tmp_path)
    losses = [float(loss) for loss in re.findall(r' loss: ([\d.]+)', text)]
    # Log-uniform over 150 classes is 5.01; the auxiliary head adds 0.4 of that. The seed
    # matters: where a picture is scaled down below the crop, the ignored border counts in the mean.
    assert len(losses) == 2
    assert all(3 < loss < 12 for loss in losses)
    assert re.search(r'mIoU: [\d.]+', text)
    weights = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)['state_dict']
    assert weights['backbone.stages.0.blocks.0.large_kernel.lkb_origin.conv.weight'].shape == (
        128, 1, 31, 31)
