"""Weights of a network for color images, for one whose images have other channels.

``init_cfg=dict(type='Pretrained', checkpoint=FILE, in_channels='adapt')`` does what timm's
``in_chans`` does: of the first convolution, the kernels of red, green and blue are repeated in
turn, and scaled by ``3 / channels``, so that its outputs keep their size; for one channel they are
summed up, so that a gray image gives what it gave as a color image.
"""

from collections.abc import Callable

import torch
from torch import nn

ADAPT = 'adapt'
COLORS = 3


def first_conv(network: nn.Module) -> str | None:
    """The name of the weight of a network's first convolution."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return f'{name}.weight' if name else 'weight'
    return None


def adapted(network: nn.Module, state: dict[str, torch.Tensor], in_channels: str | None,
            tell: Callable[[str], None] | None = None) -> dict[str, torch.Tensor]:
    """Weights with a first convolution for as many channels as a network has, if that is wanted.

    Args:
        network (nn.Module): The network; it may be on 'meta'.
        state (dict[str, Tensor]): The weights, by the network's names.
        in_channels (str, optional): 'adapt', or None to leave them as they are.
        tell (Callable, optional): Called with a line about what was done. Defaults to None.

    Returns:
        dict[str, Tensor]: The weights; the first convolution is ``(O, channels, Kh, Kw)``, in its
        dtype.

    Raises:
        ValueError: If in_channels is something else, or the weights are for other than three
            channels. The message ends a sentence that begins with the file.
    """
    if in_channels is None:
        return state
    if in_channels != ADAPT:
        raise ValueError(f'cannot be taken: in_channels={in_channels!r} in init_cfg must be '
                         f"'{ADAPT}', or be left out. The channels of the network are an argument "
                         'of its own')
    name = first_conv(network)
    found, channels = _channels(network, state, name)
    if found == channels:
        return state
    if found != COLORS:
        raise ValueError(f"cannot be taken: in_channels='{ADAPT}' takes weights for {COLORS} "
                         f'channels, but {name} is for {found}, and the network has {channels}')
    if tell is not None:
        how = 'summed up' if channels == 1 else f'repeated and scaled by {COLORS}/{channels}'
        tell(f'{name}: the weights for {COLORS} channels were {how} for the {channels} of the '
             'network')
    return {**state, name: _for_channels(state[name], channels)}


def channels_hint(network: nn.Module, state: dict[str, torch.Tensor]) -> str:
    """What to add to a refusal: the way out where the first convolution has other channels.

    Args:
        network (nn.Module): The network; it may be on 'meta'.
        state (dict[str, Tensor]): The weights, by the network's names.

    Returns:
        str: A sentence without its full stop, after one; or nothing.
    """
    found, channels = _channels(network, state, first_conv(network))
    if found == channels or found != COLORS:
        return ''
    return (f'. It is for images of {COLORS} channels, the network for {channels}: '
            f"in_channels='{ADAPT}' beside the checkpoint, as in backbone.init_cfg="
            f"dict(type='Pretrained', checkpoint=FILE, in_channels='{ADAPT}'), repeats and scales "
            'its first convolution')


def _channels(network, state, name) -> tuple[int | None, int | None]:
    """Input channels that the weights and the network have; equal where they say nothing."""
    own = network.state_dict()
    if name not in state or name not in own:
        return None, None
    new, old = state[name], own[name]
    alike = new.dim() == old.dim() == 4 and (
        (new.shape[0], *new.shape[2:]) == (old.shape[0], *old.shape[2:]))
    return (new.shape[1], old.shape[1]) if alike else (None, None)


def _for_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    exact = weight.double()
    if channels == 1:
        return exact.sum(1, keepdim=True).to(weight.dtype)
    turns = -(-channels // COLORS)
    repeated = exact.repeat(1, turns, 1, 1)[:, :channels]
    return (repeated * (COLORS / channels)).to(weight.dtype)
