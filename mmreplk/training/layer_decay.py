"""Layer-wise decay of the learning rate for RepLKNet, for any model of the three codebases."""

from numbers import Real

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..models import RepLKNet
from ..models.layer_groups import layer_group
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, register
from .console import OPTIONS, keep_off_console


def layer_groups(backbone: RepLKNet) -> tuple[dict[int, int], int]:
    """The groups of parameters that share a learning rate; see :func:`.layer_group`.

    Args:
        backbone (RepLKNet): The backbone. Its blocks may be wrapped, as by FSDP.

    Returns:
        tuple[dict[int, int], int]: The ``id`` of each parameter of groups 0 to N to its group, and
        N, the number of groups of blocks.
    """
    modules = dict(stem=backbone.stem)
    for i, stage in enumerate(backbone.stages):
        modules |= {f'stages.{i}.blocks.{j}': block for j, block in enumerate(stage.blocks)}
    modules |= {f'transitions.{i}': module for i, module in enumerate(backbone.transitions)}
    layers = backbone.arch.layers[:backbone.num_stages]
    return {id(p): layer_group(name, layers) for name, module in modules.items()
            for p in module.parameters()}, layer_group('norm', layers) - 1


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
        # MMEngine's line for each option of each parameter, more than a hundred.
        keep_off_console(MMLogger.get_current_instance(), (OPTIONS, ))
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
