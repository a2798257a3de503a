"""``accelerate``: the operator in place of a network's depth-wise convolutions; ``restore``."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..ops import LargeKernelDWConv2d
from . import choice
from .choice import Seen
from .swap import check_swapped, is_plain_conv, is_swapped, swap, unswap, why_not
from .table import Row, Table

POLICIES = ('estimate', 'measure', 'all')
# The share of PyTorch's time from which on a layer is left alone: estimates and clocks err.
CLEAR = 0.92


def accelerate(model: nn.Module,
               example_inputs: Tensor | Sequence | Mapping | None = None,
               *,
               input_size: Sequence[int] | None = None,
               policy: str = 'estimate',
               inference: bool = False) -> Table:
    """Have the depth-wise convolutions of a network run by `large_kernel_dwconv2d`, in place.

    Those that are ``nn.Conv2d`` with ``groups == in_channels``, stride 1 and zeros beside the map
    become `LargeKernelDWConv2d`, the same objects with the same parameters; results differ by
    rounding. Layers with hooks, parametrizations or a forward of their own stay as they are.
    ``restore`` undoes it; a second call decides anew.

    With an input the network runs once, in evaluation mode, without gradients, and what its layers
    are given decides. A network in training mode is judged by forward and backward pass. Without
    an input no layer's size is known: all that the operator could serve are taken, and the
    operator chooses at each call, PyTorch's convolution included, which then costs some
    microseconds more.

    Args:
        model (nn.Module): The network.
        example_inputs (Tensor | Sequence | Mapping, optional): What to call it with: one input,
            positional or keyword arguments.
        input_size (Sequence[int], optional): ``(N, C, H, W)``, for an input of zeros in the
            network's dtype on its device.
        policy (str): 'estimate' takes the layers for which the operator's estimate is clearly below
            that of PyTorch's convolution, 'measure' times both on random values of the sizes
            seen (so that two calls may differ), 'all' asks for no time. Defaults to 'estimate'.
        inference (bool): Also what deployed networks have here, for inference on a CPU: 1x1
            convolutions as matrix products on channels-last maps, where the input and the policy
            say that it pays, and UperNet's head. These need the mm packages. Defaults to False.

    Returns:
        Table: A `Row` for each layer with groups, and with ``inference`` for each other layer
        that was changed.

    Raises:
        TypeError: If model is no ``nn.Module``, or compiled by ``torch.jit``.
        ValueError: If policy is unknown, lacks sizes, there are two inputs, or parameters are on
            the meta device.
        RuntimeError: If the network does not run on the input.
        ImportError: If ``inference`` lacks the mm packages. Nothing is changed then.
    """
    _check(model, example_inputs, input_size, policy)
    if inference:
        try:
            from .inference import accelerate_inference, pointwise_convs
        except ImportError as error:
            raise ImportError(f'inference=True needs mmengine and mmcv: {error}. Install them, or '
                              'leave it out') from error
    restore(model)
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
             and (module.groups > 1 or isinstance(module, nn.modules.lazy.LazyModuleMixin))}
    reasons = {conv: _why_left(conv) for conv in names}
    asked = example_inputs is not None or input_size is not None
    able = [conv for conv, reason in reasons.items() if reason is None]
    products = pointwise_convs(model) if inference else {}
    calls = _run(model, [*able, *products], example_inputs, input_size) if asked and (
        able or products) else {}
    rows = [_decide(name, conv, reasons[conv], calls.get(conv, []), asked, policy, model.training)
            for conv, name in names.items()]
    layers = list(names)
    for row, conv in zip(rows, layers, strict=True):
        if row.changed:
            swap(conv, LargeKernelDWConv2d, activation=None, backend='auto')
    table = Table(rows)
    if inference:
        table += accelerate_inference(model, products, calls if asked else None, policy)
    return table


def restore(model: nn.Module) -> list[str]:
    """Undo `accelerate`: every layer is what it was, with the weights it has now.

    Args:
        model (nn.Module): The network, or a copy of it.

    Returns:
        list[str]: Names of the layers put back.

    Raises:
        RuntimeError: If a layer was changed again since. Nothing is put back then.
    """
    swapped = {name: module for name, module in model.named_modules() if is_swapped(module)}
    for name, module in swapped.items():
        check_swapped(module, name)
    for module in swapped.values():
        unswap(module)
    return list(swapped)


def _check(model, example_inputs, input_size, policy) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f'accelerate takes an nn.Module, not {type(model).__name__}')
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError('accelerate cannot change a network compiled by torch.jit: accelerate the '
                        'nn.Module, and compile it then')
    if policy not in POLICIES:
        raise ValueError(f'policy must be one of {", ".join(POLICIES)}, not {policy!r}')
    if example_inputs is not None and input_size is not None:
        raise ValueError('give example_inputs or input_size, not both')
    if policy == 'measure' and example_inputs is None and input_size is None:
        raise ValueError("policy='measure' needs sizes to measure: give input_size=(N, C, H, W) or "
                         'example_inputs')
    if input_size is not None and not (
            isinstance(input_size, Sequence) and not isinstance(input_size, str)
            and all(type(size) is int and size > 0 for size in input_size)):
        raise ValueError(f'input_size must be positive numbers (N, C, H, W), not {input_size!r}')
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f'{name} is on the meta device: give the network weights first, as '
                             'with to_empty(device=...) and load_state_dict')


def _why_left(conv: nn.Conv2d) -> str | None:
    """Why a convolution stays whatever its sizes are; None if it need not."""
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
        return 'not initialized: run the network once'
    if conv.groups != conv.in_channels:
        return 'grouped, not depth-wise'
    if not is_plain_conv(conv):
        return f'is a {type(conv).__name__}'
    if tuple(conv.stride) != (1, 1):
        return f'stride {conv.stride[0]}' if len(set(conv.stride)) == 1 else f'stride {conv.stride}'
    if conv.padding_mode != 'zeros':
        return f'padding mode {conv.padding_mode}'
    if not conv.weight.dtype.is_floating_point:
        return f'of dtype {conv.weight.dtype}'
    return why_not(conv)


def _run(model, layers, example_inputs, input_size) -> dict[nn.Module, list[Seen]]:
    """The inputs of some layers while the network runs once."""
    if input_size is not None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        example_inputs = torch.zeros(tuple(input_size), dtype=like.dtype, device=like.device)
    positional, named = (), {}
    if isinstance(example_inputs, Mapping):
        named = example_inputs
    elif isinstance(example_inputs, Tensor):
        positional = (example_inputs, )
    else:
        positional = tuple(example_inputs)
    calls = {layer: [] for layer in layers}

    def see(layer, inputs):
        if inputs and isinstance(inputs[0], Tensor) and (
                seen := Seen.of(inputs[0])) not in calls[layer]:
            calls[layer].append(seen)

    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        for module, _ in modes:
            module.training = False
        # Compiled code passes over hooks.
        with torch.no_grad(), _eagerly():
            model(*positional, **named)
    except Exception as error:  # a network is the user's program
        what = 'input_size' if input_size is not None else 'example_inputs'
        raise RuntimeError(f'the network does not run on {what}: {type(error).__name__}: '
                           f'{str(error).splitlines()[0] if str(error) else ""}. Give what it is '
                           'called with as example_inputs') from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return calls


def _eagerly():
    """Without code of ``torch.compile``; older versions of PyTorch cannot ask for that."""
    stance = getattr(torch.compiler, 'set_stance', None)
    return nullcontext() if stance is None else stance('force_eager')


def _decide(name, conv, reason, calls: list[Seen], asked: bool, policy: str, trained: bool) -> Row:
    kernel = 'x'.join(map(str, conv.kernel_size))
    size = ', '.join(map(str, calls))

    def row(changed, reason):
        return Row(name, kernel, size, changed, reason)

    if reason is not None:
        return row(False, reason)
    if policy == 'all':
        return row(True, 'all asked for')
    if not asked:
        return row(True, 'sizes unknown: the operator chooses at each call')
    if not calls:
        return row(False, 'not called by this input')
    ours = stock = 0.0
    for seen in calls:
        found = choice.measured(conv, seen, trained) if policy == 'measure' else choice.estimated(
            conv, seen, trained)
        if isinstance(found, str):
            if len(calls) == 1:
                return row(False, found)
            continue
        ours, stock = ours + found[0], stock + found[1]
    how = 'measured' if policy == 'measure' else 'estimated'
    if not stock:
        return row(False, "PyTorch's own is estimated to be the fastest")
    if ours > CLEAR * stock:
        return row(False, f"no clear gain: {how} {ours / stock:.2f} of PyTorch's time")
    return row(True, f"{how} {ours / stock:.2f} of PyTorch's time")
