"""Configs that stand as text in a checkpoint, read without running them.

MMEngine's Runner hands ``meta['config']`` of the file that it resumes from to
``Config.fromstring``, its inferencer ``meta['cfg']``: the text is a Python program, and they run
it. What MMEngine writes there is a dump of plain values, for which nothing has to be run.
"""

import ast

from mmengine.config import Config
from mmengine.config.config import RESERVED_KEYS


def plain_settings(text: str) -> dict:
    """The settings of a dumped config: ``name = value`` with plain values, whatever else there is.

    Args:
        text (str): Python text such as ``Config.pretty_text``.

    Returns:
        dict: The settings at the top level. One whose value would have to be computed is left out.
    """
    settings = {}
    if not isinstance(text, str):
        return settings
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return settings
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(
                statement.targets[0], ast.Name):
            try:
                settings[statement.targets[0].id] = _value(statement.value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                continue
    return settings


def _value(node: ast.expr):
    """A literal, also with ``dict(key=value)`` in it, and ``range`` as of the old ``gpu_ids``."""
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value)
                for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == 'dict' and len(node.args) < 2 and all(
                item.arg for item in node.keywords):
            first = _value(node.args[0]) if node.args else {}
            return dict(first, **{item.arg: _value(item.value) for item in node.keywords})
        if node.func.id == 'range' and not node.keywords:
            return range(*[_value(item) for item in node.args])
    return ast.literal_eval(node)


def _fromstring(cfg_str: str, file_format: str) -> Config:
    """Stands in for ``Config.fromstring``."""
    if file_format != '.py':
        raise ValueError(f'Config.fromstring: {file_format!r} text is not read here, only the '
                         "'.py' text of checkpoints. Write it to a file, or use "
                         '--trust-checkpoints.')
    settings = plain_settings(cfg_str)
    return Config({key: value for key, value in settings.items() if key not in RESERVED_KEYS})


def forbid_config_code() -> None:
    """Let no ``Config.fromstring`` of this process run what it is given; for programs."""
    Config.fromstring = staticmethod(_fromstring)
