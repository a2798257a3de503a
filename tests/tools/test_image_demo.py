"""image_demo.py, run as a user runs it."""

import cv2
import numpy as np
import pytest
from mmengine.visualization import Visualizer


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize('kind', ['seg', 'cls'])
def test_draws_one_image(request, image, kind):
    bench = request.getfixturevalue(f'{kind}_bench')
    cv2.imwrite(str(bench.folder / 'a picture.png'), image)
    bench.done('image_demo.py', 'a picture.png', 'tiny.py', bench.checkpoint(), '--out',
               'new/drawn.png', '--device', 'cpu')
    drawn = cv2.imread(str(bench.folder / 'new/drawn.png'))
    assert drawn.shape == image.shape
    assert not np.array_equal(drawn, image)


def test_score_threshold_decides_which_boxes_are_drawn(det_bench, image):
    bench = det_bench
    cv2.imwrite(str(bench.folder / 'image.png'), image)
    args = ('image_demo.py', 'image.png', 'tiny.py', bench.checkpoint())
    bench.done(*args, '--out', 'all.png', '--score-thr', '0.0')
    bench.done(*args, '--out', 'none.png', '--score-thr', '1.0')
    drawn = [cv2.imread(str(bench.folder / name)) for name in ('all.png', 'none.png')]
    # Older matplotlib moves a picture a little each time it draws it, which MMDetection does twice.
    visualizer, bare = Visualizer(), image
    for _ in range(2):
        visualizer.set_image(bare)
        bare = visualizer.get_image()
    assert not np.array_equal(drawn[0], bare)
    assert np.array_equal(drawn[1], bare)


def test_bad_arguments(seg_bench, image):
    bench = seg_bench
    cv2.imwrite(str(bench.folder / 'image.png'), image)
    args = ('tiny.py', bench.checkpoint(), '--out', 'drawn.png')
    assert 'IMAGE: no such file' in bench.refused('image_demo.py', 'gone.png', *args)
    assert "--out: 'image.png': the file exists" in bench.refused(
        'image_demo.py', 'image.png', *args[:3], 'image.png')
    assert '--device cuda:7' in bench.refused('image_demo.py', 'image.png', *args, '--device',
                                              'cuda:7')
    assert "default_scope is 'mmpose'" in bench.refused(
        'image_demo.py', 'image.png', *args, '--cfg-options', 'default_scope=mmpose')
