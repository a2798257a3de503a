"""What outside has done to a module: hooks, parametrizations, another class, another forward.

A fast path goes past the ``__call__`` of the modules whose work it does. It may, where the modules
are as built and nobody listens to them (:func:`is_plain`). A merge replaces modules by numbers; it
takes the numbers that they compute with (:func:`value_of`), and refuses those that compute what no
number says (:func:`check_computes`).

PyTorch has no public names for most of what a module can have, so theirs for hooks of gradients and
state dicts, ``torch.compile`` and pruning stand here alone. Tried with PyTorch 2.5.1 and 2.12.1.
"""

import contextlib
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..ops.torch_internals import (
    HOOKS,
    children_of,
    forward_hooks,
    forward_pre_hooks,
    has_forward_hooks,
    parameters_of,
)

_GLOBAL_HOOKS = tuple(f'_global{name}' for name in HOOKS)
_OWN_DICTS = ('_parameters', '_buffers', '_modules', '_non_persistent_buffers_set',
              '_forward_pre_hooks', '_state_dict_hooks', '_load_state_dict_pre_hooks')


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module's work may be done without calling it: nobody would notice.

    Args:
        module (nn.Module): The module.
        *kinds (type): Its class is to be exactly one of these: those that the caller can stand for.

    Returns:
        bool: True if it is, has no hooks (nor have all modules), and no forward of its own. Those
        of its children are not looked at.
    """
    if type(module) not in kinds or any(getattr(torch_module, name) for name in _GLOBAL_HOOKS):
        return False
    if has_forward_hooks(module) or module._backward_hooks or module._backward_pre_hooks:
        return False
    # The compiler looks at forward by itself, and cannot read vars().
    return torch.compiler.is_compiling() or (
        'forward' not in vars(module) and getattr(module, '_compiled_call_impl', None) is None)


def check_computes(module: nn.Module, forwards: Iterable, name: str) -> None:
    """Check that a module that is to be merged computes what its class says, by its numbers alone.

    Args:
        module (nn.Module): The module.
        forwards (Iterable): The functions that its class may have as ``forward``.
        name (str): What the message calls it.

    Raises:
        TypeError: If it has another forward, or hooks that could change what goes in or out. Those
            by which torch.nn.utils computes a weight (pruning, weight and spectral norm) may stay.
    """
    check_forward(module, forwards, name)
    hooks = [*forward_hooks(module).values(),
             *(hook for hook in forward_pre_hooks(module).values() if _computed_by(hook) is None)]
    if hooks:
        raise TypeError(f'cannot merge {name}: it has forward hooks, which may change what it '
                        'computes and would be lost. Remove them, and register them anew on the '
                        'merged network')


def check_forward(module: nn.Module, forwards: Iterable, name: str) -> None:
    """The part of :func:`check_computes` that is not about hooks: those on module stay.

    Args:
        module (nn.Module): The module.
        forwards (Iterable): The functions that its class may have as ``forward``.
        name (str): What the message calls it.

    Raises:
        TypeError: If it has another forward.
    """
    if type(module).forward not in forwards or 'forward' in vars(module):
        raise TypeError(f'cannot merge {name}: a {type(module).__name__} with a forward of its own '
                        'stands there. Merge the network before you replace layers, or put the '
                        'layers back')


@torch.no_grad()
def value_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """The weight, bias or buffer with which a module computes in evaluation mode.

    It is not the attribute where that is computed: a hook of pruning, weight norm or spectral norm
    does it at the next call; a parametrization of spectral norm moves its own state in training.

    Args:
        module (nn.Module): The module; nothing of it is changed.
        name (str): Of the parameter or buffer.

    Returns:
        Tensor, optional: Without gradient. None if the module has none.
    """
    value = None
    for hook in forward_pre_hooks(module).values():
        if _computed_by(hook) == name:
            if isinstance(hook, BasePruningMethod):
                value = hook.apply_mask(module)
            elif isinstance(hook, SpectralNorm):
                value = hook.compute_weight(module, do_power_iteration=False)
            else:
                value = hook.compute_weight(module)
    if value is None:
        if parametrize.is_parametrized(module, name):
            with _evaluated(module.parametrizations):
                value = getattr(module, name)
        else:
            value = getattr(module, name, None)
    return value if value is None else value.detach()


def set_values(module: nn.Module, **values: torch.Tensor) -> None:
    """Give a module parameters of these values in place of all that computed them.

    Args:
        module (nn.Module): Its hooks of pruning, weight norm or spectral norm and its
            parametrizations of these names go; other hooks stay.
        **values (Tensor): By the names of the parameters. They are trained where those from which
            the module computes are.
    """
    trained = any(parameter.requires_grad for parameter in module.parameters())
    if parametrize.is_parametrized(module):
        del children_of(module)['parametrizations']
        module.__class__ = type(module).__bases__[0]
    for hooks in (forward_pre_hooks(module), module._state_dict_hooks,
                  module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if _computed_by(hook) in values or type(hook).__name__.lstrip('_').startswith(
                    'SpectralNorm') or _wraps_spectral_norm(hook):
                del hooks[key]
    for name, value in values.items():
        for tensors in (parameters_of(module), module._buffers):
            for key in [key for key in tensors if key == name or key.startswith(f'{name}_')]:
                del tensors[key]
        vars(module).pop(name, None)  # where the hooks leave what they compute
        parameters_of(module)[name] = nn.Parameter(value, requires_grad=trained)


@contextlib.contextmanager
def unchanged_on_failure(model: nn.Module):
    """Whatever is raised within, also by Ctrl-C, the model is afterwards what it was.

    Its modules, parameters, buffers, attributes and hooks are put back; the numbers within tensors
    are not kept, so they must not be written into.
    """
    kept = [(module, type(module), dict(vars(module)),
             {key: vars(module)[key].copy() for key in _OWN_DICTS if key in vars(module)})
            for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, attributes, dicts in kept:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for key, content in dicts.items():  # the very dicts: handles of hooks point at them
                attributes[key].clear()
                attributes[key].update(content)
        raise


@contextlib.contextmanager
def _evaluated(module: nn.Module):
    modes = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in modes:
            child.training = False
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def _computed_by(hook) -> str | None:
    """The name of what a hook of torch.nn.utils computes before each call; None for others."""
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, (WeightNorm, SpectralNorm)) else None


def _wraps_spectral_norm(hook) -> bool:
    """PyTorch wraps some hooks of a state dict into an object of its own."""
    return type(getattr(hook, 'hook', None)).__name__.startswith('SpectralNorm')
