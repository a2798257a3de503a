"""RepLKNet with a classification head and the methods that timm's models have."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from timm.layers import ClassifierHead
from timm.models._features import (
    feature_take_indices,  # no public name; tried with 1.0.15 to 1.0.31
)
from torch import nn

from ..models.layer_groups import layer_group
from ..models.network import RepLKNetBackbone


class RepLKNetClassifier(RepLKNetBackbone):
    """RepLKNet for timm: the backbone, its final norm, pooling and a linear classifier.

    The backbone's weights have the names of the authors and of ``mmreplk.RepLKNet``; those of the
    classifier are ``head.fc``.

    Args:
        arch (str | dict): As of :class:`.RepLKNetBackbone`, for 4 or any other number of stages.
        num_classes (int): Classes; 0 for the pooled features alone. Defaults to 1000.
        in_chans (int): Input channels. Defaults to 3.
        global_pool (str): ``'avg'``, ``'max'``, ``'avgmax'``, ``'catavgmax'``, or ``''`` for none.
            Defaults to 'avg'.
        drop_rate (float): Dropout before the classifier. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of the last block. Defaults to 0.
        deploy (bool): Whether to build the deployed network, to load merged weights into. Defaults
            to False.
        device (torch.device | str, optional): Where to build it. Defaults to None, PyTorch's.
        dtype (torch.dtype, optional): Of its parameters. Defaults to None, PyTorch's.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument has an impossible value. The message names it and the remedy.
    """

    def __init__(self, arch: str | dict, num_classes: int = 1000, in_chans: int = 3,
                 global_pool: str = 'avg', drop_rate: float = 0., drop_path_rate: float = 0.,
                 deploy: bool = False, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None):
        with nullcontext() if device is None else torch.device(device):
            super().__init__(arch, in_chans, drop_path_rate=drop_path_rate, final_norm=True,
                             deploy=deploy)
            channels = self.arch.channels
            self.head = ClassifierHead(channels[-1], num_classes, global_pool, drop_rate)
        self.to(dtype=dtype)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.feature_info = [dict(num_chs=width, reduction=4 * 2**i, module=f'stages.{i}')
                             for i, width in enumerate(channels)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            x (Tensor): Images ``(N, in_chans, H, W)``, H and W at least 32, any parity.

        Returns:
            Tensor: Logits ``(N, num_classes)``; without classifier the pooled features ``(N, C)``,
            without pooling either the feature map ``(N, C, ceil(H / 32), ceil(W / 32))``.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The normalized feature map of the last stage ``(N, C, ceil(H / 32), ceil(W / 32))``."""
        return self._maps(x, (self.num_stages - 1, ), final_norm=True)[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify a feature map.

        Args:
            x (Tensor): Of :meth:`forward_features`.
            pre_logits (bool): Whether to leave out the classifier. Defaults to False.

        Returns:
            Tensor: As of :meth:`forward`.
        """
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(self, x: torch.Tensor, indices: int | Sequence[int] | None = None,
                              norm: bool = False, stop_early: bool = False,
                              output_fmt: str = 'NCHW', intermediates_only: bool = False):
        """The feature maps of some stages, and perhaps that of :meth:`forward_features`.

        Args:
            x (Tensor): Images ``(N, in_chans, H, W)``.
            indices (int | Sequence[int], optional): Stages, counted from the end where negative; an
                int n for the last n. Defaults to None, all.
            norm (bool): Whether the map of the last stage is the normalized one. Defaults to False.
            stop_early (bool): Whether to compute no stage above the last one that is asked for.
                Defaults to False.
            output_fmt (str): ``'NCHW'``.
            intermediates_only (bool): Whether to leave out the final map. Defaults to False.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The maps of the stages in the order of
            ``indices``, each ``(N, channels[S], ceil(H / s), ceil(W / s))`` with ``s = 4 * 2**S``;
            before them the final map unless ``intermediates_only``: that of the highest stage that
            was computed, normalized if it is the last.

        Raises:
            ValueError: If ``output_fmt`` is another one.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}: RepLKNet is a "
                             'convolutional network')
        taken, highest = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        top = highest if stop_early or intermediates_only else last
        computed = sorted({*taken, top})
        maps = dict(zip(computed, self._maps(x, computed, final_norm=False), strict=True))
        normed = self.norm(maps[top]) if top == last else maps[top]
        outs = [normed if norm and i == last else maps[i] for i in taken]
        return outs if intermediates_only else (normed, outs)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Remove what the feature maps of some stages do not need, in place.

        Args:
            indices (int | Sequence[int]): As of :meth:`forward_intermediates`. Defaults to 1.
            prune_norm (bool): Whether to remove the final norm in any case. Defaults to False.
            prune_head (bool): Whether to remove pooling and classifier in any case. Defaults to
                True.

        Returns:
            list[int]: The stages, counted from 0.
        """
        taken, highest = feature_take_indices(len(self.stages), indices)
        shorter = highest < len(self.stages) - 1
        if prune_norm or shorter:
            self.norm = nn.Identity()  # of the last stage alone
        self.stages = self.stages[:highest + 1]
        self.transitions = self.transitions[:highest]
        self.num_stages, self.out_indices = highest + 1, (highest, )
        if shorter:
            self.num_features = self.head_hidden_size = self.arch.channels[highest]
            self.head.in_features = self.num_features
        if prune_head or shorter:
            self.reset_classifier(0, '')
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear classifier; ``nn.Identity`` where there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes (int): Its classes; 0 for none.
            global_pool (str, optional): As of the class. Defaults to None, the present one.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute stem and blocks in the backward pass, to save memory.

        Args:
            enable (bool): False to keep what they compute. Defaults to True.
        """
        for module in (self, *self.stages):
            module.with_cp = bool(enable)

    def group_matcher(self, coarse: bool = False) -> dict | Callable[[str], int]:
        """Which parameters share a learning rate under timm's ``layer_decay``.

        Args:
            coarse (bool): Whether by stages, and not by the authors' groups of
                :func:`.layer_group`. Defaults to False.

        Returns:
            dict | Callable: What timm's ``group_with_matcher`` takes.
        """
        if coarse:
            return dict(stem=r'^stem', blocks=[(r'^stages\.(\d+)', None),
                                               (r'^transitions\.(\d+)', None)])
        return partial(layer_group, layers=self.arch.layers[:self.num_stages])
