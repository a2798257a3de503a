"""Do the files of a data set lie as its class expects them?

The codebases find out late, with errors about something else (an empty data set, a class index out
of range). What is looked at here takes seconds on the full data sets: names of files, one label
map, the ends of an annotation file.
"""

import inspect
import json
import mmap
import os
import os.path as osp
import re
from collections.abc import Iterator
from dataclasses import replace

import mmcv
import numpy as np
from mmengine.fileio import list_dir_or_file, list_from_file

from ..config.types import changes_labels, class_of, loads_labels
from ..training.labels import NONE, LabelRule

LISTS_OF_COCO = ('images', 'annotations', 'categories')
MOST_OF_CATEGORIES = 2**24  # bytes; those of LVIS take 2**19


def layout_problems(dataset: dict, name: str, scope: str,
                    rules: tuple[LabelRule, ...] = ()) -> Iterator[str]:
    """Find what is wrong with the files of one data set, all of which exist.

    Args:
        dataset (dict): Config of a segmentation data set with label maps, of a COCO-like one, or of
            a classification data set with class folders or a list. Others are passed over.
        name (str): Its dotted name in the config.
        scope (str): The codebase.
        rules (tuple[LabelRule, ...]): The labels that the model can do with, from
            :func:`mmreplk.training.labels.label_rules`. Defaults to none, those of the data set
            and 255.

    Yields:
        str: What is wrong: the argument, the file and, where it is known, the remedy.
    """
    kind = class_of(dataset, 'DATASETS', scope)
    if not inspect.isclass(kind):
        return
    for base in kind.__mro__:
        if base.__name__ in CHECKS:
            # A class that reads its files in its own way knows what it needs.
            if kind.load_data_list is base.load_data_list:
                check = CHECKS[base.__name__]
                yield from (check(dataset, name, kind, scope, rules) if check is _segmentation
                            else check(dataset, name, kind))
            return


def _default(kind: type, argument: str):
    """The default of an argument that may be that of a base class."""
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(argument)
        if parameter is not None:
            return parameter.default
    return None


def _classes(dataset: dict, kind: type) -> tuple:
    return tuple((dataset.get('metainfo') or {}).get('classes')
                 or kind.METAINFO.get('classes') or ())


def _path(dataset: dict, *parts: str) -> str:
    return osp.expanduser(osp.join(dataset.get('data_root') or '', *parts))


# -- Segmentation: an image and a label map of the same name -------------------------------------

def _segmentation(dataset: dict, name: str, kind: type, scope: str,
                  rules: tuple[LabelRule, ...]) -> Iterator[str]:
    prefix = dataset.get('data_prefix') or {}
    images, labels = (_path(dataset, prefix.get(key) or '') for key in ('img_path', 'seg_map_path'))
    suffix, label_suffix = (dataset.get(key, _default(kind, key))
                            for key in ('img_suffix', 'seg_map_suffix'))
    listed = dataset.get('ann_file')
    if listed and osp.isfile(_path(dataset, listed)):
        names = [line.strip() for line in list_from_file(_path(dataset, listed))]
    else:
        names = [file[:-len(suffix)] for file in _files(images) if file.endswith(suffix)]
    if not names:
        yield f'{name}.data_prefix.img_path: no *{suffix} in {images!r}. {_others(images)}'
        return
    if not prefix.get('seg_map_path') or not loads_labels(dataset.get('pipeline'), scope):
        return
    there = set(_files(labels))
    missing = sorted(item for item in names if item + label_suffix not in there)
    if missing:
        yield (f'{name}.data_prefix.seg_map_path: {len(missing)} of {len(names)} images have no '
               f'label in {labels!r}, such as {missing[0] + label_suffix!r}. '
               f'{_label_hint(missing[0], label_suffix, there) or _others(labels)}')
        return
    if not changes_labels(dataset.get('pipeline'), scope):
        yield from _label_problems(osp.join(labels, names[0] + label_suffix), dataset, name, kind,
                                   rules)


