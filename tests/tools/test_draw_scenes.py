"""tools/dataset/draw_scenes.py, and the configs and the quick start that use its scenes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / 'tools' / 'dataset' / 'draw_scenes.py'


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Pickling for worker processes looks the module up by its name.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# As for a script that is run: its neighbors are importable.
sys.path.insert(0, str(SCRIPT.parent))
draw_scenes = load(SCRIPT)
scene_canvas = sys.modules['scene_canvas']


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


def test_scene_is_a_picture_with_labels_of_known_numbers():
    image, label = draw_scenes.draw_scene(np.random.default_rng(0), 96)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert label.shape == (96, 96)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, *draw_scenes.CLASS_IDS.values()}


@pytest.mark.parametrize('size', [32, 33, 128])
def test_any_size_is_drawn_and_covered(size):
    for seed in range(12):
        image, label = draw_scenes.draw_scene(np.random.default_rng(seed), size)
        assert image.shape == (size, size, 3)
        # Only sun and balloon are of no class.
        assert (label == scene_canvas.UNLABELLED).mean() < 0.1


def test_many_scenes_draw_without_error():
    for seed in range(150):
        draw_scenes.draw_scene(np.random.default_rng([7, seed]), 32)


def test_same_stream_gives_same_scene():
    first = draw_scenes.draw_scene(np.random.default_rng(3), 64)
    again = draw_scenes.draw_scene(np.random.default_rng(3), 64)
    other = draw_scenes.draw_scene(np.random.default_rng(4), 64)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_labels_follow_the_edges_of_the_picture():
    # A label shifted, mirrored or scaled against its picture would put edges where none are.
    seen = matched = 0
    for seed in range(10):
        image, label = draw_scenes.draw_scene(np.random.default_rng(seed), 96)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        step = np.abs(np.diff(gray, axis=1))
        border = np.diff(label.astype(int), axis=1) != 0
        seen += step.mean()
        matched += step[border].mean()
    assert matched > 2 * seen


@pytest.mark.parametrize('split', [0, 1])
def test_every_class_is_in_many_scenes_of_both_splits(split):
    labels = [draw_scenes.draw_scene(np.random.default_rng([0, split, i]), 48)[1]
              for i in range(40)]
    for name, number in draw_scenes.CLASS_IDS.items():
        present = np.mean([(label == number).sum() > 8 for label in labels])
        assert present >= 0.25, (name, present)
    assert np.mean([(label == scene_canvas.UNLABELLED).any() for label in labels]) > 0.25


def test_dataset_has_the_layout_of_ade20k(tmp_path):
    root = tmp_path / 'scenes'
    assert draw_scenes.write_dataset(root, 3, 2, 48, seed=5)
    names = set(contents(root)) - {draw_scenes.STAMP}
    train = [f'ADE_train_{i:08d}' for i in (1, 2, 3)]
    val = [f'ADE_val_{i:08d}' for i in (1, 2)]
    assert names == {
        *(f'images/training/{name}.jpg' for name in train),
        *(f'annotations/training/{name}.png' for name in train),
        *(f'images/validation/{name}.jpg' for name in val),
        *(f'annotations/validation/{name}.png' for name in val)}
    for index in range(2):
        image, label = draw_scenes.draw_scene(np.random.default_rng([5, 1, index]), 48)
        stored = cv2.imread(str(root / f'annotations/validation/{val[index]}.png'),
                            cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, label)
        photo = cv2.imread(str(root / f'images/validation/{val[index]}.jpg'))[..., ::-1]
        assert np.abs(photo.astype(float) - image).mean() < 8


def test_splits_share_no_scene(tmp_path):
    draw_scenes.write_dataset(tmp_path / 'd', 6, 6, 32, seed=1)
    pictures = [path.read_bytes() for path in (tmp_path / 'd' / 'annotations').rglob('*.png')]
    assert len(set(pictures)) == len(pictures) == 12


def test_processes_do_not_change_what_is_drawn(tmp_path):
    draw_scenes.write_dataset(tmp_path / 'one', 5, 2, 32, seed=2)
    subprocess.run([sys.executable, SCRIPT, tmp_path / 'two', '--num-train', '5', '--num-val', '2',
                    '--size', '32', '--seed', '2', '--num-workers', '2'], check=True)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_a_longer_dataset_starts_with_the_shorter(tmp_path):
    draw_scenes.write_dataset(tmp_path / 'short', 2, 1, 32)
    draw_scenes.write_dataset(tmp_path / 'long', 4, 3, 32)
    short, long = contents(tmp_path / 'short'), contents(tmp_path / 'long')
    del short[draw_scenes.STAMP]
    assert all(long[name] == data for name, data in short.items())


def test_identical_dataset_is_reused(tmp_path, monkeypatch):
    assert draw_scenes.write_dataset(tmp_path / 'd', 2, 1, 32)
    monkeypatch.setattr(draw_scenes, 'draw_scene', None)
    assert not draw_scenes.write_dataset(tmp_path / 'd', 2, 1, 32)


def test_interrupted_write_is_repeated(tmp_path, monkeypatch):
    draw, calls = draw_scenes.draw_scene, []

    def fails_at_third(rng, size):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(rng, size)

    monkeypatch.setattr(draw_scenes, 'draw_scene', fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        draw_scenes.write_dataset(tmp_path / 'd', 3, 1, 32)
    assert not (tmp_path / 'd' / draw_scenes.STAMP).exists()
    with pytest.raises(FileExistsError, match='same parameters'):
        draw_scenes.write_dataset(tmp_path / 'd', 4, 1, 32)
    monkeypatch.setattr(draw_scenes, 'draw_scene', draw)
    assert draw_scenes.write_dataset(tmp_path / 'd', 3, 1, 32)
    draw_scenes.write_dataset(tmp_path / 'whole', 3, 1, 32)
    assert contents(tmp_path / 'd') == contents(tmp_path / 'whole')


def test_other_parameters_are_refused_by_name(tmp_path):
    draw_scenes.write_dataset(tmp_path / 'd', 2, 1, 32)
    with pytest.raises(FileExistsError, match='num_train is 2 there and 3 here.*another folder'):
        draw_scenes.write_dataset(tmp_path / 'd', 3, 1, 32)


def test_foreign_folder_and_file_are_left_alone(tmp_path):
    note = tmp_path / 'note.txt'
    note.write_text('mine')
    with pytest.raises(FileExistsError, match='not empty'):
        draw_scenes.write_dataset(tmp_path, 2, 1, 32)
    with pytest.raises(FileExistsError, match='is a file'):
        draw_scenes.write_dataset(note, 2, 1, 32)
    assert contents(tmp_path) == {'note.txt': b'mine'}


@pytest.mark.parametrize(('argument', 'value'), [
    ('num_train', 0), ('num_train', True), ('num_val', -1), ('size', 31), ('size', 64.0),
    ('seed', -1), ('num_workers', 0)])
def test_bad_arguments_are_named(tmp_path, argument, value):
    with pytest.raises(ValueError, match=f'{argument} must be an integer of at least.*{value}'):
        draw_scenes.write_dataset(tmp_path / 'd', **{argument: value})
    assert not (tmp_path / 'd').exists()


def test_command_line_reports_errors_without_traceback(tmp_path, capsys):
    assert draw_scenes.main([str(tmp_path / 'd'), '--size', '8']) == 2
    captured = capsys.readouterr()
    assert 'size must be an integer of at least 32' in captured.err
    assert captured.out == ''


def test_config_reads_the_labels_as_drawn(tmp_path):
    pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    cfg = Config.fromfile(REPO / 'configs' / 'upernet_replknet_narrow_scenes.py')
    names = list(draw_scenes.CLASS_IDS)
    assert list(cfg.metainfo.classes) == names
    assert cfg.model.decode_head.num_classes == len(names)
    assert cfg.model.auxiliary_head.num_classes == len(names)

    draw_scenes.write_dataset(tmp_path / 'd', 2, 2, 128)
    init_default_scope('mmseg')
    dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, data_root=str(tmp_path / 'd')))
    every = dataset.METAINFO
    assert [every['classes'].index(name) + 1 for name in names] == list(
        draw_scenes.CLASS_IDS.values())
    assert [list(color) for color in dataset.metainfo['palette']] == [
        every['palette'][number - 1] for number in draw_scenes.CLASS_IDS.values()]
    table = np.full(256, 255)
    table[list(draw_scenes.CLASS_IDS.values())] = np.arange(len(names))
    for index in range(2):
        item = dataset[index]
        _, label = draw_scenes.draw_scene(np.random.default_rng([0, 1, index]), 128)
        assert np.array_equal(item['data_samples'].gt_sem_seg.data[0].numpy(), table[label])


def test_quickstart_knows_every_class_and_scores_like_its_definition():
    quickstart = load(REPO / 'tools' / 'quickstart.py')
    assert list(quickstart.COLORS) == list(draw_scenes.CLASS_IDS)
    label = np.array([[0, 0, 1, quickstart.IGNORED]])
    ious, accuracy = quickstart.score([label], [np.array([[0, 1, 1, 2]])], 3)
    assert ious[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(ious[2])
    assert accuracy == pytest.approx(2 / 3)


def test_quickstart_takes_a_new_folder_for_each_run(tmp_path):
    quickstart = load(REPO / 'tools' / 'quickstart.py')
    folders = [quickstart.new_run_folder(tmp_path).name for _ in range(3)]
    assert folders == ['run_001', 'run_002', 'run_003']


def test_quickstart_fits_the_schedule_to_few_iterations():
    quickstart = load(REPO / 'tools' / 'quickstart.py')
    assert quickstart.length_options(None) == []
    for iters in (1, 2, 50, 1000):
        values = dict(option.split('=') for option in quickstart.length_options(iters))
        assert values['train_cfg.max_iters'] == str(iters)
        assert 0 < int(values['param_scheduler.0.end']) <= quickstart.WARM_UP
        assert int(values['param_scheduler.1.begin']) < int(values['param_scheduler.1.end'])


def test_quickstart_reads_the_last_metrics(tmp_path):
    quickstart = load(REPO / 'tools' / 'quickstart.py')
    with pytest.raises(quickstart.StepFailed, match='no mIoU'):
        quickstart.read_metrics(tmp_path)
    folder = tmp_path / '20260101_000000'
    folder.mkdir()
    lines = [dict(mIoU=1.0, step=1), dict(mIoU=2.0, step=2)]
    (folder / f'{folder.name}.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    assert quickstart.read_metrics(tmp_path)['mIoU'] == 2.0
