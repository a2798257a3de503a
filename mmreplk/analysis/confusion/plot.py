"""The figure of a confusion matrix. Matplotlib."""

from typing import BinaryIO

import numpy as np

from ..figures import COLORS, new_figure
from .matrix import Confusion


def draw_confusion(confusion: Confusion, path: str | BinaryIO) -> None:
    """Draw the shares of every row in per cent, and the IoU of each class beside it.

    Args:
        confusion (Confusion): The matrix.
        path (str | BinaryIO): The image file to write, as PNG where it is open.
    """
    count = len(confusion.classes)
    side = max(3.5, 0.42 * count + 1.6)
    figure = new_figure(side + 0.4, side, dpi=150)
    ax = figure.add_subplot()
    shares = 100 * confusion.shares
    ax.imshow(shares, cmap=COLORS, vmin=0, vmax=100)
    if count <= 30:  # beyond that no number is legible
        for row, column in np.ndindex(count, count):
            value = shares[row, column]
            if value >= 0.5:
                ax.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=6.5,
                        color='white' if value > 55 else 'black')
    ious = ['-' if np.isnan(iou) else f'{iou:.1f}' for iou in confusion.ious]
    ax.set_xticks(range(count), confusion.classes, rotation=45, ha='right', fontsize=7)
    ax.set_yticks(range(count), confusion.classes, fontsize=7)
    ax.set_xlabel('predicted', fontsize=8)
    ax.set_ylabel('label', fontsize=8)
    ax.tick_params(length=2, width=0.5)
    right = ax.secondary_yaxis('right')
    right.set_yticks(range(count), ious, fontsize=7)
    right.set_ylabel(f'IoU, % (mean {confusion.miou:.1f})', fontsize=8)
    right.tick_params(length=2, width=0.5)
    ax.set_title("% of the label's pixels", fontsize=8)
    figure.savefig(path)
