"""RepLKNet in plain PyTorch.

Paper: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", X. Ding,
X. Zhang, Y. Zhou, J. Han, G. Ding, J. Sun, CVPR 2022, https://arxiv.org/abs/2203.06717

Original code and weights: https://github.com/DingXiaoH/RepLKNet-pytorch, MIT License

This implementation is written from the paper. The names of modules are those of the original code,
so that its checkpoints load. Ours are: the depth-wise convolution (:mod:`mmreplk.ops`), folding the
remaining norms in ``switch_to_deploy`` (:mod:`.fold`) and the blocks that it leaves
(:mod:`.deployed`), the faster inference on CPUs (:mod:`.cpu_inference`), stages that
``out_indices`` does not need are not built, ``frozen_stages``, ``norm_eval``, and ``with_cp`` for
parts of a stage.

Nothing here needs an mm package: :mod:`.replknet` registers the network with them,
:mod:`mmreplk.timm` with timm.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..ops.torch_internals import NormBase
from .arch import parse_arch, parse_frozen_stages, parse_out_indices
from .blocks import CHECKPOINTS, RepLKNetStage, run_layer
from .cpu_inference.pointwise import channels_last_inference
from .fold import deploy_network, fold_norms, norms_of
from .keys import adopt_final_norm, is_merged
from .layers import conv_bn, norm_layer


class RepLKNetBackbone(nn.Module):
    """RepLKNet without a head, for segmentation, detection and classification.

    A stem of stride 4, then stages of RepLKBlock and ConvFFN in turn, joined by transitions of
    stride 2 (paper, section 4.1 and table 5). Parameters start from PyTorch's own initial values.

    Args:
        arch (str | dict): ``'31B'``, ``'31L'``, ``'XL'``, or a dict with the lists
            ``large_kernel_sizes`` (odd), ``layers`` (pairs of RepLKBlock and ConvFFN) and
            ``channels``, one entry a stage, and optionally ``small_kernel`` (5), ``dw_ratio`` (1)
            and ``ffn_ratio`` (4).
        in_channels (int): Input channels. Defaults to 3.
        out_indices (Sequence[int]): Stages whose outputs are returned, in ascending order. Stages
            above the last one are not built, so that every parameter gets a gradient. Defaults to
            (0, 1, 2, 3), or all stages of an ``arch`` with another number of them.
        drop_path_rate (float): Stochastic depth rate of the last block; the rates rise linearly
            from 0, and a RepLKBlock shares its rate with the ConvFFN behind it. Defaults to 0.3.
        small_kernel (int | None | str): The small kernel beside each large one, odd and not
            larger than it; None for none; ``'arch'`` for what ``arch`` says. Defaults to 'arch'.
        dw_ratio (float, optional): Depth-wise channels over stage channels. Defaults to None, what
            ``arch`` says.
        ffn_ratio (float, optional): Hidden channels of ConvFFN over stage channels. Defaults to
            None, what ``arch`` says.
        norm_intermediate_features (bool): Whether each returned stage output passes through a norm
            of its own, as the authors' XL does in segmentation and detection. Defaults to False.
        final_norm (bool): Whether the output of the last stage passes through the norm that
            precedes the pooling in classification (official key ``norm``). Defaults to False.
        norm_cfg (dict, optional): Config of every norm, which MMCV builds. Defaults to None,
            ``nn.BatchNorm2d``.
        act_cfg (dict | type, optional): Config of the activations in stem, transitions and
            RepLKBlocks, which MMCV builds; or their class. Defaults to None, ``nn.ReLU``.
        ffn_act_cfg (dict | type, optional): The same for ConvFFN. Defaults to None, ``nn.GELU``.
        with_cp (bool | str): What to recompute in the backward pass (non-reentrant checkpointing),
            to save memory: True for all blocks and the stem, ``'large_kernel'`` for the RepLKBlocks
            alone, ``'ffn'`` for the ConvFFNs alone. Results, running statistics included, are
            the same. Defaults to False.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k also the first k stages and the
            transitions that feed them. Frozen parameters get no gradient and their norms stay in
            evaluation mode. Defaults to -1.
        norm_eval (bool): Whether norms with running statistics stay in evaluation mode during
            training. Defaults to False.
        deploy (bool): Whether to build the deployed network (:meth:`switch_to_deploy`), to load its
            weights into, or weights whose kernels are merged but whose norms are not folded.
            Defaults to False.

    Raises:
        ModuleNotFoundError: If a config of a layer is given and MMCV is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument has an impossible value. The message names it and the remedy.

    Example:
        >>> import torch
        >>> from mmreplk.models.network import RepLKNetBackbone
        >>> model = RepLKNetBackbone('31B', out_indices=(2, 3)).eval()
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 65))]
        [(1, 512, 4, 5), (1, 1024, 2, 3)]
    """

    def __init__(self,
                 arch: str | dict,
                 in_channels: int = 3,
                 out_indices: Sequence[int] | None = None,
                 drop_path_rate: float = 0.3,
                 small_kernel: int | None | str = 'arch',
                 dw_ratio: float | None = None,
                 ffn_ratio: float | None = None,
                 norm_intermediate_features: bool = False,
                 final_norm: bool = False,
                 norm_cfg: dict | None = None,
                 act_cfg: dict | type[nn.Module] | None = None,
                 ffn_act_cfg: dict | type[nn.Module] | None = None,
                 with_cp: bool | str = False,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 deploy: bool = False):
        super().__init__()
        self.arch = parse_arch(arch, small_kernel, dw_ratio, ffn_ratio)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive int, got {in_channels!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate!r}')
        num_arch_stages = len(self.arch.channels)
        self.out_indices = parse_out_indices(out_indices, num_arch_stages)
        self.frozen_stages = parse_frozen_stages(frozen_stages, num_arch_stages)
        self.num_stages = self.out_indices[-1] + 1
        if final_norm and self.num_stages != num_arch_stages:
            raise ValueError(
                f'final_norm=True normalizes the output of the last stage, {num_arch_stages - 1}, '
                f'which is not in out_indices={self.out_indices}. Add it, or leave final_norm out.')
        if with_cp not in (False, True, *CHECKPOINTS):
            raise ValueError(f'with_cp must be True, False, {" or ".join(map(repr, CHECKPOINTS))}, '
                             f'got {with_cp!r}')
        self.with_cp = with_cp if isinstance(with_cp, str) else bool(with_cp)
        self.norm_eval = norm_eval
        norm_cfg, act_cfg = norm_cfg or None, act_cfg or nn.ReLU
        ffn_act_cfg = ffn_act_cfg or nn.GELU

        width = self.arch.channels[0]
        layer_cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.stem = nn.ModuleList([
            conv_bn(in_channels, width, 3, stride=2, **layer_cfg),
            conv_bn(width, width, 3, groups=width, **layer_cfg),
            conv_bn(width, width, 1, **layer_cfg),
            conv_bn(width, width, 3, stride=2, groups=width, **layer_cfg)
        ])

        # The schedule spans the whole architecture, also where its last stages are not built.
        rates = np.linspace(0, drop_path_rate, sum(self.arch.layers)).tolist()
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for i in range(self.num_stages):
            start = sum(self.arch.layers[:i])
            self.stages.append(
                RepLKNetStage(
                    self.arch.channels[i],
                    self.arch.large_kernel_sizes[i],
                    self.arch.small_kernel,
                    rates[start:start + self.arch.layers[i]],
                    self.arch.dw_ratio,
                    self.arch.ffn_ratio,
                    norm_output=norm_intermediate_features and i in self.out_indices,
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg,
                    ffn_act_cfg=ffn_act_cfg,
                    with_cp=self.with_cp))
            if i + 1 < self.num_stages:
                wider = self.arch.channels[i + 1]
                self.transitions.append(
                    nn.Sequential(
                        conv_bn(self.arch.channels[i], wider, 1, **layer_cfg),
                        conv_bn(wider, wider, 3, stride=2, groups=wider, **layer_cfg)))
        if final_norm:
            self.norm = norm_layer(norm_cfg, self.arch.channels[-1])
        self.norm_eps = (norm_cfg or {}).get('eps', 1e-5)
        if deploy:
            self.switch_to_deploy()
        self._freeze_stages()

    @property
    def deploy(self) -> bool:
        """Whether the small kernels are merged into the large ones, and all norms folded."""
        return not norms_of(self)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images ``(N, in_channels, H, W)``, H and W at least 32, any parity.

        Returns:
            tuple[Tensor]: For each stage S in ``out_indices``, ``(N, channels[S], ceil(H / s),
            ceil(W / s))`` with ``s = 4 * 2**S``, rounded up at each halving. They have the memory
            format of x, also where the network computes in another.
        """
        return self._maps(x, self.out_indices, hasattr(self, 'norm'))

    @channels_last_inference
    def _maps(self, x: torch.Tensor, indices: Sequence[int], final_norm: bool
              ) -> tuple[torch.Tensor, ...]:
        """The outputs of some stages in ascending order, the last of them perhaps normalized."""
        x = self.stem[0](x)
        for layer in self.stem[1:]:
            x = run_layer(layer, x, self.with_cp is True)
        outs = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.transitions[i - 1](x)
            x = stage(x)
            if i in indices:
                outs.append(stage.norm(x))
            if i == indices[-1]:
                break
        if final_norm:
            outs[-1] = self.norm(outs[-1])
        return tuple(outs)

    def switch_to_deploy(self) -> None:
        """Merge every small kernel into the large one and fold every norm, in place.

        The network then computes what it computed in evaluation mode, without any norm: see
        :mod:`mmreplk.models.fold` (paper, section 3.1). A second call does nothing.

        Raises:
            TypeError: If ``norm_cfg`` is of a type that does not fold into a convolution.
            ValueError: If a folded weight is beyond the range of its dtype.
        """
        deploy_network(self)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        adopt_final_norm(state_dict, prefix, self.state_dict())
        if self.deploy and is_merged(state_dict):
            # Of other programs, which merge the kernels but keep the norms.
            fold_norms(state_dict, self.norm_eps, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'RepLKNetBackbone':
        """Set training or evaluation mode, leaving frozen stages and, if asked, norms as they are.

        Args:
            mode (bool): True for training. Defaults to True.

        Returns:
            RepLKNetBackbone: self.
        """
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, NormBase):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem, *self.stages[:self.frozen_stages]]
        # Transition i feeds stage i + 1: trainable layers below frozen ones would make no sense.
        frozen += self.transitions[:max(self.frozen_stages - 1, 0)]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
