"""Which weights a network lacks, which it has no place for, and which are of another shape."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..ops.torch_internals import children_of

# Of batch norms; files of old PyTorch lack them, and nothing is computed from them.
_COUNTER = 'num_batches_tracked'


class Misfit(NamedTuple):
    """How weights differ from those of a network; empty, and so false, if they fit.

    Attributes:
        missing (list[str]): Missing keys; counters of batch norms are never reported.
        unexpected (list[str]): Unexpected keys.
        shapes (list[str]): One phrase per shape mismatch, which begins with the key.
    """
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def __bool__(self) -> bool:
        return any(self)

    def describe(self, limit: int = 3) -> str:
        """One phrase that names at most ``limit`` keys of each kind."""
        parts = [
            f'{len(keys)} {word} ({", ".join(keys[:limit])}{", ..." if len(keys) > limit else ""})'
            for word, keys in (('missing', self.missing), ('unexpected', self.unexpected),
                               ('of other shape', self.shapes)) if keys
        ]
        return '; '.join(parts)


def compare(own: nn.Module | Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
            ) -> Misfit:
    """Compare weights with those that a network has.

    Args:
        own (nn.Module | Mapping[str, Tensor]): A network on 'meta', into which the weights are
            loaded, so that modules which rename what they read have their say; or a state dict, for
            a comparison key by key.
        state (Mapping[str, Tensor]): The weights, on 'meta' for a network.

    Returns:
        Misfit: How they differ.
    """
    missing, unexpected, failed = _load(own, state) if isinstance(own, nn.Module) else (
        [key for key in own if key not in state], [key for key in state if key not in own], True)
    tensors = own.state_dict() if isinstance(own, nn.Module) else own
    shapes = [f'{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}'
              for key, value in tensors.items()
              if failed and key in state and state[key].shape != value.shape]
    return Misfit([key for key in missing if not key.endswith(_COUNTER)], unexpected, shapes)


def _load(network: nn.Module, state: Mapping[str, torch.Tensor]
          ) -> tuple[list[str], list[str], bool]:
    """Load as PyTorch does: missing and unexpected keys, and whether a tensor was refused."""
    missing, unexpected, errors = [], [], []

    def load(module, local, prefix=''):
        module._load_from_state_dict(local, prefix, {}, True, missing, unexpected, errors)
        for name, child in children_of(module).items():
            if child is not None:
                start = f'{prefix}{name}.'
                load(child, {key: value for key, value in local.items() if key.startswith(start)},
                     start)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # nothing is copied to 'meta', as intended
        load(network, dict(state))
    return missing, unexpected, bool(errors)
