"""Types in configs as MMEngine takes them: classes in pure Python, module paths, names with scopes.

The tools find in each what they find behind bare names.
"""

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmreplk.commands import (
    arguments as cli,
    checks as preflight,
    evaluation,
    inference,
    shrink as reduce,
    train_options as options,
)
from mmreplk.config import edit
from mmreplk.config.types import class_of
from mmreplk.deploy import merge as deploy, onnx as onnx_export
from mmreplk.training import cpu_fallbacks as cpu, fsdp, harden

WHERE = dict(
    RepLKNet='mmreplk.models', EncoderDecoder='mmseg.models', SegDataPreProcessor='mmseg.models',
    FCNHead='mmseg.models', CrossEntropyLoss='mmseg.models.losses', SyncBatchNorm='torch.nn',
    LoadImageFromFile='mmcv.transforms', LoadAnnotations='mmseg.datasets',
    PackSegInputs='mmseg.datasets', BaseSegDataset='mmseg.datasets',
    InfiniteSampler='mmengine.dataset', DefaultSampler='mmengine.dataset',
    IoUMetric='mmseg.evaluation', OptimWrapper='mmengine.optim', SGD='torch.optim',
    IterBasedTrainLoop='mmengine.runner', ValLoop='mmengine.runner', TestLoop='mmengine.runner',
    LoggerHook='mmengine.hooks', CheckpointHook='mmengine.hooks',
    PretrainedInit='mmengine.model')
ALIASES = dict(SyncBN='SyncBatchNorm', Pretrained='PretrainedInit')
FORMS = ('bare', 'classes', 'dumped', 'scoped')


def _source(node, write) -> str:
    if isinstance(node, dict):
        items = (f'{key!r}: {write(value) if key == "type" else _source(value, write)}'
                 for key, value in node.items())
        return '{' + ', '.join(items) + '}'
    if isinstance(node, (list, tuple)):
        return '[' + ', '.join(_source(item, write) for item in node) + ']'
    return repr(node)


def _as_class(kind: str) -> str:
    kind = kind.rpartition('.')[2]
    return ALIASES.get(kind, kind)


def _with_scope(kind: str) -> str:
    scope = WHERE.get(kind, '').partition('.')[0]
    return repr(f'{scope}.{kind}' if scope in ('mmseg', 'mmengine') else kind)


def _write(bench, form: str) -> str:
    """Write the bench's config in another form; returns the file's name."""
    if form == 'bare':
        return 'tiny.py'
    plain = Config.fromfile(str(bench.folder / 'tiny.py')).to_dict()
    if form == 'scoped':
        lines = [f'{key} = {_source(value, _with_scope)}' for key, value in plain.items()]
    else:
        plain.pop('custom_imports')
        imports = [f'from {module} import {name}' for name, module in WHERE.items()]
        base = {key: plain.pop(key) for key in ('optim_wrapper', 'default_hooks', 'train_cfg')}
        for file, content in (('base.py', base), ('classes.py', plain)):
            lines = [*imports, *(f'{key} = {_source(value, _as_class)}'
                                 for key, value in content.items())]
            if file == 'classes.py':
                lines = ['from mmengine.config import read_base',
                         'with read_base():', '    from .base import *', *lines]
            (bench.folder / file).write_text('\n'.join(lines) + '\n')
        if form == 'dumped':
            Config.fromfile(str(bench.folder / 'classes.py')).dump(bench.folder / 'dumped.py')
        return f'{form}.py'
    (bench.folder / f'{form}.py').write_text('\n'.join(lines) + '\n')
    return f'{form}.py'


