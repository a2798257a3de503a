"""Small data sets in the true formats, for every config to be run on."""

import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmreplk.analysis.kernel_study import far_context

ADE_CLASSES, CITYSCAPES_CLASSES, CAMVID_CLASSES = 150, 19, 11
IGNORED = 255
# The ids of COCO's 80 classes run to 90, with these left out.
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
TRAIN, VAL = 4, 2
NUTS = 18  # in one file, divided by the config


@pytest.fixture(scope='session')
def data_folder(tmp_path_factory) -> Path:
    """A folder ``data`` as the configs expect it in the working directory."""
    root = tmp_path_factory.mktemp('drawn') / 'data'
    rng = np.random.default_rng(0)
    _draw_ade20k(root / 'ade/ADEChallengeData2016', rng)
    # The quick start's own scenes have a subset of ADE20K's labels, in the same layout.
    (root / 'scenes').symlink_to(root / 'ade/ADEChallengeData2016')
    _draw_cityscapes(root / 'cityscapes', rng)
    _draw_camvid(root / 'camvid', rng)
    if find_spec('mmcv._ext'):  # else there is no mmdet to read it, nor to name its classes
        _draw_coco(root / 'coco', rng)
        _draw_nuts(root / 'nuts', rng)
    far_context.write_dataset(root / 'far_context', TRAIN, VAL)
    _draw_imagenet(root / 'imagenet', rng)
    for shape, texture in (('cat', 'dog'), ('dog', 'cat')):  # of the shape-bias configs
        _write(root / f'cue-conflict/{shape}/{shape}1-{texture}2.png',
               _picture(rng, _labels(rng, 72, 96, np.arange(20))))
    return root


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _labels(rng, height: int, width: int, classes) -> np.ndarray:
    """A map ``(H, W)`` of overlapping rectangles of random classes, on buildings."""
    labels = np.full((height, width), classes[2], np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        rows, columns = rng.integers(8, height // 2), rng.integers(8, width // 2)
        labels[top:top + rows, left:left + columns] = rng.choice(classes)
    return labels


def _picture(rng, labels: np.ndarray) -> np.ndarray:
    """A noisy picture ``(H, W, 3)`` in which every class has its own color."""
    colors = np.random.default_rng(1).integers(30, 225, (256, 3))
    return (colors[labels] + rng.integers(-20, 21, (*labels.shape, 3))).astype(np.uint8)


def _draw_ade20k(root: Path, rng) -> None:
    for split, tag, count in (('training', 'train', TRAIN), ('validation', 'val', VAL)):
        for index in range(1, count + 1):
            labels = _labels(rng, 96, 112, np.arange(ADE_CLASSES + 1))
            name = f'ADE_{tag}_{index:08d}'
            _write(root / 'images' / split / f'{name}.jpg', _picture(rng, labels))
            _write(root / 'annotations' / split / f'{name}.png', labels)


def _draw_cityscapes(root: Path, rng) -> None:
    classes = np.append(np.arange(CITYSCAPES_CLASSES), IGNORED)
    for split, cities, count in (('train', ('aachen', 'bochum'), TRAIN), ('val', ('lindau', ), 1)):
        for index in range(count):
            city = cities[index % len(cities)]
            labels = _labels(rng, 128, 256, classes)
            name = f'{city}_{index:06d}_000019'
            image = root / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png'
            _write(image, _picture(rng, labels))
            label = root / 'gtFine' / split / city / f'{name}_gtFine_labelTrainIds.png'
            _write(label, labels)


def _draw_camvid(root: Path, rng) -> None:
    # The number after the last class is what nobody labelled.
    classes = np.arange(CAMVID_CLASSES + 1)
    for split, count in (('train', TRAIN), ('val', VAL), ('test', VAL)):
        for index in range(count):
            labels = _labels(rng, 90, 120, classes)
            _write(root / 'images' / split / f'{index:04d}.jpg', _picture(rng, labels))
            _write(root / 'annotations' / split / f'{index:04d}.png', labels)


def _draw_nuts(root: Path, rng) -> None:
    names = ('date', 'fig', 'hazelnut')
    images, annotations = [], []
    for index in range(NUTS):
        images.append(dict(id=index, file_name=f'{index}.jpg', height=90, width=120))
        labels = np.zeros((90, 120), np.uint8)
        for left in (8, 64):
            x, y = left + int(rng.integers(8)), int(rng.integers(4, 40))
            w, h = (int(value) for value in rng.integers(24, 44, 2))
            category = int(rng.integers(len(names))) + 1
            labels[y:y + h, x:x + w] = category
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
        _write(root / 'images' / f'{index}.jpg', _picture(rng, labels))
    categories = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
    (root / 'trainval.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def _draw_coco(root: Path, rng) -> None:
    from mmdet.datasets import CocoDataset
    ids = [number for number in range(1, 91) if number not in COCO_GAPS]
    categories = [
        dict(id=number, name=name)
        for number, name in zip(ids, CocoDataset.METAINFO['classes'], strict=True)
    ]
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train2017', TRAIN), ('val2017', VAL)):
        images, annotations = [], []
        for index in range(1, count + 1):
            name = f'{index:012d}.jpg'
            height, width = (96, 128) if index % 2 else (128, 96)
            images.append(dict(id=index, file_name=name, height=height, width=width))
            labels = np.zeros((height, width), np.uint8)
            for crowd in (0, 0, 0, 1):
                x, y = (int(value) for value in rng.integers(2, 50, 2))
                w, h = (int(value) for value in rng.integers(24, 44, 2))
                category = int(rng.choice(ids))
                labels[y:y + h, x:x + w] = category
                outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                # Crowds are column-wise run lengths: of background, then of the crowd, and so on.
                runs = [x * height + y, h] + [height - h, h] * (w - 1)
                runs.append(height * width - sum(runs))
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index,
                        category_id=category,
                        bbox=[x, y, w, h],
                        area=w * h,
                        iscrowd=crowd,
                        segmentation=dict(size=[height, width], counts=runs) if crowd else outline))
            _write(root / split / name, _picture(rng, labels))
        (root / f'annotations/instances_{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def _draw_imagenet(root: Path, rng) -> None:
    (root / 'meta').mkdir(parents=True)
    for split, count in (('train', TRAIN), ('val', VAL)):
        lines = []
        for index in range(count):
            label = int(rng.integers(1000))
            folder = f'n{label:08d}/' if split == 'train' else ''
            name = f'{folder}ILSVRC2012_{split}_{index + 1:08d}.JPEG'
            _write(root / split / name, _picture(rng, np.full((72, 96), label % 256, np.uint8)))
            lines.append(f'{name} {label}\n')
        (root / f'meta/{split}.txt').write_text(''.join(lines))
