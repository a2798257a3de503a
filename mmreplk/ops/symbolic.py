"""What tools that read a network's Python code, instead of running it, are to find.

``torch.fx`` runs the code once with a ``Proxy`` in place of the image: it has no shape, dtype or
device to decide anything by. Fast paths are not taken then, and the operator becomes one call in
the graph, which decides when the graph runs. ``torch.jit.script`` compiles the source.
"""

import torch
from torch import nn


def is_symbolic(x) -> bool:
    """Whether x stands for a tensor in a graph that ``torch.fx.symbolic_trace`` draws."""
    return isinstance(x, torch.fx.Proxy)


def refuse_script(module: nn.Module):
    """The ``__prepare_scriptable__`` (PyTorch's hook) of a module that cannot be compiled.

    Raises:
        NotImplementedError: Always, with what to do instead.
    """
    raise NotImplementedError(
        f'torch.jit.script cannot compile {type(module).__name__}: use torch.jit.trace(network, '
        'image) on the network in evaluation mode, which gives a graph of plain convolutions')
