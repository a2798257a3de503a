"""``EnlargedBackbone``: any backbone with large kernels in place of its own, from a config."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope

from ...config.types import is_pretrained, split_init_cfg
from ...registry import MODELS, WEIGHT_INITIALIZERS
from ..reparam import ReparamLargeKernelConv, merge_kernels
from .kernels import enlarge_kernels, remove_shortcuts


@MODELS.register_module()
class EnlargedBackbone(BaseModule):
    """A backbone whose depth-wise convolutions are large and re-parameterized.

    It builds the backbone and enlarges its kernels (:func:`enlarge_kernels`), so that checkpoints,
    resumed runs and evaluation know the enlarged network alone. Names of weights begin with
    ``backbone.``. Training starts from weights of the *original* network where
    ``backbone.init_cfg`` says ``Pretrained``, and from those of an *enlarged* one where
    ``init_cfg`` does. Without either, ``keep_output`` says whether the new kernels hold the initial
    ones of the original network, or are initialized by the rules of its ``init_cfg``.

    Args:
        backbone (dict): Config of the backbone, such as ``dict(type='mmpretrain.MobileNetV2')``.
        kernel_size (int | Sequence[int]): As of :func:`enlarge_kernels`.
        small_kernel (int, optional): As there. Defaults to 3.
        stages (str | Sequence[str], optional): As there, named inside the backbone, such as
            ``['layer6', 'layer7']``. Defaults to None, all.
        dilation (int): As there. Defaults to 1.
        keep_output (bool): As there. Defaults to True.
        shortcut (bool): False switches the identity shortcuts off (:func:`remove_shortcuts`).
            Defaults to True.
        deploy (bool): Whether to build the merged network, to load merged weights into. Defaults to
            False.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=FILE)`` to start from an
            enlarged network, with ``prefix`` if it stands elsewhere than under ``backbone.``, and
            ``in_channels='adapt'`` if it is for color images and this one for others. Defaults to
            None.

    Raises:
        TypeError, ValueError: As :func:`enlarge_kernels` and :func:`remove_shortcuts`; also if
            ``init_cfg`` is anything else.
    """

    def __init__(self,
                 backbone: dict,
                 kernel_size: int | Sequence[int],
                 small_kernel: int | None = 3,
                 stages: str | Sequence[str] | None = None,
                 dilation: int = 1,
                 keep_output: bool = True,
                 shortcut: bool = True,
                 deploy: bool = False,
                 init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if init_cfg and (not isinstance(init_cfg, dict) or not is_pretrained(init_cfg)):
            raise ValueError("init_cfg must be dict(type='Pretrained', ...), got "
                             f'{init_cfg!r}. Other initializations belong into backbone.init_cfg')
        self._original = deepcopy(backbone)
        self._how = dict(kernel_size=kernel_size, small_kernel=small_kernel, stages=stages,
                         dilation=dilation, keep_output=keep_output)
        scope = DefaultScope.get_current_instance()
        self._scope = scope and scope.scope_name
        self.backbone = self._build()
        self.enlarged = enlarge_kernels(self.backbone, **self._how)
        if not shortcut:
            remove_shortcuts(self.backbone)
        if deploy:
            self.switch_to_deploy()

    def _build(self) -> torch.nn.Module:
        """The original network, also where the default scope has changed since."""
        with DefaultScope.overwrite_default_scope(self._scope):
            return MODELS.build(deepcopy(self._original))

    @property
    def deploy(self) -> bool:
        """Whether the small kernels are merged into the large ones."""
        return all(m.deploy for m in self.modules() if isinstance(m, ReparamLargeKernelConv))

    def forward(self, x: torch.Tensor):
        """What the backbone gives for images ``(N, C, H, W)``."""
        return self.backbone(x)

    def switch_to_deploy(self) -> None:
        """Merge every small kernel and its norms into the large kernel, in place.

        Raises:
            TypeError: If a norm does not fold into a convolution.
        """
        merge_kernels(self)

    def init_weights(self) -> None:
        """Initialize as the class and ``init_cfg`` say; a second call does nothing.

        Raises:
            ValueError: If the weights that ``init_cfg`` names do not fit.
        """
        if self.is_init:
            return
        if self.init_cfg:
            WEIGHT_INITIALIZERS.build({**self.init_cfg, 'type': 'mmreplk.Pretrained'})(self)
        else:
            self._start()
        self.is_init = True

    def _start(self) -> None:
        """Initialize from the original network."""
        inner, init_cfg = self.backbone, getattr(self.backbone, 'init_cfg', None)
        rules, files = split_init_cfg(init_cfg)
        if hasattr(inner, 'init_weights'):
            inner.init_cfg = rules
            try:
                inner.init_weights()
            finally:
                inner.init_cfg = init_cfg
        if not self._how['keep_output'] and not files:
            return
        original = self._build()
        if hasattr(original, 'init_weights'):
            original.init_weights()
        enlarge_kernels(original, **self._how)
        if self.deploy:
            merge_kernels(original)
        state = original.state_dict()
        if not self._how['keep_output']:
            new = tuple(f'{name}.' for name in self.enlarged)
            state = {name: value for name, value in state.items() if not name.startswith(new)}
        inner.load_state_dict(state, strict=False)
