"""RepLKNet as the mm packages have it: registered, and initialized by MMEngine."""

from copy import deepcopy

from mmengine.model import BaseModule

from ..config.types import split_init_cfg
from ..registry import MMENGINE_MODELS, MODELS, WEIGHT_INITIALIZERS
from .arch import check_start
from .network import RepLKNetBackbone


# In the root registry the plain name is found from mmseg and mmdet; mmpretrain looks in its own
# registry first, where a class of that name is its own.
@MMENGINE_MODELS.register_module()
@MODELS.register_module()
class RepLKNet(RepLKNetBackbone, BaseModule):
    """RepLKNet backbone for segmentation, detection and classification.

    Args:
        *args: As of :class:`.network.RepLKNetBackbone`.
        init_cfg (dict | list[dict], optional): Initialization config of MMEngine. ``Pretrained``
            takes ``in_channels='adapt'`` besides, to start from weights for color images with
            other ``in_channels``: see :mod:`mmreplk.models.first_conv`. Defaults to None,
            PyTorch's own initial values.
        pretrained (None): Has to be None. MMSegmentation hands the ``pretrained`` of a model on to
            its backbone, and that of a stock config is of another network: the message says what
            to write. Defaults to None.
        **kwargs: As of :class:`.network.RepLKNetBackbone`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument has an impossible value. The message names it and the remedy.

    Example:
        >>> import torch
        >>> from mmreplk import RepLKNet
        >>> model = RepLKNet('31B', out_indices=(2, 3)).eval()
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 65))]
        [(1, 512, 4, 5), (1, 1024, 2, 3)]
    """

    def __init__(self, *args, init_cfg: dict | list[dict] | None = None, pretrained: None = None,
                 **kwargs):
        check_start(init_cfg, pretrained)
        super().__init__(*args, **kwargs)
        self.init_cfg = deepcopy(init_cfg)

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; weights to start from (``Pretrained``) have to fit.

        MMEngine's ``Pretrained`` is taken for the strict :class:`mmreplk.weights.Pretrained`.

        They may have the authors' layout or MMPretrain's; see :mod:`mmreplk.weights.layouts`.

        Raises:
            ValueError: If the weights are of another network or architecture, or incomplete.
        """
        init_cfg, fresh = self.init_cfg, not self.is_init
        self.init_cfg, pretrained = split_init_cfg(init_cfg)
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        for cfg in pretrained if fresh else ():
            WEIGHT_INITIALIZERS.build({**cfg, 'type': 'mmreplk.Pretrained'})(self)
