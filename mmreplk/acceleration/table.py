"""What `accelerate` did, layer by layer."""

from collections import Counter
from typing import NamedTuple


class Row(NamedTuple):
    """One layer.

    Attributes:
        name (str): Its name in the network.
        kernel (str): ``'7x7'``; the kind of a layer that has none.
        size (str): The inputs seen, ``'1x96x56x56'``; empty if none was.
        changed (bool): Whether the layer runs faster code now.
        reason (str): Why, or why not.
    """
    name: str
    kernel: str
    size: str
    changed: bool
    reason: str


class Table(list):
    """Rows, one for each layer that was looked at; printed as columns that line up."""

    @property
    def changed(self) -> list[str]:
        """Names of the layers that run faster code now."""
        return [row.name for row in self if row.changed]

    def summary(self) -> str:
        """One line, for a log."""
        kernels = Counter(row.kernel for row in self if row.changed)
        reasons = Counter(row.reason.split(':')[0] for row in self if not row.changed)
        line = f'accelerated {len(self.changed)} of {len(self)} layers'
        if kernels:
            line += ' (' + ', '.join(f'{n} of {kernel}' for kernel, n in kernels.items()) + ')'
        if reasons:
            line += '; left: ' + ', '.join(f'{n} ({why})' for why, n in reasons.items())
        return line

    def __str__(self) -> str:
        lines = [('layer', 'kernel', 'input', 'decision', 'reason')]
        lines += [(row.name, row.kernel, row.size, 'faster' if row.changed else 'left', row.reason)
                  for row in self]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(
            line, widths, strict=True)).rstrip() for line in lines)
