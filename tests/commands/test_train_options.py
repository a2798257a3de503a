"""The options of train.py and test.py, as changes to the config."""

import argparse

import pytest
from mmengine.config import Config

from mmreplk.commands import arguments as cli, evaluation, train_options as options


def config(tmp_path, **entries) -> Config:
    path = tmp_path / 'tiny.py'
    entries = dict(model=dict(type='M'), **entries)
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in entries.items()))
    return Config.fromfile(str(path))


def test_amp(tmp_path):
    cfg = config(tmp_path, optim_wrapper=dict(optimizer=dict(type='SGD')))
    options.use_amp(cfg)
    assert cfg.optim_wrapper == dict(
        type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='SGD'))
    cfg.optim_wrapper.type = 'OptimWrapperDict'
    with pytest.raises(ValueError, match='--amp.*OptimWrapperDict'):
        options.use_amp(cfg)
    with pytest.raises(ValueError, match='no optim_wrapper'):
        options.use_amp(config(tmp_path))
    cfg = config(tmp_path, optim_wrapper=dict(dtype='bfloat16', optimizer=dict(type='SGD')))
    options.use_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('AmpOptimWrapper', 'bfloat16')


def test_auto_scale_lr(tmp_path):
    cfg = config(tmp_path, auto_scale_lr=dict(enable=False, base_batch_size=16))
    options.use_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    # MMEngine compares with one accumulated step's batch. Asking twice changes nothing.
    cfg = config(tmp_path, auto_scale_lr=dict(enable=False, base_batch_size=2048),
                 optim_wrapper=dict(accumulative_counts=4))
    for _ in range(2):
        options.use_auto_scale_lr(cfg)
        assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=512)
    for entries in ({}, dict(auto_scale_lr=dict(enable=True))):
        with pytest.raises(ValueError, match='auto_scale_lr.base_batch_size=N'):
            options.use_auto_scale_lr(config(tmp_path, **entries))


def test_resume(tmp_path):
    cfg = config(tmp_path, load_from='a.pth')
    options.use_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, None)
    options.use_resume(cfg, 'b.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'b.pth')


def prepare(path, **given):
    args = dict(config=str(path), cfg_options=None, work_dir=None, launcher='none', local_rank=0)
    return cli.prepare(argparse.Namespace(**args | given))


def test_work_dir_priority(tmp_path):
    config(tmp_path)
    path = tmp_path / 'tiny.py'
    assert prepare(path).work_dir == 'work_dirs/tiny'
    config(tmp_path, work_dir='from_config')
    assert prepare(path).work_dir == 'from_config'
    assert prepare(path, work_dir='from_cli').work_dir == 'from_cli'


def test_packaged_config_names_its_work_dir():
    cfg = prepare('mmreplk::upernet_replknet31b_ade20k.py')
    assert cfg.work_dir == 'work_dirs/upernet_replknet31b_ade20k'


def test_local_rank_argument(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '5')
    monkeypatch.delenv('LOCAL_RANK')
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    cli.add_common_arguments(parser)
    config(tmp_path)
    for index, option in enumerate(('--local-rank', '--local_rank')):
        monkeypatch.delenv('LOCAL_RANK', raising=False)
        cli.prepare(parser.parse_args([str(tmp_path / 'tiny.py'), f'{option}={index + 2}']))
        assert cli.os.environ['LOCAL_RANK'] == str(index + 2)


def test_configs_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='CONFIG: no such file'):
        cli.read_config(str(tmp_path / 'gone.py'))
    bad = tmp_path / 'bad.py'
    bad.write_text('model = dict(\n')
    with pytest.raises(ValueError, match='CONFIG .*bad.py: SyntaxError'):
        cli.read_config(str(bad))
    bad.write_text('x = 1\n')
    with pytest.raises(ValueError, match='has no model'):
        cli.read_config(str(bad))
    with pytest.raises(ValueError, match='^options: TypeError'):
        cli.read_config(str(bad), {'x.0.y': 1})
    with pytest.raises(ValueError, match='mmreplk has no config .*upernet'):
        cli.read_config('mmreplk::gone.py')


def test_loader_defaults(tmp_path):
    loaders = dict(
        train_dataloader=dict(num_workers=2), val_dataloader=None,
        test_dataloader=dict(num_workers=0, persistent_workers=True))
    cfg = config(tmp_path, default_scope='mmpretrain', **loaders)
    cli.set_loader_defaults(cfg)
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
    assert cfg.train_dataloader.persistent_workers is True
    assert cfg.test_dataloader.persistent_workers is False
    cfg = config(tmp_path, default_scope='mmseg', **loaders)
    cli.set_loader_defaults(cfg)
    assert cfg.train_dataloader == dict(num_workers=2)
    assert cfg.test_dataloader.persistent_workers is False


