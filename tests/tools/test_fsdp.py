"""Sharded training over two processes, against the same training without sharding."""

import pytest
import torch

from mmreplk.config.files import config_root


def train(bench, name, *options):
    work_dir = name.removesuffix('.py')
    return bench.done('dist_train.sh', name, 2, '--work-dir', work_dir, *options)


@pytest.mark.slow
def test_two_processes_train_and_resume_as_without_fsdp(seg_bench):
    # From the same weights: the runners may draw from the generator in another order before.
    bench, states = seg_bench, {}
    bench.write(
        'plain.py',
        load_from=bench.checkpoint(),
        model=bench.config['model'] | dict(
            backbone=bench.config['model']['backbone'] | dict(with_cp=True)),
        custom_hooks=[dict(type='RecipeSamplesHook')],
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1, fused=True),
            accumulative_counts=2,
            constructor='RepLKNetLayerDecayConstructor',
            paramwise_cfg=dict(layer_decay=0.7, norm_decay_mult=0.0)))
    (bench.folder / 'sharded.py').write_text(
        f"_base_ = ['./plain.py', '{config_root()}/_base_/fsdp.py']\n")
    for name in ('plain', 'sharded'):
        train(bench, f'{name}.py')
        run = train(bench, f'{name}.py', '--resume', '--cfg-options', 'train_cfg.max_iters=4')
        assert 'Iter(train) [3/4]' in run.text
        assert 'Iter(train) [1/4]' not in run.text
        saved = torch.load(bench.folder / name / 'iter_4.pth', weights_only=False)
        states[name] = saved['state_dict']
        assert saved['meta']['samples_seen'] == 4 * 2 * 2
    assert states['plain'].keys() == states['sharded'].keys()
    for key, value in states['plain'].items():
        torch.testing.assert_close(states['sharded'][key], value, msg=key)

    # A whole checkpoint: it loads without FSDP, and tests of the sharded config do so.
    run = bench.done('test.py', 'sharded.py', 'sharded/iter_4.pth', '--work-dir', 'tested')
    assert 'FSDP is for training; the test runs without it.' in run.text
    assert run.metric('mIoU') > 0
