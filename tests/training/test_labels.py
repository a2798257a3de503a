"""Which labels a run can do with: what MMSegmentation's heads train with is allowed."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from PIL import Image

from mmreplk.commands.data_checks import check_data
from mmreplk.training.guarded_dataset import GuardedDataset, SampleError
from mmreplk.training.labels import ignored_by, label_rules

CE = dict(type='CrossEntropyLoss')
BCE = dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True)


def head(**options) -> dict:
    return dict(dict(type='FCNHead', in_channels=4, in_index=0, channels=4, num_convs=0,
                     concat_input=False, num_classes=3, loss_decode=CE), **options)


def config(*heads, auxiliary=None, **options) -> Config:
    heads = list(heads) if len(heads) > 1 else heads[0]
    return Config(dict(default_scope='mmseg', model=dict(
        decode_head=heads, **(dict(auxiliary_head=auxiliary) if auxiliary else {})), **options))


def allowed(cfg: Config, label: int, phase: str = 'train') -> bool:
    labels = np.array([[0, label]])
    return not any(rule.wrong(labels).size for rule in label_rules(cfg, phase))


def trains(cfg: Config, label: int) -> bool:
    """Whether the heads, as MMSegmentation builds them, compute a finite loss."""
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, 0, 0] = label
    sample = SegDataSample(gt_sem_seg=PixelData(data=target))
    parts = [cfg.model.decode_head, cfg.model.get('auxiliary_head') or []]
    parts = [item for part in parts for item in (part if isinstance(part, list) else [part])]
    try:
        with DefaultScope.overwrite_default_scope('mmseg'):
            for part in parts:
                built = MODELS.build(part)
                loss = built.loss_by_feat(torch.randn(1, built.out_channels, 4, 4), [sample])
                assert all(torch.isfinite(value).all() for value in loss.values())
    except (AssertionError, IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize('parts', [
    [head()],
    [head(ignore_index=254)],
    [head(ignore_index=254, loss_decode=dict(CE, avg_non_ignore=True))],
    [head(ignore_index=7, loss_decode=[CE, dict(BCE, loss_name='loss_b')])],
    [head(loss_decode=BCE)],
    [head(ignore_index=254, loss_decode=BCE)],
    [head(num_classes=1, out_channels=1, loss_decode=BCE)],
    [head(num_classes=2, out_channels=1, loss_decode=BCE, ignore_index=254)],
    [head(loss_decode=dict(type='DiceLoss', use_sigmoid=False))],
    [head(ignore_index=254), head(ignore_index=255)],
    [head(ignore_index=254), head(ignore_index=254)],
])
@pytest.mark.parametrize('label', [-1, 1, 2, 3, 7, 254, 255])
def test_as_the_losses_have_it(parts, label):
    cfg = config(*parts)
    assert allowed(cfg, label) == trains(cfg, label)
    if len(parts) == 2:
        assert allowed(config(parts[0], auxiliary=parts[1]), label) == trains(cfg, label)


def test_labels_that_would_count_as_another_class():
    loss = dict(type='TverskyLoss', ignore_index=254)
    cfg = config(head(loss_decode=loss))
    assert [allowed(cfg, label) for label in (2, 3, 254)] == [True, False, True]


def test_losses_that_cannot_be_run_here():
    """The focal loss is for GPUs alone in MMSegmentation; the other one for heads of its own."""
    focal = config(head(loss_decode=dict(type='FocalLoss'), ignore_index=254))
    assert [allowed(focal, label) for label in (2, 3, 4, 254, 255)] == [
        True, True, False, True, False]
    own = config(head(loss_decode=dict(type='OhemCrossEntropy', ignore_label=254)))
    assert [allowed(own, label) for label in (2, 3, 254, 255)] == [True, False, True, False]


def test_own_losses_are_unknown():
    class Own(torch.nn.Module):
        pass

    assert allowed(config(head(loss_decode=dict(type=Own))), 77)
    # Makes its labels itself, of borders of the classes.
    assert allowed(config(head(num_classes=9), auxiliary=dict(type='STDCHead', num_classes=2)), 8)


def test_evaluation_takes_what_any_part_ignores():
    cfg = config(head(ignore_index=250), val_evaluator=dict(type='IoUMetric', ignore_index=254))
    assert [allowed(cfg, label, 'val') for label in (250, 253, 254, 255)] == [
        True, False, True, True]
    assert not allowed(cfg, 254, 'test')
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    assert allowed(cfg, 250, 'test')
    assert not allowed(cfg, 3, 'test')


def nested(dataset: dict, wrappers: str) -> dict:
    for wrapper in wrappers:
        dataset = dict(
            r=dict(type='RepeatDataset', times=2, dataset=dataset),
            c=dict(type='ConcatDataset', datasets=[dataset, dataset]),
            m=dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[]))[wrapper]
    return dataset


@pytest.fixture
def dataset(tmp_path) -> dict:
    for folder, mode, shape in (('img', 'RGB', (8, 8, 3)), ('ann', 'L', (8, 8))):
        (tmp_path / folder).mkdir()
        for name in 'ab':
            label = np.ones(shape, np.uint8)
            label[0, 0] = 254
            Image.fromarray(label, mode).save(tmp_path / folder / f'{name}.png')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                dict(type='PackSegInputs')]
    return dict(type='BaseSegDataset', data_root=str(tmp_path), img_suffix='.png',
                metainfo=dict(classes=('x', 'y', 'z')), pipeline=pipeline,
                reduce_zero_label=False,
                data_prefix=dict(img_path='img', seg_map_path='ann'))


@pytest.mark.parametrize('wrappers', ['', 'r', 'c', 'm', 'rc', 'crm'])
def test_both_guards_at_any_depth(dataset, wrappers):
    import mmseg.datasets  # noqa: F401  # registers its classes

    def run(cfg, **options):
        wrapped = nested(dict(dataset, **options), wrappers)
        cfg.train_dataloader = dict(dataset=wrapped)
        rules = label_rules(cfg, 'train', ignored_by([wrapped]))
        with DefaultScope.overwrite_default_scope('mmseg'):
            return [*said(lambda: check_data(cfg, ('train', ))),
                    *said(lambda: GuardedDataset(wrapped, labels=rules)[0])]

    def said(check):
        try:
            check()
        except (SampleError, ValueError) as error:
            return [str(error)]
        return []

    assert run(config(head(ignore_index=254))) == []
    assert run(config(head(num_classes=256))) == []
    errors = run(config(head()), ignore_index=254)  # of which no loss knows
    assert len(errors) == 2
    assert all('has the label 254' in error for error in errors)


def test_files_of_a_pipeline_of_ones_own(dataset):
    """Only the samples show what becomes of the labels in the files."""
    from mmcv.transforms import BaseTransform

    class Own(BaseTransform):
        def transform(self, results):
            return results

    steps = [*dataset['pipeline'][:2], dict(type=Own), dataset['pipeline'][2]]
    check_data(config(head(), train_dataloader=dict(dataset=dict(dataset, pipeline=steps))),
               ('train', ))


def test_files_as_they_are_loaded(dataset, tmp_path):
    """With reduce_zero_label 254 becomes 253, and 0 becomes 255."""
    def check(ignored, first):
        label = np.ones((8, 8), np.uint8)
        label[0, 0] = first
        Image.fromarray(label).save(tmp_path / 'ann/a.png')
        check_data(config(head(ignore_index=ignored), train_dataloader=dict(
            dataset=dict(dataset, reduce_zero_label=True))), ('train', ))

    check(253, 254)
    check(255, 0)
    check(255, 3)
    for ignored, first in ((254, 254), (254, 0), (255, 4)):
        with pytest.raises(ValueError, match=f'has the label {first}, '):
            check(ignored, first)
