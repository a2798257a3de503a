"""Samples that cannot be used: every message names the file, whatever the codebase says."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from mmreplk.training.guarded_dataset import GuardedDataset, SampleError
from mmreplk.training.labels import LabelRule, label_rules

CLASSES = 3


class Pairs:
    """Two images with label maps, as a segmentation data set of three classes."""

    def __init__(self, root):
        self.root = root
        for name in 'ab':
            self.write(f'img/{name}.png', np.full((20, 30, 3), 90, np.uint8))
            self.write(f'ann/{name}.png', np.ones((20, 30), np.uint8))

    def write(self, name, picture):
        (self.root / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(self.root / name), picture)

    def dataset(self, *transforms, before=(), **options):
        import mmseg.datasets  # noqa: F401  # registers its classes
        pipeline = [dict(type='LoadImageFromFile'), *before, dict(type='LoadAnnotations'),
                    *transforms, dict(type='PackSegInputs')]
        with DefaultScope.overwrite_default_scope('mmseg'):
            return GuardedDataset(dict(
                type='BaseSegDataset', data_root=str(self.root), img_suffix='.png',
                metainfo=dict(classes=('x', 'y', 'z')), pipeline=pipeline,
                data_prefix=dict(img_path='img', seg_map_path='ann'), **options),
                labels=(LabelRule(CLASSES, frozenset((255, ))), ))


@pytest.fixture
def pairs(tmp_path):
    return Pairs(tmp_path)


def test_good_samples_pass(pairs):
    pairs.write('ann/b.png', np.full((20, 30), 255, np.uint8))  # nothing but ignored pixels
    data = pairs.dataset()
    assert [sample['inputs'].shape[1:] for sample in (data[0], data[1])] == [(20, 30)] * 2
    assert data.metainfo['classes'] == ('x', 'y', 'z')


@pytest.mark.parametrize('name', ['img/b.png', 'ann/b.png'])
@pytest.mark.parametrize('content', [b'', b'no picture', 'half'])
def test_broken_files(pairs, name, content):
    path = pairs.root / name
    whole = path.read_bytes()
    path.write_bytes(whole[:40] if content == 'half' else content)
    data = pairs.dataset()
    data[0]
    with pytest.raises(SampleError, match=r"img/b\.png' with '.*ann/b\.png' \(sample 1 of "
                       'BaseSegDataset.*cannot be loaded.*Repair or remove'):
        data[1]


def test_a_label_that_is_no_class(pairs):
    label = np.ones((20, 30), np.uint8)
    label[3, 4], label[5, 5] = 7, 3
    pairs.write('ann/b.png', label)
    with pytest.raises(SampleError, match=r"b\.png'.* has the label 3, 7, but the model has "
                       'classes 0 to 2'):
        pairs.dataset()[1]
    # Shifted by one, 3 is the last class, and 0 is ignored.
    label[3, 4], label[0, 0] = 3, 0
    pairs.write('ann/b.png', label)
    shifted = pairs.dataset(reduce_zero_label=True)
    shifted.pipeline.transforms[1].reduce_zero_label = True
    assert shifted[1]['data_samples'].gt_sem_seg.data.max() == 255


def test_smaller_than_the_crop(pairs):
    """The crop takes what there is; the preprocessor pads it."""
    pairs.write('img/b.png', np.full((8, 9, 3), 90, np.uint8))
    pairs.write('ann/b.png', np.ones((8, 9), np.uint8))
    sample = pairs.dataset(dict(type='RandomCrop', crop_size=(16, 16), cat_max_ratio=0.75))[1]
    assert tuple(sample['inputs'].shape[1:]) == (8, 9)


@pytest.mark.parametrize('shape', [(1, 30), (20, 1), (1, 1)])
@pytest.mark.parametrize('crop', [(), (dict(type='RandomCrop', crop_size=(16, 16)), )])
def test_one_row_of_pixels(pairs, shape, crop):
    """mmseg drops that dimension of the label map; the file is named."""
    pairs.write('img/b.png', np.full((*shape, 3), 90, np.uint8))
    pairs.write('ann/b.png', np.ones(shape, np.uint8))
    with pytest.raises(SampleError, match=r'img/b\.png'):
        pairs.dataset(*crop)[1]


def test_other_sizes_of_image_and_label(pairs):
    pairs.write('ann/b.png', np.ones((10, 30), np.uint8))
    # mmseg itself says so in a transform that needs both, or never.
    with pytest.raises(SampleError, match=r'ann/b\.png.*differ in size: \(20, 30\) and \(10, 30\)'):
        pairs.dataset()[1]


def test_evaluation_resizes_images_alone(pairs):
    resize = dict(type='Resize', scale=(60, 50), keep_ratio=True)
    data = pairs.dataset(before=[resize])
    sample = data[0]
    assert tuple(sample['inputs'].shape[1:]) == (40, 60)
    assert tuple(sample['data_samples'].gt_sem_seg.data.shape[1:]) == (20, 30)
    pairs.write('ann/b.png', np.ones((10, 30), np.uint8))
    with pytest.raises(SampleError, match=r'differ in size: \(40, 60\) and \(10, 30\)'):
        data[1]


@pytest.mark.parametrize('workers', [0, 1])
def test_through_a_loader(pairs, workers):
    (pairs.root / 'img/b.png').write_bytes(b'')
    with pytest.raises(SampleError, match=r'img/b\.png'):
        list(DataLoader(pairs.dataset(), num_workers=workers, collate_fn=list))


@pytest.mark.parametrize(('model', 'scope', 'classes'), [
    (dict(decode_head=dict(num_classes=5), auxiliary_head=dict(num_classes=4)), 'mmseg', 5),
    (dict(decode_head=[dict(num_classes=5), dict(num_classes=6)]), 'mmseg', 5),
    (dict(head=dict(num_classes=7), backbone=dict(num_classes=1)), 'mmpretrain', 7),
    (dict(module=dict(head=dict(num_classes=7))), 'mmpretrain', 7),
    (dict(head=None), 'mmpretrain', None),
    (dict(bbox_head=dict(num_classes=7)), 'mmdet', None),
])
def test_classes_of_a_model(model, scope, classes):
    rules = label_rules(Config(dict(model=model, default_scope=scope)), 'train')
    assert min((rule.limit for rule in rules), default=None) == classes
