"""Data sets that are there, and lie as another one does."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmreplk.commands import data_checks as datasets
from mmreplk.commands.data_layouts import layout_problems

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def problems(dataset: dict, scope: str) -> list[str]:
    return list(layout_problems(dataset, 'd', scope))


def problem(dataset: dict, scope: str) -> str:
    found, = problems(dataset, scope)
    return found


def draw(path, labels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cityscapes(here) -> dict:
    """Two cities, with labels in place."""
    for stem in ('aachen/aachen_000000_000019', 'bochum/bochum_000000_000313'):
        draw(here / f'city/leftImg8bit/train/{stem}_leftImg8bit.png', np.zeros((4, 4, 3)))
        draw(here / f'city/gtFine/train/{stem}_gtFine_labelTrainIds.png', [[0, 18, 255]])
    return dict(
        type='CityscapesDataset',
        data_root='city',
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=LOAD)


def test_cityscapes(cityscapes, here):
    assert problems(cityscapes, 'mmseg') == []
    label = here / 'city/gtFine/train/bochum/bochum_000000_000313_gtFine_labelTrainIds.png'
    label.rename(str(label).replace('labelTrainIds', 'labelIds'))
    text = problem(cityscapes, 'mmseg')
    assert text.startswith("d.data_prefix.seg_map_path: 1 of 2 images have no label in 'city/gtFine"
                           "/train', such as 'bochum/bochum_000000_000313_gtFine_labelTrainIds.png")
    assert 'cityscapesscripts' in text
    # A test set may come without labels.
    assert problems(dict(cityscapes, pipeline=LOAD[:1]), 'mmseg') == []
    swapped = dict(img_path='gtFine/train', seg_map_path='leftImg8bit/train')
    text = problem(dict(cityscapes, data_prefix=swapped), 'mmseg')
    assert "d.data_prefix.img_path: no *_leftImg8bit.png in 'city/gtFine/train'" in text
    assert 'aachen_000000_000019_gtFine_labelTrainIds.png' in text


def test_labels_of_another_kind(cityscapes, here):
    label = here / 'city/gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png'
    draw(label, [[7, 33]])  # labelIds under the name of labelTrainIds
    text = problem(cityscapes, 'mmseg')
    assert 'has the label 33, but those of CityscapesDataset are 0 to 18, and 255 for none' in text
    draw(label, np.zeros((4, 4, 3)))
    assert 'is no label map: it needs one channel' in problem(cityscapes, 'mmseg')
    label.write_text('not a picture')
    assert 'is no label map: it needs one channel' in problem(cityscapes, 'mmseg')


def test_ade20k_counts_from_one(here):
    draw(here / 'img/x.jpg', np.zeros((4, 4, 3)))
    draw(here / 'ann/x.png', [[0, 150]])
    ade = dict(type='ADE20KDataset', data_prefix=dict(img_path='img', seg_map_path='ann'))
    shifted = [LOAD[0], dict(LOAD[1], reduce_zero_label=True)]
    assert problems(dict(ade, pipeline=shifted), 'mmseg') == []
    assert problems(dict(ade, pipeline=LOAD, reduce_zero_label=True), 'mmseg') == []
    text = problem(dict(ade, pipeline=LOAD, reduce_zero_label=False), 'mmseg')
    assert 'has the label 150, but those of ADE20KDataset are 0 to 149' in text
    (here / 'ann/x.png').unlink()
    text = problem(dict(ade, pipeline=shifted), 'mmseg')
    assert "1 of 1 images have no label in 'ann', such as 'x.png'. It is empty." in text


def test_list_of_images_in_segmentation(here):
    for name in 'xyz':
        draw(here / f'img/{name}.jpg', np.zeros((4, 4, 3)))
    for name in 'xy':
        draw(here / f'ann/{name}.png', [[0]])
    voc = dict(type='BaseSegDataset', ann_file='list.txt', pipeline=LOAD,
               data_prefix=dict(img_path='img', seg_map_path='ann'))
    (here / 'list.txt').write_text('x\ny\n')
    assert problems(voc, 'mmseg') == []
    (here / 'list.txt').write_text('x\nz\n')
    assert "1 of 2 images have no label in 'ann', such as 'z.png'" in problem(voc, 'mmseg')


@pytest.fixture
def coco(here) -> dict:
    pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    draw(here / 'coco/train/a.jpg', np.zeros((4, 4, 3)))
    write_instances(here)
    return dict(
        type='CocoDataset', data_root='coco', ann_file='train.json', data_prefix=dict(img='train/'),
        pipeline=[LOAD[0], dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])


def write_instances(here, **changes) -> str:
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=4, width=4)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 2, 2], area=4, iscrowd=0,
                          segmentation=[[0, 0, 2, 0, 2, 2]])],
        categories=[dict(id=1, name='person')])
    content |= changes
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    (here / 'coco/train.json').write_text(text)
    return text


def test_coco(coco, here):
    assert problems(coco, 'mmdet') == []
    text = write_instances(here)
    (here / 'coco/train.json').write_text(text[:-20])
    assert "d.ann_file: 'coco/train.json' is cut off" in problem(coco, 'mmdet')
    (here / 'coco/train.json').write_text('')
    assert problem(coco, 'mmdet') == "d.ann_file: 'coco/train.json' is empty."
    (here / 'coco/train.json').write_text('[]')
    text = problem(coco, 'mmdet')
    assert "is no file of instances in COCO's format: it has no list 'images', " in text
    write_instances(here, categories=None)  # as COCO's captions
    assert "has no list 'categories'" in problem(coco, 'mmdet')
    write_instances(here, categories=[dict(id=1, name='ship'), dict(id=2, name='plane')])
    text = problem(coco, 'mmdet')
    assert "none of the 80 classes, such as 'person': its categories are plane, ship." in text
    assert problems(dict(coco, metainfo=dict(classes=('ship', 'plane'))), 'mmdet') == []
    write_instances(here, categories=['person'])
    assert 'its categories are no list of ids and names' in problem(coco, 'mmdet')


def test_coco_images_and_masks(coco, here):
    text = problem(dict(coco, data_prefix=dict(img='')), 'mmdet')
    assert "d.data_prefix.img: 'coco/' lacks the image 'a.jpg' that 'coco/train.json' names" in text
    box = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 2, 2], area=4, iscrowd=0)
    write_instances(here, annotations=[box])
    assert 'has no segmentation, but the pipeline loads masks' in problem(coco, 'mmdet')
    boxes = [LOAD[0], dict(type='LoadAnnotations', with_bbox=True)]
    assert problems(dict(coco, pipeline=boxes), 'mmdet') == []
    # The words also occur where they mean something else.
    write_instances(here, images=[dict(id=1, file_name='a.jpg', note='"categories": ["images": [')])
    assert problems(dict(coco, pipeline=boxes), 'mmdet') == []


def test_imagenet_with_lists(here):
    for split in ('train', 'val'):
        draw(here / f'imagenet/{split}/n01440764/x.JPEG'.lower(), np.zeros((4, 4, 3)))
    train = dict(type='ImageNet', data_root='imagenet', split='train')
    listed = here / 'imagenet/meta/train.txt'
    listed.parent.mkdir()

    def say(text):
        listed.write_text(text)
        return problems(train, 'mmpretrain')

    assert say('n01440764/x.jpeg 0\n') == []
    assert "begins with 'n01440764/x.jpeg'; every line needs" in say('n01440764/x.jpeg\n')[0]
    assert 'its class from 0 to 999' in say('n01440764/x.jpeg 1000\n')[0]
    assert "names 'x.jpeg', which is not in 'imagenet/train'" in say('x.jpeg 0\n')[0]
    assert 'is empty' in say('\n')[0]
    val = dict(train, split='val')
    text = problem(val, 'mmpretrain')
    assert "d.data_root: 'imagenet/val' has 1 class folders, but ImageNet has 1000 classes" in text


def test_imagenet_without_class_folders(here):
    draw(here / 'imagenet/val/x.jpeg', np.zeros((4, 4, 3)))
    val = dict(type='ImageNet', data_root='imagenet', split='val')
    text = problem(val, 'mmpretrain')
    assert "'imagenet/val' holds images, but no folder for each class" in text
    assert 'meta/val.txt' in text
    (here / 'imagenet/val/x.jpeg').unlink()
    assert "'imagenet/val' holds nothing" in problem(val, 'mmpretrain')
    assert "d.data_root: there is no folder 'imagenet/train'" in problem(
        dict(val, split='train'), 'mmpretrain')
    draw(here / 'imagenet/test/x.jpeg', np.zeros((4, 4, 3)))
    assert problems(dict(val, split='test'), 'mmpretrain') == []
    own = dict(type='CustomDataset', data_root='imagenet', data_prefix='val')
    assert problem(own, 'mmpretrain').startswith("d.data_prefix: 'imagenet/val' holds nothing")
    draw(here / 'imagenet/val/cat/x.jpeg', np.zeros((4, 4, 3)))
    assert problems(own, 'mmpretrain') == []


def test_what_is_not_looked_at(here):
    assert problems(dict(type='CIFAR10', data_root='gone'), 'mmpretrain') == []
    assert problems(dict(data_root='.'), 'mmseg') == []
    cfg = Config(dict(
        default_scope='mmseg', test_dataloader=dict(dataset=dict(
            type='ADE20KDataset', data_root='s3://bucket', data_prefix=dict(img_path='img')))))
    datasets.check_data(cfg, ('test', ))


def test_classes_that_read_their_files_in_their_own_way(here):
    from mmpretrain.datasets import CustomDataset

    class Shelf(CustomDataset):
        def load_data_list(self):
            return []

    class Plain(CustomDataset):
        pass

    assert problems(dict(type=Shelf, data_root='.', data_prefix='gone'), 'mmpretrain') == []
    assert problems(dict(type=Plain, data_root='.', data_prefix='gone'), 'mmpretrain') != []


def test_check_data_lists_all(cityscapes, here):
    (here / 'empty').mkdir()
    empty = dict(cityscapes, data_root='', data_prefix=dict(img_path='empty', seg_map_path='empty'))
    cfg = Config(dict(
        default_scope='mmseg', train_dataloader=dict(dataset=dict(dataset=empty)),
        val_dataloader=dict(dataset=empty), test_dataloader=dict(dataset=cityscapes)))
    with pytest.raises(ValueError, match='data do not lie as their data set needs them') as error:
        datasets.check_data(cfg, ('train', 'val', 'test'))
    lines = str(error.value).splitlines()[1:]
    assert [line.split(':')[0].strip() for line in lines] == [
        'train_dataloader.dataset.dataset.data_prefix.img_path',
        'val_dataloader.dataset.data_prefix.img_path'
    ]
