"""Starting a backbone from weights, of whichever layout: MMEngine's ``Pretrained``, but strict.

MMEngine loads what fits and only warns of the rest, also where nothing fits.
"""

from collections.abc import Callable, Mapping

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.model.weight_init import update_init_info
from torch import nn

from ..models import EnlargedBackbone, RepLKNet
from ..models.first_conv import adapted, channels_hint
from ..models.fold import fold_norms
from ..models.keys import STAGE_NORM, adopt_final_norm, is_merged, stage_norms
from ..registry import WEIGHT_INITIALIZERS
from .fit import compare
from .layouts import arch_of, check_values, other_arch, split, unwrap
from .safe_load import read_any

MERGED = ('is merged already (small kernels inside the large ones): build the merged network for '
          'it, with model.backbone.deploy=True, or take the weights from before the merge')
NOT_MERGED = ('is not merged, but model.backbone.deploy is True: merge it with '
              'tools/reparameterize.py, or leave deploy out')
AUTO = 'auto'


@WEIGHT_INITIALIZERS.register_module()
class Pretrained(PretrainedInit):
    """Start one of our backbones from a file or address; weights that do not fit are an error.

    In the ``init_cfg`` of our backbones MMEngine's ``Pretrained`` means this class.

    Args:
        checkpoint (str): Whatever MMEngine can read. For a RepLKNet, of any layout that
            :func:`pretrained_body` takes; for an EnlargedBackbone, of an enlarged network.
        prefix (str, optional): What stands before the backbone's names, as in MMEngine. Defaults to
            'auto': one of the known places for a RepLKNet, ``'backbone.'`` for an EnlargedBackbone.
        map_location (str): Where to read to. Defaults to 'cpu'.
        in_channels (str, optional): 'adapt' to fit weights of color images to the channels of the
            backbone, see :func:`mmreplk.models.first_conv.adapted`. Defaults to None.
    """

    def __init__(self, checkpoint: str, prefix: str | None = AUTO, map_location: str = 'cpu',
                 in_channels: str | None = None):
        super().__init__(checkpoint, prefix, map_location)
        self.in_channels = in_channels

    def __call__(self, module: nn.Module) -> None:
        """Load the weights.

        Args:
            module (RepLKNet | EnlargedBackbone): The backbone.

        Raises:
            TypeError: If it is another network.
            ValueError: If the weights do not fit. Nothing is loaded then.
        """
        if not isinstance(module, (EnlargedBackbone, RepLKNet)):
            raise TypeError(f'mmreplk.Pretrained starts RepLKNet and EnlargedBackbone, not '
                            f"{type(module).__name__}: use dict(type='Pretrained', ...) for it")
        try:
            loaded = read_any(self.checkpoint, self.map_location)
            state = start_weights(module, loaded, self.prefix, self.in_channels, log_start)
        except ValueError as error:
            raise ValueError(f'init_cfg: the checkpoint {self.checkpoint!r} {error}.') from error
        module.load_state_dict(state, strict=False)
        # MMEngine's log of where parameters come from, by names that its initializers use. Tried
        # with mmengine 0.10.7 and onedl-mmengine 0.10.12.
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def start_weights(backbone: nn.Module, checkpoint: Mapping, prefix: str | None = AUTO,
                  in_channels: str | None = None, tell: Callable[[str], None] | None = None
                  ) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint from which one of our backbones starts.

    Args:
        backbone (RepLKNet | EnlargedBackbone): The backbone; it may be on 'meta'.
        checkpoint (Mapping): As read from a file.
        prefix (str, optional): As of :class:`Pretrained`. Defaults to 'auto'.
        in_channels (str, optional): As of :class:`Pretrained`. Defaults to None.
        tell (Callable, optional): Called with a line about what was adapted. Defaults to None.

    Returns:
        dict[str, Tensor]: By the names of the backbone's state dict.

    Raises:
        ValueError: If they do not fit. The message ends a sentence that begins with the file.
    """
    if isinstance(backbone, EnlargedBackbone):
        prefix = 'backbone.' if prefix == AUTO else prefix
        return enlarged_weights(backbone, checkpoint, prefix, in_channels, tell)
    body = pretrained_body(checkpoint, None if prefix == AUTO else prefix)
    return check_backbone_weights(backbone, adapted(backbone, body, in_channels, tell))


def check_backbone_weights(backbone: nn.Module, body: dict[str, torch.Tensor]) -> dict:
    """Check that weights fit a backbone that is to start from them.

    Unexpected keys are allowed for the classifier head, the final norm and stages that the backbone
    does not build; missing keys only for stage-output norms, and only if the file has none.

    Args:
        backbone (RepLKNet): The backbone; it may be on 'meta'.
        body (dict[str, Tensor]): The weights without prefix.

    Returns:
        dict[str, Tensor]: Those of them that the backbone has a place for.

    Raises:
        ValueError: If the weights are of another architecture, merged unlike the backbone, or do
            not match it in any other way.
    """
    own = backbone.state_dict()
    body = dict(body)
    adopt_final_norm(body, '', own)
    check_values(body, own)
    merged = is_merged(body)
    if merged != backbone.deploy:
        raise ValueError(MERGED if merged else NOT_MERGED)
    if merged:
        fold_norms(body, backbone.norm_eps)
    misfit = compare(own, body)
    if not stage_norms(body):
        misfit = misfit._replace(
            missing=[name for name in misfit.missing if not STAGE_NORM.match(name)])
    built, total = backbone.num_stages, len(arch_of(body).layers)
    ignored = ('norm.', 'head.', *(f'stages.{i}.' for i in range(built, total)),
               *(f'transitions.{i}.' for i in range(built - 1, total)))
    misfit = misfit._replace(
        unexpected=[name for name in misfit.unexpected if not name.startswith(ignored)])
    if misfit:
        raise ValueError(other_arch(backbone, body) or 'does not match the backbone: '
                         f'{misfit.describe()}{channels_hint(backbone, body)}')
    return {name: value for name, value in body.items() if name in own}


def pretrained_body(checkpoint, prefix: str | None = None) -> dict[str, torch.Tensor]:
    """The backbone's weights in a checkpoint that a backbone is to start from.

    Args:
        checkpoint (dict): As read from a file, of any layout that :func:`split` understands.
        prefix (str, optional): What MMEngine's ``Pretrained`` calls ``prefix``: where the backbone
            is to be found. Not needed where it stands in one of the known places. Defaults to None.

    Returns:
        dict[str, Tensor]: The weights without prefix.

    Raises:
        ValueError: If there is no RepLKNet.
    """
    state = unwrap(checkpoint)
    if prefix:
        dotted = prefix if prefix.endswith('.') else f'{prefix}.'
        inner = {name[len(dotted):]: value for name, value in state.items()
                 if name.startswith(dotted)}
        state = inner or state  # the authors' files have no prefix
    return split(state)[1]


def enlarged_weights(backbone: EnlargedBackbone, checkpoint: Mapping,
                     prefix: str | None = 'backbone.', in_channels: str | None = None,
                     tell: Callable[[str], None] | None = None) -> dict[str, torch.Tensor]:
    """The weights of an enlarged network in a checkpoint.

    Args:
        backbone (EnlargedBackbone): The network that they are for; it may be on 'meta'.
        checkpoint (Mapping): As read from a file.
        prefix (str, optional): What stands before the backbone's names. Defaults to
            'backbone.'.
        in_channels (str, optional): As of :class:`Pretrained`. Defaults to None.
        tell (Callable, optional): As of :func:`start_weights`. Defaults to None.

    Returns:
        dict[str, Tensor]: By the names of the backbone's state dict.

    Raises:
        ValueError: If some are missing or of another shape. The message ends a sentence that
            begins with the file.
    """
    state = unwrap(checkpoint)
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    state = {name.removeprefix(prefix): value for name, value in state.items()
             if name.startswith(prefix)}
    state = adapted(backbone, state, in_channels, tell)
    own = backbone.state_dict()
    check_values(state, own)
    misfit = compare(own, state)._replace(unexpected=[])  # such as the heads' where prefix is ''
    if misfit:
        text = (f'does not match the backbone: {misfit.describe()}'
                f'{channels_hint(backbone, state)}')
        if is_merged(misfit.missing):
            text = NOT_MERGED
        elif not backbone.deploy and is_merged(state):
            text = MERGED
        elif not any('.lkb_' in name for name in state):
            text += '. Weights of the original network belong into backbone.init_cfg'
        raise ValueError(text)
    return {name: state[name] for name in own if name in state}


def log_start(line: str) -> None:
    """Log a line about the weights that a network starts from."""
    print_log(f'init_cfg: {line}.', logger='current')