@pytest.mark.parametrize(('local_rank', 'waits'), [(0, []), (1, [cli.OTHERS_WAIT])])
def test_errors_are_one_message(capsys, monkeypatch, local_rank, waits):
    slept = []
    monkeypatch.setattr(cli.time, 'sleep', slept.append)
    monkeypatch.setenv('LOCAL_RANK', str(local_rank))
    parser = argparse.ArgumentParser('train.py')
    with pytest.raises(SystemExit) as end, cli.clear_errors(parser, 'pytorch'):
        raise ValueError('what and how')
    assert end.value.code == 2
    assert capsys.readouterr().err == 'train.py: error: what and how\n'
    assert slept == waits


def test_out_of_segmentors(tmp_path):
    for evaluator in (dict(type='IoUMetric'), [dict(type='Other'), dict(type='IoUMetric')],
                      dict(type='Evaluator', metrics=dict(type='IoUMetric'))):
        cfg = config(tmp_path, default_scope='mmseg', test_evaluator=evaluator)
        evaluation.use_out(cfg, 'folder')
        assert evaluation.metrics_of(cfg)[-1] == dict(
            type='IoUMetric', output_dir='folder', keep_results=True)
    with pytest.raises(ValueError, match='name a folder'):
        evaluation.use_out(cfg, 'x.pkl')
    with pytest.raises(ValueError, match='no metric'):
        evaluation.use_out(config(tmp_path, default_scope='mmseg', test_evaluator=[]), 'folder')


@pytest.mark.parametrize(('scope', 'kind'), [('mmdet', 'DumpDetResults'),
                                             ('mmpretrain', 'DumpResults')])
def test_out_of_detectors_and_classifiers(tmp_path, scope, kind):
    cfg = config(tmp_path, default_scope=scope, test_evaluator=dict(type='A'))
    with pytest.raises(ValueError, match='ends in .pkl'):
        evaluation.use_out(cfg, 'folder')
    evaluation.use_out(cfg, 'x.pkl')
    assert cfg.test_evaluator == [dict(type='A'), dict(type=kind, out_file_path='x.pkl')]


def test_show_dir_keeps_other_backends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg = config(tmp_path, default_scope='mmseg',
                 default_hooks=dict(visualization=dict(type='SegVisualizationHook', interval=50)),
                 visualizer=dict(type='SegLocalVisualizer', vis_backends=backends))
    evaluation.use_show_dir(cfg, 'show')
    assert 'custom_hooks' not in cfg
    assert cfg.visualizer.vis_backends == [
        dict(type='LocalVisBackend', img_save_dir=str(tmp_path / 'show')), backends[1]]
    assert cfg.default_hooks.visualization == dict(
        type='SegVisualizationHook', interval=1, draw=True)
    evaluation.use_show_dir(cfg, 'show', processes=2)
    assert cfg.custom_hooks == [dict(type='mmreplk.DrawOnEveryProcessHook')]


def test_tta_of_the_config_and_default(tmp_path):
    pipeline = [dict(type='Load'), dict(type='Pack', meta_keys=('img_id', ))]
    loader = dict(dataset=dict(type='Wrap', dataset=dict(type='D', pipeline=pipeline)))
    cfg = config(tmp_path, default_scope='mmdet', test_dataloader=loader)
    evaluation.use_tta(cfg)
    steps = cfg.test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in steps] == ['Load', 'TestTimeAug']
    assert [flip.prob for flip in steps[1].transforms[0]] == [0.0, 1.0]
    assert steps[1].transforms[1][0].meta_keys == ('img_id', 'flip', 'flip_direction')
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'M')

    cfg = config(tmp_path, default_scope='mmseg', test_dataloader=loader,
                 tta_model=dict(type='Mine'), tta_pipeline=[dict(type='Own')])
    evaluation.use_tta(cfg)
    assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='Own')]
    assert (cfg.model.type, cfg.model.module.type) == ('Mine', 'M')


def test_tta_that_cannot_be(tmp_path):
    loader = dict(dataset=dict(pipeline=[dict(type='Pack')]))
    cfg = config(tmp_path, default_scope='mmdet', test_dataloader=loader)
    cfg.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(ValueError, match='--tta: MMDetection merges boxes only'):
        evaluation.use_tta(cfg)
    cfg = config(tmp_path, default_scope='mmpretrain', test_dataloader=loader)
    evaluation.use_tta(cfg)
    with pytest.raises(ValueError, match='--show-dir.*Leave --tta out'):
        evaluation.use_show_dir(cfg, 'show')
