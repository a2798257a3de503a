"""Layer-wise decay of the learning rate for RepLKNet, for any model of the three codebases."""

from numbers import Real

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..models import RepLKNet
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, register

PAIRS_PER_GROUP = 2  # pairs of RepLKBlock and ConvFFN that share a learning rate


def layer_groups(backbone: RepLKNet) -> tuple[dict[int, int], int]:
    """Number the groups of parameters that share a learning rate, from the input upwards.

    Two pairs of RepLKBlock and ConvFFN make a group; one that is left over at the end of a stage
    makes a group of its own. A transition belongs to the group of the blocks before it, as in the
    authors' runs. For the published depths 2-2-18-2:

    ===== ======================================================
    group parameters
    ===== ======================================================
    0     ``stem``
    1     ``stages.0.blocks.0`` to ``3``, ``transitions.0``
    2     ``stages.1.blocks.0`` to ``3``, ``transitions.1``
    3     ``stages.2.blocks.0`` to ``3``
    ...   four more blocks of stage 2 each
    11    ``stages.2.blocks.32`` to ``35``, ``transitions.2``
    12    ``stages.3.blocks.0`` to ``3``
    13    all else: ``norm``, ``stages.S.norm``, necks and heads
    ===== ======================================================

    Args:
        backbone (RepLKNet): The backbone.

    Returns:
        tuple[dict[int, int], int]: The ``id`` of each parameter of groups 0 to N to its group, and
        N, the number of groups of blocks.
    """
    modules = [(backbone.stem, 0)]
    group = 0
    for i, stage in enumerate(backbone.stages):
        first = group + 1
        for index, block in enumerate(stage.blocks):
            group = first + index // (2 * PAIRS_PER_GROUP)
            modules.append((block, group))
        if i < len(backbone.transitions):
            modules.append((backbone.transitions[i], group))
    return {id(p): number for module, number in modules for p in module.parameters()}, group


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class RepLKNetLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with a learning rate that decays towards the input.

    A parameter of group g, numbered by :func:`layer_groups`, gets the learning rate
    ``lr * layer_decay ** (N + 1 - g)``: heads the full one, the last blocks ``lr * layer_decay``,
    the stem the lowest. The authors fine-tune on ImageNet with a decay of 0.7. All other options of
    ``paramwise_cfg`` keep the meaning that they have in MMEngine; their factors of learning rates
    multiply. Schedulers that stop at a minimum should take it as a ratio (``eta_min_ratio``), since
    an absolute one is the same for every group.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper, with ``optimizer.lr``.
        paramwise_cfg (dict): ``layer_decay`` (float), above 0 and at most 1, and the options of
            ``DefaultOptimWrapperConstructor``.

    Raises:
        ValueError: If ``layer_decay`` is missing or out of range, or ``optimizer.lr`` is missing.
        TypeError: When called, if the model has no RepLKNet of mmreplk in it.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=4e-4, weight_decay=1e-8),
        ...     constructor='RepLKNetLayerDecayConstructor',
        ...     paramwise_cfg=dict(layer_decay=0.7, norm_decay_mult=0.0))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        decay = self.paramwise_cfg.get('layer_decay')
        if not isinstance(decay, Real) or isinstance(decay, bool) or not 0 < decay <= 1:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg.layer_decay={decay!r} must be a number above 0 and '
                'at most 1, such as 0.7; without layer decay, leave out optim_wrapper.constructor')
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer.lr is missing: layer_decay multiplies it, so '
                             'it must be set')
        self.layer_decay = decay

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: bool | None = None) -> None:
        """Add the parameters of a module and of those inside it, each as a group of the optimizer.

        Args:
            params (list[dict]): The groups of the optimizer, appended to in place.
            module (nn.Module): The module; the whole model on the outermost call.
            prefix (str): Its name in the model. Defaults to '', the model itself.
            is_dcn_module (bool, optional): Whether it is inside a deformable convolution.

        Raises:
            TypeError: If the model has no RepLKNet in it.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        exponents = self._exponents(module)
        super().add_params(params, module, prefix, is_dcn_module)
        for group in params:
            exponent = exponents.get(id(group['params'][0]), 0)
            group['lr'] = group.get('lr', self.base_lr) * self.layer_decay**exponent

    def _exponents(self, model: nn.Module) -> dict[int, int]:
        """The powers of the decay, by the ``id`` of the parameters below the heads."""
        backbones = [m for m in model.modules() if isinstance(m, RepLKNet)]
        if not backbones:
            inner = getattr(model, 'backbone', model)
            raise TypeError(
                f'optim_wrapper.constructor={type(self).__name__!r}: the model has no '
                f'mmreplk.RepLKNet in it ({type(inner).__module__}.{type(inner).__name__} is not '
                'one), and the layers of other networks are unknown here. Use that network\'s own '
                'constructor, or leave optim_wrapper.constructor out.')
        exponents = {}
        for backbone in backbones:
            groups, top = layer_groups(backbone)
            exponents |= {key: top + 1 - group for key, group in groups.items()}
            print_log(
                f'Learning rates decay by {self.layer_decay:g} over {top} groups of blocks, from '
                f'{self.base_lr:.3g} at the heads to '
                f'{self.base_lr * self.layer_decay**(top + 1):.3g} at the stem.',
                logger='current')
        return exponents
