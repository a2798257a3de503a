"""Finding and replacing parts of a config."""

from mmengine.config import Config

from .types import type_names

SYNC_BN = {'SyncBN', 'MMSyncBN', 'SyncBatchNorm', 'NaiveSyncBN'}


def import_in_config(cfg: Config, module: str) -> None:
    """Let the config that the Runner writes to the work dir load classes of ours by itself.

    Args:
        cfg (Config): The full config, changed in place.
        module (str): The module that registers them.
    """
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = names if module in names else [*names, module]
    cfg.custom_imports = imports


def innermost(dataset: dict) -> dict:
    """The dataset inside wrappers such as RepeatDataset and ConcatDataset.

    Args:
        dataset (dict): A dataset config.

    Returns:
        dict: The innermost one, the owner of the pipeline; of several the first.
    """
    return leaves(dataset)[0]


def leaves(dataset: dict) -> list[dict]:
    """The datasets inside wrappers of any depth.

    Args:
        dataset (dict): A dataset config.

    Returns:
        list[dict]: Those that wrap no other.
    """
    inner = dataset.get('datasets') or [dataset.get('dataset')]
    return [leaf for item in inner for leaf in leaves(item)] if inner[0] else [dataset]


def replace_sync_bn(node) -> int:
    """Put ``BN`` wherever a config asks for a synchronized batch norm, at any depth.

    Args:
        node (dict | list): A model config, changed in place.

    Returns:
        int: How many ``type`` entries were changed.
    """
    if isinstance(node, (list, tuple)):
        return sum(replace_sync_bn(item) for item in node)
    if not isinstance(node, dict):
        return 0
    count = sum(replace_sync_bn(value) for value in node.values())
    kind = node.get('type')
    name = kind if isinstance(kind, str) else next(iter(type_names(node, 'MODELS')), '')
    if name.rsplit('.', 1)[-1] in SYNC_BN:
        node['type'] = 'BN'
        count += 1
    return count
