"""Which class a ``type`` in a config stands for, in whichever way it is written.

MMEngine builds from a bare name (``'OptimWrapper'``), a name with its scope
(``'mmengine.OptimWrapper'``), the path of a class in its module, as it dumps pure-Python configs, a
class or function, and the stand-in for one that has not been imported yet (``LazyObject``). Whoever
asks what a part of a config is, asks here.
"""

from importlib import import_module

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.model import PretrainedInit

CODEBASES = ('mmseg', 'mmdet', 'mmpretrain')


def resolve_type(kind, registry: str, scope: str | None = None):
    """Find what a ``type`` stands for.

    Args:
        kind (str | type | Callable | LazyObject | None): The ``type``.
        registry (str): The registry that would build it, such as ``'MODELS'``.
        scope (str, optional): The config's ``default_scope``. Defaults to None, MMEngine's own.

    Returns:
        type | Callable | None: The registered class or function; None if it is unknown.
    """
    if isinstance(kind, (LazyAttr, LazyObject)):
        kind = kind.build()
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    for package in filter(None, dict.fromkeys((scope, 'mmengine'))):
        try:
            found = getattr(import_module(f'{package}.registry'), registry).get(kind)
        except Exception:  # of a package that is imported for it, or a name that is none
            continue
        if found is not None:
            return found
    return None


def scope_of(model: dict) -> str | None:
    """The codebase of a model that a config names as a class, for configs without default_scope.

    Args:
        model (dict): The model's config.

    Returns:
        str | None: Such as ``'mmseg'``; None where the ``type`` is a bare name, or of no codebase.
    """
    kind = model.get('type')
    if isinstance(kind, str) and '.' not in kind:
        return None
    package = getattr(class_of(model, 'MODELS'), '__module__', '').partition('.')[0]
    return package if package in CODEBASES else None


def class_of(node, registry: str, scope: str | None = None):
    """Find the class of a part of a config.

    Args:
        node (dict | None): The part.
        registry (str): As of :func:`resolve_type`.
        scope (str, optional): As of :func:`resolve_type`.

    Returns:
        type | Callable | None: The class or function; None if there is none or it is unknown.
    """
    return resolve_type(node.get('type'), registry, scope) if isinstance(node, dict) else None


def type_names(node, registry: str, scope: str | None = None) -> tuple[str, ...]:
    """Name the class of a part of a config and its base classes.

    Args:
        node (dict | None): The part.
        registry (str): As of :func:`resolve_type`.
        scope (str, optional): As of :func:`resolve_type`.

    Returns:
        tuple[str, ...]: Names without modules, the class's own first. Of an unknown ``type`` the
        last part of its name; empty if there is none.
    """
    found = class_of(node, registry, scope)
    if found is None:
        kind = node.get('type') if isinstance(node, dict) else None
        return (kind.rpartition('.')[2], ) if isinstance(kind, str) else ()
    own = getattr(found, '__name__', type(found).__name__)
    return (own, *(base.__name__ for base in getattr(found, '__mro__', ())[1:]))


def is_pretrained(init) -> bool:
    """Whether an ``init_cfg`` loads weights from a file.

    Args:
        init (dict | None): One ``init_cfg``, not a list.

    Returns:
        bool: True for MMEngine's ``Pretrained`` and classes derived from it, as ours.
    """
    found = class_of(init, 'WEIGHT_INITIALIZERS')
    return isinstance(found, type) and issubclass(found, PretrainedInit)


def split_init_cfg(init_cfg) -> tuple[list[dict], list[dict]]:
    """Part the rules that initialize a module from the files that it starts from.

    Args:
        init_cfg (dict | list[dict] | None): The ``init_cfg`` of a module.

    Returns:
        tuple[list[dict], list[dict]]: The rules, and those that :func:`is_pretrained`.
    """
    cfgs = list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg] if init_cfg else []
    return ([cfg for cfg in cfgs if not is_pretrained(cfg)],
            [cfg for cfg in cfgs if is_pretrained(cfg)])


def is_label_loader(step, scope: str | None = None) -> bool:
    """Whether a transform of a pipeline reads annotations.

    Args:
        step (dict): The transform.
        scope (str, optional): As of :func:`resolve_type`.

    Returns:
        bool: True of ``LoadAnnotations``, those named after it, and those derived from it.
    """
    return any('LoadAnnotations' in name for name in type_names(step, 'TRANSFORMS', scope))


def changes_labels(pipeline, scope: str | None = None) -> bool:
    """Whether a pipeline may make other numbers of the labels in the files, as far as one can tell.

    Args:
        pipeline (list | dict | None): The pipeline.
        scope (str, optional): As of :func:`resolve_type`.

    Returns:
        bool: True if a transform at any depth is none of the codebases'.
    """
    if isinstance(pipeline, (list, tuple)):
        return any(changes_labels(item, scope) for item in pipeline)
    if not isinstance(pipeline, dict):
        return False
    if 'type' in pipeline:
        found = class_of(pipeline, 'TRANSFORMS', scope)
        if getattr(found, '__module__', '').partition('.')[0] not in (
                'mmcv', 'mmengine', 'mmreplk', *CODEBASES):
            return True
    return any(changes_labels(value, scope) for value in pipeline.values())


def loads_labels(pipeline, scope: str | None = None) -> bool:
    """Whether a transform at any depth of a pipeline reads annotations.

    Args:
        pipeline (list | dict | None): The pipeline.
        scope (str, optional): As of :func:`resolve_type`.

    Returns:
        bool: True if one is as :func:`is_label_loader` asks for.
    """
    if isinstance(pipeline, (list, tuple)):
        return any(loads_labels(item, scope) for item in pipeline)
    if not isinstance(pipeline, dict):
        return False
    return is_label_loader(pipeline, scope) or any(
        loads_labels(value, scope) for value in pipeline.values())