def _files(folder: str) -> list[str]:
    return list(list_dir_or_file(folder, list_dir=False, recursive=True))


def _others(folder: str) -> str:
    files = sorted(_files(folder))
    return f'It holds {files[0]!r}.' if files else 'It is empty.'


def _label_hint(stem: str, suffix: str, there: set[str]) -> str:
    if suffix == '_gtFine_labelTrainIds.png' and f'{stem}_gtFine_labelIds.png' in there:
        return ('Cityscapes comes without them: pip install cityscapesscripts, and csCreateTrainId'
                'LabelImgs makes them.')
    return ''


def _label_problems(path: str, dataset: dict, name: str, kind: type,
                    rules: tuple[LabelRule, ...]) -> Iterator[str]:
    try:
        label = mmcv.imread(path, flag='unchanged', backend='pillow')
    except OSError:  # no picture at all
        label = None
    if label is None or label.ndim != 2:
        yield (f'{name}.data_prefix.seg_map_path: {path!r} is no label map: it needs one channel '
               'with a class number for each pixel.')
        return
    count = len(kind.METAINFO.get('classes') or _classes(dataset, kind))
    shifted = dataset.get('reduce_zero_label', _default(kind, 'reduce_zero_label'))
    shifted = shifted or 'reduce_zero_label=True' in _as_code(dataset.get('pipeline'))
    if not rules and count:
        rules = (LabelRule(count, frozenset((NONE, ))), )
    mapped = _as_loaded(label, dataset, kind, shifted)
    for rule in rules:
        wrong = label[np.isin(mapped, rule.wrong(mapped))]
        if wrong.size:
            # What the file may hold, before label 0 becomes none and the others one less.
            shown = replace(rule, limit=rule.limit + bool(shifted))
            yield (f'{name}.data_prefix.seg_map_path: {path!r} has the label {wrong.min()}, but '
                   f'those of {kind.__name__} are {shown}.')
            return


def _as_loaded(label: np.ndarray, dataset: dict, kind: type, shifted: bool) -> np.ndarray:
    """The labels as MMSegmentation's LoadAnnotations gives them to the model."""
    label = label.astype(np.int64)
    if shifted:  # in this order there: 0 becomes 255, then all are one less, then 254 becomes 255
        label = np.where(label == 0, NONE, label) - 1
        label = np.where(label == NONE - 1, NONE, label)
    names, wanted = kind.METAINFO.get('classes'), (dataset.get('metainfo') or {}).get('classes')
    if names and wanted and tuple(names) != tuple(wanted):
        numbers = {old: wanted.index(item) if item in wanted else NONE
                   for old, item in enumerate(names)}
        label = np.vectorize(lambda value: numbers.get(value, value), otypes=[np.int64])(label)
    return label


def _as_code(pipeline) -> str:
    return re.sub(r"['\"](\w+)['\"]: ", r'\1=', str(pipeline))


# -- Detection: one JSON file ----------------------------------------------------------------------

def _coco(dataset: dict, name: str, kind: type) -> Iterator[str]:
    path = _path(dataset, dataset.get('ann_file') or '')
    if not osp.isfile(path):
        return
    argument = f'{name}.ann_file: {path!r}'
    if not osp.getsize(path):
        yield f'{argument} is empty.'
        return
    # The file of COCO's training images has 470 MB: it is searched, not parsed.
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        lists = {key: _list_in(text, key) for key in LISTS_OF_COCO}
        absent = [key for key, start in lists.items() if start is None]
        if absent:
            yield (f'{argument} is no file of instances in COCO\'s format: it has no list '
                   f'{", ".join(map(repr, absent))}.')
            return
        if not text[max(0, len(text) - 64):].rstrip().endswith(b'}'):
            yield f'{argument} is cut off: it does not end in a brace.'
            return
        yield from _category_problems(text, lists['categories'], argument, dataset, kind)
        if 'with_mask=True' in _as_code(dataset.get('pipeline')) and (
                text.find(b'"segmentation"') < 0):
            yield f'{argument} has no segmentation, but the pipeline loads masks.'
        first = re.compile(rb'"file_name"\s*:\s*("[^"]+")').search(text, lists['images'])
        first = json.loads(first[1]) if first else None
    prefix = (dataset.get('data_prefix') or {}).get('img') or ''
    if first and not osp.isfile(_path(dataset, prefix, first)):
        yield (f'{name}.data_prefix.img: {_path(dataset, prefix)!r} lacks the image {first!r} that '
               f'{path!r} names.')


