"""Shape bias through the real tools: classifiers over our config, on drawn pictures.

``tools/test.py`` with MMPretrain's metric writes answers, ``tools/shape_bias.py`` compares them.
The classifiers answer the same whatever they see, so that the result is known.
"""

import csv
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmreplk.commands.checks import check_answers_file
from mmreplk.config.edit import replace_sync_bn

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/shape_bias.py'
CONFIG = ROOT / 'configs/replknet31b_shape_bias.py'
CATEGORIES = ['airplane', 'bear', 'bicycle', 'bird', 'boat', 'bottle', 'car', 'cat', 'chair',
              'clock', 'dog', 'elephant', 'keyboard', 'knife', 'oven', 'truck']
CAT, DOG = slice(281, 287), slice(151, 269)  # classes of ImageNet
PICTURES = ['cat1-dog1', 'cat2-dog2', 'cat3-elephant1', 'dog1-cat1', 'dog2-truck1',
            'elephant1-cat2', 'truck1-dog3', 'cat4-cat5']
PICTURES += [f'{category}9-bear9' for category in CATEGORIES
             if category not in ('cat', 'dog', 'elephant', 'truck')]
# Shape, texture, other of pictures with a conflict; categories that are not named have other alone.
EXPECTED = {
    'cats': dict(cat=(3, 0, 0), dog=(0, 1, 1), elephant=(0, 1, 0), truck=(0, 0, 1), all=(3, 2, 13)),
    'dogs': dict(cat=(0, 2, 1), dog=(2, 0, 0), elephant=(0, 0, 1), truck=(0, 1, 0), all=(2, 3, 13)),
}


def draw_pictures(folder: Path) -> None:
    """One blob of stripes a picture; the categories decide on form, color and stripes."""
    for name in PICTURES:
        shape, texture = (CATEGORIES.index(part.rstrip('0123456789')) for part in name.split('-'))
        outline = np.zeros((96, 112), np.uint8)
        cv2.ellipse(outline, (56, 48), (20 + 2 * shape, 40 - shape), 11 * shape, 0, 360, 255, -1)
        y, x = np.mgrid[:96, :112]
        stripes = 128 + 100 * np.sin((x * (texture + 2) + y * (18 - texture)) / 25)
        image = np.where(outline[..., None] > 0, stripes[..., None], 90) + 4 * texture
        path = folder / CATEGORIES[shape] / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


def write_classifier(folder: Path, name: str, classes: slice) -> None:
    """A narrow network over our config, and weights that prefer some classes."""
    (folder / f'{name}.py').write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "model = dict(\n"
        "    backbone=dict(arch=dict(\n"
        "        _delete_=True, large_kernel_sizes=[9, 7, 5, 3], layers=[1, 1, 1, 1],\n"
        "        channels=[4, 4, 8, 8], small_kernel=3)),\n"
        "    head=dict(in_channels=8))\n"
        "test_dataloader = dict(batch_size=5, num_workers=0)\n"
        f"test_evaluator = dict(model_name={name!r})\n")
    cfg = Config.fromfile(str(folder / f'{name}.py'))
    init_default_scope(cfg.default_scope)
    replace_sync_bn(cfg.model)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        model.head.fc.bias[classes] += 20
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), folder / f'{name}.pth')


def test_two_classifiers_in_one_picture(cls_bench):
    bench = cls_bench
    draw_pictures(bench.folder / 'data/cue-conflict')
    answers = 'work_dirs/shape_bias/cue_conflict_{}_session-1.csv'
    for name, classes in (('cats', CAT), ('dogs', DOG)):
        write_classifier(bench.folder, name, classes)
        run = bench.done('test.py', f'{name}.py', f'{name}.pth')
        # Of 20 pictures, those with the shape of a cat (4), or of a dog (2).
        assert run.metric('accuracy/top1') == pytest.approx({'cats': 4, 'dogs': 2}[name] / 20)
        with pytest.raises(FileExistsError, match=f'cue_conflict_{name}_session-1.csv.* holds the '
                           'answers of another run'):
            check_at(bench.folder, f'{name}.py')

    files = [answers.format(name) for name in EXPECTED]
    run = bench.done('shape_bias.py', *files, '--out', 'compared')
    assert bench.files('compared') == {'shape_bias.csv', 'shape_bias.txt', 'shape_bias.png'}
    with open(bench.folder / 'compared/shape_bias.csv', newline='') as file:
        rows = {(row['name'], row['category']): row for row in csv.DictReader(file)}
    assert rows.keys() == {(name, category) for name in EXPECTED for category in
                           (*CATEGORIES, 'all') if category != 'bear'}
    for (name, category), row in rows.items():
        counts = tuple(int(row[what]) for what in ('shape', 'texture', 'other'))
        assert counts == EXPECTED[name].get(category, (0, 0, 1)), (name, category)
    table = (bench.folder / 'compared/shape_bias.txt').read_text()
    assert table.rstrip() in run.text
    for row in ('cat 100.0 0.0', 'dog 0.0 100.0', 'oven - -', 'all 60.0 40.0', 'pictures 18 18'):
        assert row.split() in [line.split() for line in table.splitlines()]
    picture = cv2.imread(str(bench.folder / 'compared/shape_bias.png'))
    assert min(picture.shape[:2]) > 1000
    assert picture.std() > 20



def test_mistakes_are_refused_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/kept.txt').write_text('kept')
    (tmp_path / 'a.csv').write_text(
        'subj,object_response,category,imagename\nnet,cat,cat,cat1-dog1.png\n')
    for arguments, message in (
        (('a.csv', 'gone.csv'), "CSV: no such file 'gone.csv'"),
        (('a.csv', '--out', 'full'), "--out: 'full': the folder is not empty"),
        (('a.csv', '--group', 'people'), 'group people: give NAME=PATTERN'),
        (('a.csv', 'a.csv'), 'CSV a.csv, line 2: net answers cat1-dog1.png a second time'),
    ):
        monkeypatch.setattr('sys.argv', ['shape_bias.py', *arguments])
        with pytest.raises(SystemExit) as raised:
            runpy.run_path(str(TOOL), run_name='__main__')
        assert raised.value.code == 2
        assert f'shape_bias.py: error: {message}' in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob('*')} == {'a.csv', 'full', 'kept.txt'}


def check_at(folder: Path, config: str) -> None:
    """The check of test.py, whose paths are those of a folder."""
    cfg = Config.fromfile(str(folder / config))
    cfg.test_evaluator.csv_dir = str(folder / cfg.test_evaluator.csv_dir)
    check_answers_file(cfg)
