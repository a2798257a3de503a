"""The confusion matrix against counts by hand and against MMSegmentation's IoU."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmreplk.analysis.confusion.matrix import Confusion, confusion_of
from mmreplk.analysis.confusion.plot import draw_confusion

IGNORED = 3


def config(root, reduce_zero_label=False):
    return Config(dict(
        default_scope='mmseg',
        test_dataloader=dict(dataset=dict(
            type='BaseSegDataset', data_root=str(root), img_suffix='.png',
            metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3] * 3),
            reduce_zero_label=reduce_zero_label,
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                      dict(type='PackSegInputs', meta_keys=(
                          'img_path', 'ori_shape', 'reduce_zero_label'))]))))


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(array, np.uint8))


@pytest.mark.parametrize('reduced', [False, True])
def test_counts_and_ious_are_those_of_the_metric(tmp_path, reduced):
    """``reduced``: numbers from 1 in both kinds of files, 0 for what nobody labelled."""
    from mmseg.evaluation import IoUMetric
    rng = np.random.default_rng(0)
    areas = []
    for index in range(3):
        labels = rng.integers(0, 4, (20, 30))
        guess = np.where(rng.random(labels.shape) < 0.6, labels % 3, rng.integers(0, 3, (20, 30)))
        write(tmp_path / f'img/{index}.png', np.zeros((20, 30, 3)))
        write(tmp_path / f'ann/{index}.png', (labels + 1) % 4 if reduced else labels)
        write(tmp_path / f'out/{index}.png', guess + reduced)
        areas.append(IoUMetric.intersect_and_union(
            torch.tensor(guess), torch.tensor(labels), 3, IGNORED))
    found = confusion_of(config(tmp_path, reduced), tmp_path / 'out')
    intersect, union, _, label = (sum(area) for area in zip(*areas, strict=True))
    np.testing.assert_array_equal(np.diagonal(found.counts), intersect)
    np.testing.assert_array_equal(found.counts.sum(1), label)
    np.testing.assert_allclose(found.ious, 100 * intersect / union)
    assert found.miou == pytest.approx(float((100 * intersect / union).mean()))


def test_what_is_worst_and_classes_that_are_not_there():
    found = Confusion(('a', 'b', 'c'), np.array([[8, 2, 0], [5, 5, 0], [0, 0, 0]]))
    assert found.worst() == [('b', 'a', 0.5), ('a', 'b', 0.2)]
    assert np.isnan(found.ious[2])
    assert found.miou == pytest.approx(100 * (8 / 15 + 5 / 12) / 2)


def test_mistakes(tmp_path):
    write(tmp_path / 'img/0.png', np.zeros((4, 4, 3)))
    write(tmp_path / 'ann/0.png', np.zeros((4, 4)))
    with pytest.raises(FileNotFoundError, match="no image '0.png'.*tools/test.py"):
        confusion_of(config(tmp_path), tmp_path / 'out')
    write(tmp_path / 'out/0.png', np.zeros((4, 5)))
    with pytest.raises(ValueError, match='size .4, 5., its labels .4, 4.'):
        confusion_of(config(tmp_path), tmp_path / 'out')
    write(tmp_path / 'out/0.png', np.full((4, 4), 7))
    with pytest.raises(ValueError, match='classes from 7 to 7, the config 3'):
        confusion_of(config(tmp_path), tmp_path / 'out')
    with pytest.raises(ValueError, match="default_scope is 'mmdet'"):
        confusion_of(Config(dict(default_scope='mmdet')), tmp_path)


def test_the_figure_is_dark_where_the_counts_are(tmp_path):
    darkness = []
    for counts in (np.eye(3), np.ones((3, 3))):
        path = tmp_path / f'{len(darkness)}.png'
        draw_confusion(Confusion(('a', 'b', 'c'), counts.astype(int)), str(path))
        darkness.append((cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) < 60).mean())
    assert darkness[0] > 2 * darkness[1]
