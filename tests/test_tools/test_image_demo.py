"""image_demo.py, run as a user runs it."""

import cv2
import numpy as np
import pytest


@pytest.mark.parametrize('kind', ['seg', 'det', 'cls'])
def test_draws_one_image(request, kind):
    bench = request.getfixturevalue(f'{kind}_bench')
    bench.done('train.py', 'tiny.py')
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(bench.folder / 'a picture.png'), image)
    args = ('a picture.png', 'tiny.py', 'work_dirs/tiny/iter_2.pth', '--out', 'new/drawn.png')
    extra = ('--score-thr', '0.0') if kind == 'det' else ('--device', 'cpu')
    bench.done('image_demo.py', *args, *extra)
    drawn = cv2.imread(str(bench.folder / 'new/drawn.png'))
    if kind != 'cls':
        assert drawn.shape == image.shape
        assert not np.array_equal(drawn, image)
    assert "--out: 'new/drawn.png': the file exists" in bench.refused('image_demo.py', *args)


def test_options_act(seg_bench):
    bench = seg_bench
    cv2.imwrite(str(bench.folder / 'image.png'), np.zeros((32, 32, 3), np.uint8))
    (bench.folder / 'w.pth').write_bytes(b'')
    args = ('tiny.py', 'w.pth', '--out', 'drawn.png')
    assert 'IMAGE: no such file' in bench.refused('image_demo.py', 'gone.png', *args)
    assert "default_scope is 'mmpose'" in bench.refused(
        'image_demo.py', 'image.png', *args, '--cfg-options', 'default_scope=mmpose')
