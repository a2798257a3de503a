"""Stochastic depth: each image's residual branch is left out at random in training."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Zero a feature map for some of the images of a batch, and scale up that of the others.

    "Deep Networks with Stochastic Depth", G. Huang et al., ECCV 2016, with a draw for each image.
    From the same seed it keeps the images that MMCV's layer of this name keeps.

    Args:
        drop_prob (float): The probability p of an image to be zeroed, in [0, 1).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape; the identity in evaluation mode."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = 1 - self.drop_prob
        mask = (kept + x.new_empty((x.shape[0], 1, 1, 1)).uniform_()).floor()
        return x.div(kept) * mask

    def extra_repr(self) -> str:
        """The probability."""
        return f'drop_prob={self.drop_prob:g}'
