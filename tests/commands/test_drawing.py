"""Drawings of predictions: what is blended, counted and written where."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from mmreplk.commands import drawing

CLASSES = ('sky', 'wall', 'person')
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
IMAGE = np.full((480, 640, 3), 100, np.uint8)


@pytest.mark.parametrize('opacity', [0, 0.5, 1])
def test_masks_of_segments(opacity):
    found = np.zeros((480, 640), int)
    found[240:, :320], found[:3, :3] = 2, 255
    result = drawing.of_segments(IMAGE, found, CLASSES, PALETTE, opacity)
    for place, color in (((10, 10), PALETTE[0]), ((470, 5), PALETTE[2])):
        wanted = (1 - opacity) * 100 + opacity * np.array(color)
        assert np.array_equal(result.image[place], wanted.round())
    assert (result.image[:3, :3] == 100).all()  # of no class
    assert result.words == 'sky 75.0%, person 25.0%'
    assert result.legend == [('sky 75.0%', PALETTE[0]), ('person 25.0%', PALETTE[2])]
    (x, y, _, _), = (label for label in result.labels if label[2] == 'person')
    assert abs(x - 160) <= 40
    assert abs(y - 360) <= 40
    assert (IMAGE == 100).all()


def instances(boxes):
    return InstanceData(bboxes=torch.tensor(boxes), scores=torch.linspace(0.9, 0.5, len(boxes)),
                        labels=torch.arange(len(boxes)) % 2 * 2)


def test_detections():
    found = instances([[0.0, 0, 50, 50], [600, 400, 640, 480], [9, 9, 20, 20]])
    masks = torch.zeros(3, 480, 640, dtype=torch.bool)
    masks[0, 10:40, 10:40] = True
    found.masks = masks
    result = drawing.of_detections(IMAGE, found, CLASSES, PALETTE, 0.5, 0.6)
    assert result.words == '1 x sky (0.90), 1 x person (0.70)'
    assert [box[:4] for box in result.boxes] == [(0, 0, 50, 50), (600, 400, 640, 480)]
    assert tuple(result.image[20, 20]) == (150, 50, 50)
    assert tuple(result.image[5, 5]) == (100, 100, 100)
    nothing = drawing.of_detections(IMAGE, found, CLASSES, PALETTE, 0.5, 0.95)
    assert nothing.words == 'nothing with a score of 0.95 or more'
    assert np.array_equal(drawing.render(nothing), IMAGE)


def test_labels_lie_inside_and_apart(monkeypatch):
    boxes = [[630.0, 470, 640, 480], [-5, -5, 30, 30], [0, 0, 30, 30], [2, 1, 30, 30]]
    result = drawing.of_detections(IMAGE, instances(boxes), CLASSES, PALETTE, 0.5, 0)
    place, placed = drawing._place, []

    def watch(*args):
        place(*args)
        placed[:] = args[-1]

    monkeypatch.setattr(drawing, '_place', watch)
    drawing.render(result)
    assert len(placed) == 4
    for index, (x, y, w, h) in enumerate(placed):
        assert x >= 0
        assert y >= 0
        assert x + w <= 640
        assert y + h <= 480
        for left, top, wide, high in placed[:index]:
            assert x + w <= left or left + wide <= x or y + h <= top or top + high <= y


def test_size_and_legend():
    result = drawing.of_classes(IMAGE[:40, :60], np.array([0.2, 0.7, 0.1]), CLASSES, 2)
    assert result.words == 'wall 70.0%, sky 20.0%'
    picture = drawing.render(result)
    assert picture.shape == (320 + drawing.LINE + 8, 480, 3)
    assert (picture[321:] < 60).any()  # text below
    for entries in (result.legend, result.legend * 9, []):  # as in a video
        result.legend = entries
        assert drawing.render(result, 3).shape == (320 + 3 * drawing.LINE + 8, 480, 3)


@pytest.mark.parametrize('palette', [None, 'random', [(1, 2, 3)]])
def test_colors_where_a_data_set_has_none(palette):
    colors = drawing.colors_of(CLASSES, palette)
    assert len(set(colors)) == 3
    assert drawing.colors_of(CLASSES, PALETTE) == PALETTE
