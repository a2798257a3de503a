"""Do the files exist that the datasets of a config read, and do they lie as expected?

Knows the arguments that the datasets of all three codebases share: ``data_root``, ``ann_file`` and
``data_prefix``, at any depth of wrappers (``dataset``, ``datasets``).
"""

import os.path as osp
from collections.abc import Iterator

from mmengine.config import Config

from ..config.types import loads_labels, type_names
from ..paths import is_remote
from ..training.labels import ignored_by, label_rules
from .data_layouts import layout_problems

# These fetch their files themselves, unless told not to.
DOWNLOADING = {'CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST'}
LOCAL_BACKENDS = {None, 'local', 'disk', 'LocalBackend'}


def _texts(value, name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of a text, or of the texts in a list or dict."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f'{name}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f'{name}.{index}')


def _reads_labels(dataset: dict, scope: str | None) -> bool:
    return 'pipeline' not in dataset or loads_labels(dataset['pipeline'], scope)


def _is_looked_for(dataset: dict) -> bool:
    """Whether its files have to be on this machine already."""
    backend = (dataset.get('backend_args') or {}).get('backend')
    fetches = DOWNLOADING & set(type_names(dataset, 'DATASETS')[:1])
    if backend not in LOCAL_BACKENDS or (fetches and dataset.get('download', True)):
        return False
    return not is_remote(str(dataset.get('data_root') or ''))


def _missing_of_dataset(dataset: dict, name: str, scope: str | None) -> Iterator[tuple[str, str]]:
    root = dataset.get('data_root') or ''
    root = root if isinstance(root, str) else ''
    children = [*_texts(dataset.get('ann_file'), f'{name}.ann_file')]
    children += _texts(dataset.get('data_prefix'), f'{name}.data_prefix')
    if not _reads_labels(dataset, scope):
        # A test set without labels names the folder that it would have.
        children = [item for item in children if not item[0].endswith('.seg_map_path')]
    # The root stands for itself only where nothing below it is named: absolute paths do not use it.
    paths = [(argument, osp.join(root, text)) for argument, text in children if text]
    if root and not paths:
        paths = [(f'{name}.data_root', root)]
    root_is_missing = root and not osp.exists(osp.expanduser(root))
    for argument, path in paths:
        if is_remote(path) or osp.exists(osp.expanduser(path)):
            continue
        if root_is_missing and path.startswith(root):
            yield f'{name}.data_root', root
            return
        yield argument, path


def _local_datasets(node, name: str) -> Iterator[tuple[str, dict]]:
    """Yield (dotted name, config) of the local data sets in a config with wrappers or lists."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _local_datasets(item, f'{name}.{index}')
    elif isinstance(node, dict):
        for key in ('dataset', 'datasets'):
            if key in node:
                yield from _local_datasets(node[key], f'{name}.{key}')
        if {'data_root', 'ann_file', 'data_prefix'} & set(node) and _is_looked_for(node):
            yield name, node


def missing_files(node, name: str, scope: str | None = None) -> Iterator[tuple[str, str]]:
    """Find what the datasets in a part of a config read and what is not there.

    Args:
        node (dict | list): A dataset config or a list of them, wrappers included.
        name (str): Its dotted name.
        scope (str, optional): The codebase. Defaults to None, MMEngine's own names.

    Yields:
        tuple[str, str]: The dotted name of the argument, and the missing path.
    """
    for inner, dataset in _local_datasets(node, name):
        yield from _missing_of_dataset(dataset, inner, scope)


def _missing_of_evaluator(node, name: str) -> Iterator[tuple[str, str]]:
    """Yield the annotation files that metrics read themselves, as CocoMetric does."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _missing_of_evaluator(item, f'{name}.{index}')
    elif isinstance(node, dict):
        yield from _missing_of_evaluator(node.get('metrics'), f'{name}.metrics')
        for argument, path in _texts(node.get('ann_file'), f'{name}.ann_file'):
            if path and not is_remote(path) and not osp.exists(osp.expanduser(path)):
                yield argument, path


def check_data(cfg: Config, phases: tuple[str, ...]) -> None:
    """Check that the data of the given phases are there and lie as their classes expect.

    Args:
        cfg (Config): The full config.
        phases (tuple[str, ...]): Of ``train``, ``val`` and ``test``; one that the config does not
            have is passed over.

    Raises:
        FileNotFoundError: If anything is missing. Lists it all, with the arguments that name it.
        ValueError: If files do not fit each other or the data set. Lists it all.
    """
    missing, scope = [], cfg.get('default_scope')
    loaders = {f'{phase}_dataloader.dataset': loader['dataset'] for phase in phases
               if (loader := cfg.get(f'{phase}_dataloader')) is not None}
    for name, dataset in loaders.items():
        missing += missing_files(dataset, name, scope)
    for phase in phases:
        if cfg.get(f'{phase}_dataloader') is not None:
            missing += _missing_of_evaluator(cfg.get(f'{phase}_evaluator'), f'{phase}_evaluator')
    if missing:
        lines = [f'  {name}: {path!r} ({osp.abspath(path)})' for name, path in missing]
        options = ' '.join(f'{name}=PATH' for name, _ in missing)
        raise FileNotFoundError('data are missing:\n' + '\n'.join(lines) +
                                f'\nPut or link them there, or say where they are: --cfg-options '
                                f'{options}')
    problems = [
        problem for name, dataset in loaders.items()
        for inner, leaf in _local_datasets(dataset, name)
        for problem in layout_problems(leaf, inner, scope, label_rules(
            cfg, name.partition('_')[0], ignored_by([leaf])))
    ]
    if problems:
        raise ValueError('data do not lie as their data set needs them:\n  '
                         + '\n  '.join(problems))
