"""Which labels a model can be trained or evaluated with: asked before a run and during it.

In doubt a label is allowed. What MMSegmentation's losses do with other labels is said at each.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config

from ..config.types import class_of, type_names

NONE = 255  # what stands for no class by default, in heads, metrics and data sets


@dataclass(frozen=True)
class LabelRule:
    """The labels that one loss, or the evaluation, can do with.

    Attributes:
        limit (int): Labels from 0 to below it are classes.
        ignored (frozenset[int]): Other labels that are passed over.
        negative (bool): Whether every negative label is passed over. Defaults to False.
    """
    limit: int
    ignored: frozenset = frozenset()
    negative: bool = False

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """The labels, each once and sorted, that are neither a class nor passed over."""
        labels = np.unique(labels)
        low = np.zeros_like(labels, bool) if self.negative else labels < 0
        found = labels[low | (labels >= self.limit)]
        return found[~np.isin(found, list(self.ignored))] if self.ignored else found

    def __str__(self) -> str:
        none = f', and {", ".join(map(str, sorted(self.ignored)))} for none' if self.ignored else ''
        return f'0 to {self.limit - 1}{none}'


def label_rules(cfg: Config, phase: str, dataset_ignores: frozenset = frozenset()
                ) -> tuple[LabelRule, ...]:
    """Decide which labels a run of a config can do with.

    Args:
        cfg (Config): The full config.
        phase (str): ``train``, ``val`` or ``test``.
        dataset_ignores (frozenset[int]): What the data set says of itself (``ignore_index``); the
            losses do not know of it. Defaults to none.

    Returns:
        tuple[LabelRule, ...]: Each must be kept to; none if any label will do, or it is unknown.
    """
    scope = cfg.get('default_scope')
    if scope == 'mmdet':  # the data set itself maps the file's labels to its classes
        return ()
    model = cfg.get('model') or {}
    model = model.get('module') or model  # behind test-time augmentation
    rules = tuple(_head_rules(model, scope))
    if phase == 'train' or scope != 'mmseg' or not rules:
        return rules
    # Nothing fails in an evaluation; what any part of the config calls none is meant as none.
    ignored = frozenset((NONE, )).union(
        dataset_ignores, ignored_by(cfg.get(f'{phase}_evaluator')), ignored_by(model),
        *(rule.ignored for rule in rules))
    return (LabelRule(min(rule.limit for rule in rules), ignored, negative=True), )


def ignored_by(node) -> frozenset[int]:
    """What the parts of a config, at any depth, call no class.

    Args:
        node (dict | list | None): A part of a config.

    Returns:
        frozenset[int]: Every ``ignore_index`` in it.
    """
    return frozenset(_indices(node))


def _indices(node) -> Iterator[int]:
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _indices(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ('ignore_index', 'ignore_label') and isinstance(value, int):
                yield value
            elif isinstance(value, (dict, list, tuple)):
                yield from _indices(value)


def _head_rules(model: dict, scope: str) -> Iterator[LabelRule]:
    for key in ('decode_head', 'head', 'auxiliary_head'):
        heads = model.get(key) or ()
        for head in heads if isinstance(heads, (list, tuple)) else (heads, ):
            count = head.get('num_classes')
            if not isinstance(count, int):
                continue
            if key == 'head':
                yield LabelRule(count, frozenset((NONE, -100)))
            elif key == 'decode_head' or _has_usual_losses(head, scope):
                yield from _loss_rules(head, count, scope)


def _has_usual_losses(head: dict, scope: str) -> bool:
    """Whether its losses are those of ``loss_decode``, taken of the labels as they are."""
    kind = class_of(head, 'MODELS', scope)
    base = next((base for base in getattr(kind, '__mro__', ())
                 if base.__name__ == 'BaseDecodeHead'), None)
    return base is not None and kind.loss_by_feat is base.loss_by_feat


def _default(kind, argument: str, fallback):
    """The default of an argument that may be that of a base class."""
    for base in getattr(kind, '__mro__', ()):
        found = inspect.signature(base.__init__).parameters.get(argument)
        if found is not None and found.default is not found.empty:
            return found.default
    return fallback


def _loss_rules(head: dict, count: int, scope: str) -> Iterator[LabelRule]:
    kind = class_of(head, 'MODELS', scope)
    ignored = head.get('ignore_index', _default(kind, 'ignore_index', NONE))
    channels = head.get('out_channels') or count
    losses = head.get('loss_decode') or _default(kind, 'loss_decode', None) or dict(
        type='CrossEntropyLoss')
    for loss in losses if isinstance(losses, (list, tuple)) else (losses, ):
        names = type_names(loss, 'MODELS', scope)
        none = frozenset([ignored] if isinstance(ignored, int) else [])
        if 'CrossEntropyLoss' in names and not loss.get('use_mask'):
            # An index out of range without the sigmoid; with it an index of the one-hot labels,
            # where negative labels are masked. One channel tells 0 from 1.
            sigmoid = bool(loss.get('use_sigmoid'))
            yield LabelRule(2 if sigmoid and channels == 1 else channels, none, negative=sigmoid)
        elif 'FocalLoss' in names:  # F.one_hot of one class more, which is background
            yield LabelRule(channels + 1, none)
        elif 'OhemCrossEntropy' in names:  # has a number of its own, and does not ask the head
            yield LabelRule(channels, frozenset([loss.get('ignore_label', NONE)]))
        elif {'TverskyLoss', 'HuasdorffDisstanceLoss'} & set(names):
            # They clamp, so that another label counts as the last class; ignored by their own.
            own = loss.get('ignore_index', NONE)
            yield LabelRule(channels, frozenset([own] if isinstance(own, int) else []) | none)
        # Dice and Lovasz take other labels for no class; the losses of others are unknown.
