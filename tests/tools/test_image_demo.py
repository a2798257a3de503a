"""image_demo.py, run as a user runs it."""

import re

import cv2
import numpy as np
import pytest


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize('kind', ['seg', 'cls'])
def test_draws_one_image(request, image, kind):
    bench = request.getfixturevalue(f'{kind}_bench')
    cv2.imwrite(str(bench.folder / 'a picture.png'), image)
    done = bench.done('image_demo.py', 'a picture.png', 'tiny.py', bench.checkpoint(), '--out',
               'new/drawn.png', '--device', 'cpu')
    drawn = cv2.imread(str(bench.folder / 'new/drawn.png'))
    assert drawn.shape[1] == 480  # eight times as large, with a legend below
    assert drawn.shape[0] > 320
    assert 'new/drawn.png: ' in done.text
    assert re.search(r'(dark|bright|0|1) \d+\.\d%', done.text)


def test_score_threshold_decides_which_boxes_are_drawn(det_bench, image):
    bench = det_bench
    cv2.imwrite(str(bench.folder / 'image.png'), image)
    args = ('image_demo.py', 'image.png', 'tiny.py', bench.checkpoint())
    every = bench.done(*args, '--out', 'all.png', '--score-thr', '0.0').text
    none = bench.done(*args, '--out', 'none.png', '--score-thr', '1.0').text
    assert re.search(r'all.png: \d+ x box \(0\.', every)
    assert 'none.png: nothing with a score of 1.0 or more' in none
    drawn = [cv2.imread(str(bench.folder / name)) for name in ('all.png', 'none.png')]
    bare = image.repeat(8, 0).repeat(8, 1)
    assert not np.array_equal(drawn[0][:320], bare)
    assert np.array_equal(drawn[1], bare)


def test_folder_and_video(seg_bench, image):
    bench = seg_bench
    (bench.folder / 'images').mkdir()
    writer = cv2.VideoWriter(str(bench.folder / 'in.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5,
                             (60, 40))
    for index in range(3):
        cv2.imwrite(str(bench.folder / f'images/{index}.png'), image)
        writer.write(image)
    writer.release()
    args = ('tiny.py', bench.checkpoint())
    text = bench.done('image_demo.py', 'images', *args, '--out', 'drawn').text
    assert all(f'{n + 1}/3 drawn/{n}.png: ' in text for n in range(3))
    assert bench.files('drawn') == {'0.png', '1.png', '2.png'}
    text = bench.done('image_demo.py', 'in.avi', *args, '--out', 'out.avi').text
    assert 'frame 3/3: ' in text
    assert 'out.avi: 3 frames, ' in text
    source = cv2.VideoCapture(str(bench.folder / 'out.avi'))
    assert source.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert '--out x.png: IMAGE is a folder' in bench.refused('image_demo.py', 'images', *args,
                                                            '--out', 'x.png')


def test_bad_arguments(seg_bench, image):
    bench = seg_bench
    cv2.imwrite(str(bench.folder / 'image.png'), image)
    args = ('tiny.py', bench.checkpoint(), '--out', 'drawn.png')
    assert 'IMAGE: no such file' in bench.refused('image_demo.py', 'gone.png', *args)
    assert "--out: 'image.png': the file exists" in bench.refused(
        'image_demo.py', 'image.png', *args[:3], 'image.png')
    assert '--opacity 2.0: give' in bench.refused('image_demo.py', 'image.png', *args, '--opacity',
                                                  '2')
    assert '--device cuda:7' in bench.refused('image_demo.py', 'image.png', *args, '--device',
                                              'cuda:7')
    assert "default_scope is 'mmpose'" in bench.refused(
        'image_demo.py', 'image.png', *args, '--cfg-options', 'default_scope=mmpose')
