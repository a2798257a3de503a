"""The drawn pictures: what is near does not tell the name of the land, the landmark does."""

import json

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from mmreplk.analysis.kernel_study import far_context
from mmreplk.analysis.kernel_study.far_context import CLASS_IDS, LANDS, NO_DISTANCE, SIZE
from mmreplk.config.files import read

SEEDS = range(6)


def draw(seed):
    return far_context.draw_picture(np.random.default_rng(seed))


def islands(labels):
    """Masks of the islands: at least a strait apart, so each is connected by itself."""
    count, numbers = cv2.connectedComponents(np.uint8(labels != CLASS_IDS['water']))
    return [numbers == number for number in range(1, count)]


@pytest.mark.parametrize('seed', SEEDS)
def test_a_picture(seed):
    image, labels, distances = draw(seed)
    assert image.shape == (SIZE, SIZE, 3)
    assert labels.shape == distances.shape == (SIZE, SIZE)
    assert image.dtype == labels.dtype == distances.dtype == np.uint8
    assert set(np.unique(labels)) <= set(CLASS_IDS.values())
    np.testing.assert_array_equal(distances == NO_DISTANCE, labels == CLASS_IDS['water'])
    assert 0.1 < (distances != NO_DISTANCE).mean() < 0.95


@pytest.mark.parametrize('seed', SEEDS)
def test_every_island_has_one_name_and_one_landmark_of_that_name(seed):
    image, labels, distances = draw(seed)
    colors = np.float32([far_context._LANDMARKS[land] for land in LANDS])
    found = islands(labels)
    assert found
    for island in found:
        name, = np.unique(labels[island])
        (row, column), = np.argwhere(island & (distances == 0))
        away = np.hypot(*(np.indices(labels.shape) - np.reshape((row, column), (2, 1, 1))))
        np.testing.assert_allclose(distances[island], away[island], atol=0.51)
        color = image[island & (distances < 4)].mean(0)
        nearest = LANDS[np.abs(colors - color).sum(1).argmin()]
        assert CLASS_IDS[nearest] == name


@pytest.mark.parametrize('seed', SEEDS)
def test_only_the_landmarks_tell_the_name(seed, monkeypatch):
    """With the names dealt out otherwise, nothing but the landmarks looks different."""
    image, labels, distances = draw(seed)
    monkeypatch.setattr(far_context, 'LANDS', ('sand', 'field', 'rock'))
    other, renamed, same = draw(seed)
    np.testing.assert_array_equal(same, distances)
    land = distances != NO_DISTANCE
    assert (labels[land] != renamed[land]).all()
    changed = (image != other).any(-1)
    assert changed.any()
    assert distances[changed].max() <= far_context._LANDMARK_RADIUS + 1


def test_much_of_the_land_is_far_from_its_landmark():
    distances = np.concatenate([draw(seed)[2].ravel() for seed in SEEDS])
    land = distances[distances != NO_DISTANCE]
    assert (land > 40).mean() > 0.25
    assert land.max() > 80


def test_the_same_state_gives_the_same_picture_and_another_another():
    for one, two, other in zip(draw(3), draw(3), draw(4), strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one != other).any()


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob('*') if path.is_file()}


def test_a_data_set_in_the_layout_of_ade20k(tmp_path):
    assert far_context.write_dataset(tmp_path / 'a', 2, 1)
    files = contents(tmp_path / 'a')
    stems = ('training/ADE_train_00000001', 'training/ADE_train_00000002',
             'validation/ADE_val_00000001')
    wanted = {f'{kind}/{stem}.{suffix}' for stem in stems for kind, suffix in (
        ('images', 'jpg'), ('annotations', 'png'), (far_context.DISTANCES, 'png'))}
    assert set(files) == wanted | {far_context.STAMP}
    assert len({files[f'images/{stem}.jpg'] for stem in stems}) == 3

    image, labels, distances = far_context.draw_picture(np.random.default_rng([0, 1, 0]))
    root = tmp_path / 'a'
    read = cv2.imread(str(root / f'images/{stems[2]}.jpg'))[..., ::-1]
    assert np.abs(read.astype(int) - image).mean() < 6  # of JPEG
    for kind, array in (('annotations', labels), (far_context.DISTANCES, distances)):
        np.testing.assert_array_equal(
            cv2.imread(str(root / f'{kind}/{stems[2]}.png'), cv2.IMREAD_UNCHANGED), array)


def test_a_data_set_is_written_once_and_after_an_interruption_again(tmp_path):
    far_context.write_dataset(tmp_path, 1, 1)
    files = contents(tmp_path)
    (tmp_path / 'images/training/ADE_train_00000001.jpg').write_bytes(b'cut off')
    assert not far_context.write_dataset(tmp_path, 1, 1)  # complete, by its stamp
    (tmp_path / far_context.STAMP).unlink()
    assert far_context.write_dataset(tmp_path, 1, 1)
    assert contents(tmp_path) == files


@pytest.mark.parametrize('other', [(2, 1, 0), (1, 2, 0), (1, 1, 5)])
def test_another_data_set_is_left_alone(tmp_path, other):
    far_context.write_dataset(tmp_path, 1, 1)
    files = contents(tmp_path)
    with pytest.raises(FileExistsError, match='name another folder'):
        far_context.write_dataset(tmp_path, *other)
    assert contents(tmp_path) == files


def test_another_version_is_another_data_set(tmp_path, monkeypatch):
    far_context.write_dataset(tmp_path, 1, 1)
    assert json.loads((tmp_path / far_context.STAMP).read_text())['version'] == far_context.VERSION
    monkeypatch.setattr(far_context, 'VERSION', far_context.VERSION + 1)
    with pytest.raises(FileExistsError):
        far_context.write_dataset(tmp_path, 1, 1)


def test_the_config_reads_each_class_as_its_own(tmp_path):
    far_context.write_dataset(tmp_path, 1, 6)
    cfg = read('mmreplk::kernel_study_far_context.py')
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=str(tmp_path)))
    assert len(dataset) == 6
    seen = set()
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        path = tmp_path / f'annotations/validation/ADE_val_{index + 1:08d}.png'
        numbers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        classes = sample.gt_sem_seg.data[0].numpy()
        for place, name in enumerate(cfg.metainfo['classes']):
            np.testing.assert_array_equal(classes == place, numbers == CLASS_IDS[name])
        seen |= set(np.unique(classes))
    assert seen == {0, 1, 2, 3}