@pytest.mark.parametrize('form', FORMS)
def test_every_option_finds_its_part(seg_bench, form, monkeypatch, randomize_norms):
    bench = seg_bench
    monkeypatch.chdir(bench.folder)
    path = str(bench.folder / _write(bench, form))

    def read():
        return cli.read_config(path)

    cfg = read()
    preflight.check_mergeable(cfg)
    onnx_export.check_exportable(cfg, 'model')
    preflight.check_data(cfg, ('train', 'val', 'test'))
    options.use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    cpu.use_cpu_modules(cfg, distributed=False)
    assert cfg.optim_wrapper.type == 'mmreplk.CpuAmpOptimWrapper'
    evaluation.use_out(cfg, 'out')
    assert cfg.test_evaluator[0].output_dir == 'out'
    harden(cfg)
    assert cfg.default_hooks.checkpoint.type == 'mmreplk.SafeCheckpointHook'
    assert cfg.default_hooks.logger.type == 'mmreplk.SafeLoggerHook'
    assert edit.replace_sync_bn(cfg.model) == 2
    inference.use_known_names(cfg)
    names = [step['type'] for step in cfg.test_dataloader.dataset.pipeline]
    assert names[0] == 'LoadImageFromFile'
    assert len(names) == 2
    cfg = read()
    cfg.model.backbone.arch['channels'] = [8, 16]
    cfg.model.decode_head.in_channels = 16
    reduce.reduce_model(cfg, 2)
    assert cfg.model.backbone.arch.channels == [4, 8]
    cfg = read()
    model, _ = deploy.load_model(cfg, None)
    assert deploy.prepare_image(cfg, model, None)['inputs'].shape[1] == 3


@pytest.mark.parametrize('form', FORMS)
def test_weights_to_start_from_are_checked(seg_bench, form, monkeypatch):
    bench = seg_bench
    monkeypatch.chdir(bench.folder)
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], init_cfg=dict(type='Pretrained', checkpoint='no'))
    bench.write(model=model)
    cfg = cli.read_config(str(bench.folder / _write(bench, form)))
    with pytest.raises(FileNotFoundError, match='model.backbone.init_cfg.checkpoint'):
        preflight.check_pretrained(cfg, preflight.check_backbone(cfg))
    assert deploy.deploy_config(cfg).model.backbone.init_cfg is None


@pytest.mark.parametrize('kind', ['FSDPStrategy', 'mmengine.FSDPStrategy',
                                  'mmengine._strategy.FSDPStrategy'])
def test_sharding(kind):
    assert fsdp.is_sharded(Config(dict(strategy=dict(type=kind))))
    found = class_of(dict(type=kind), 'STRATEGIES')
    assert fsdp.is_sharded(Config(dict(strategy=dict(type=found))))
    assert not fsdp.is_sharded(Config(dict(strategy=dict(type='mmengine.DDPStrategy'))))


def test_the_scope_may_be_left_to_the_classes(seg_bench):
    path = seg_bench.folder / _write(seg_bench, 'classes')
    path.write_text(path.read_text().replace("default_scope = 'mmseg'", 'default_scope = None'))
    assert cli.read_config(str(path)).default_scope == 'mmseg'


# Classes are the farthest from names; what reads a config meets all forms in the tests above.
@pytest.mark.sample(by=lambda form: {form} & {'classes'})
@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_every_tool(seg_bench, form):
    bench = seg_bench
    config, checkpoint = _write(bench, form), bench.checkpoint()
    cv2.imwrite(str(bench.folder / 'a.png'), np.full((40, 60, 3), 90, np.uint8))
    assert 'bfloat16' in bench.done('train.py', config, '--amp', '--work-dir', 'amp').text
    bench.done('train.py', config, '--reduce', 2, '--work-dir', 'reduced')
    bench.done('test.py', config, checkpoint, '--out', 'png', '--work-dir', 'test')
    assert len(bench.files('png', '*.png')) == 5
    bench.done('test.py', config, checkpoint, '--tta', '--work-dir', 'tta')
    bench.done('reparameterize.py', config, checkpoint, 'merged.pth')
    bench.done('test.py', 'merged.py', 'merged.pth', '--work-dir', 'test_merged')
    bench.done('export_onnx.py', config, checkpoint, 'net.onnx')
    bench.done('image_demo.py', 'a.png', config, checkpoint, '--out', 'drawn.png')
    bench.done('get_flops.py', config, '--shape', 64, 64)
    bench.done('erf.py', config, checkpoint, '--images', 'data', '--num-images', 2, '--size', 64,
               '--out', 'erf')