def _list_in(text: mmap.mmap, key: str) -> int | None:
    """Where the list of a key begins. Within a JSON string its quotes would bear backslashes."""
    found = re.compile(rf'"{key}"\s*:\s*\['.encode()).search(text)
    return found.end() - 1 if found else None


def _category_problems(text: mmap.mmap, start: int, argument: str, dataset: dict,
                       kind: type) -> Iterator[str]:
    try:
        categories, _ = json.JSONDecoder().raw_decode(
            text[start:start + MOST_OF_CATEGORIES].decode(errors='ignore'))
        names = {item['name'] for item in categories}
    except (ValueError, TypeError, KeyError):
        yield f'{argument}: its categories are no list of ids and names.'
        return
    classes = _classes(dataset, kind)
    if classes and not names & set(classes):
        yield (f'{argument} has none of the {len(classes)} classes, such as {classes[0]!r}: its '
               f'categories are {", ".join(sorted(names)[:5]) or "none"}. Name them in metainfo.')


# -- Classification: class folders, or a list of images --------------------------------------------

def _classification(dataset: dict, name: str, kind: type) -> Iterator[str]:
    split, prefix = dataset.get('split'), dataset.get('data_prefix') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    argument = f'{name}.data_prefix'
    listed = dataset.get('ann_file') or ''
    if split:
        argument, prefix = (argument, prefix) if prefix else (f'{name}.data_root', split)
        usual = osp.join('meta', f'{split}.txt')
        listed = listed or (usual if osp.isfile(_path(dataset, usual)) else '')
    folder = _path(dataset, prefix)
    if not osp.isdir(folder):
        yield f'{argument}: there is no folder {folder!r}.'
    elif listed:
        yield from _list_problems(_path(dataset, listed), folder, dataset, name, kind)
    elif dataset.get('with_label', split != 'test'):
        yield from _folder_problems(folder, argument, dataset, kind)


def _list_problems(path: str, folder: str, dataset: dict, name: str, kind: type) -> Iterator[str]:
    argument = f'{name}.ann_file: {path!r}'
    lines = [line for line in list_from_file(path) if line.strip()]
    if not lines:
        yield f'{argument} is empty.'
        return
    image, _, label = lines[0].strip().rpartition(' ')
    if not dataset.get('with_label', True):
        image, label = lines[0].strip(), '0'
    count = len(_classes(dataset, kind))
    if not image or not label.isdigit() or (count and int(label) >= count):
        labels = f' from 0 to {count - 1}' if count else ''
        yield (f'{argument} begins with {lines[0].strip()!r}; every line needs an image and the '
               f'number of its class{labels}, such as "n01440764/n01440764_18.JPEG 0".')
    elif not osp.isfile(osp.join(folder, image)):
        yield f'{argument} names {image!r}, which is not in {folder!r}.'


def _folder_problems(folder: str, argument: str, dataset: dict, kind: type) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = [entry.is_dir() for entry in entries]
    count, classes = sum(found), _classes(dataset, kind)
    if not count:
        what = 'images, but no folder for each class' if found else 'nothing'
        yield (f'{argument}: {folder!r} holds {what}. Sort the images into folders, or give a list '
               'of them with their classes as ann_file (of ImageNet meta/train.txt, meta/val.txt).')
    elif classes and count != len(classes):
        yield (f'{argument}: {folder!r} has {count} class folders, but {kind.__name__} has '
               f'{len(classes)} classes.')


CHECKS = {
    'BaseSegDataset': _segmentation,
    'CocoDataset': _coco,
    'CustomDataset': _classification,
}
