"""Training sharded by FSDP: how it cuts a RepLKNet, and what it needs from the processes.

The configs take MMEngine's ``FlexibleRunner`` with the strategy below. That it derives from lies in
a private module, with its question for the kind of state dict: MMEngine has it nowhere else. It was
tried with onedl-mmengine 0.10.12.
"""

from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MessageHub
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..config.types import type_names
from ..files import write_whole
from ..models.blocks import ConvFFN, RepLKBlock
from ..paths import is_remote
from ..registry import FUNCTIONS, STRATEGIES, register
from .own_files import REMEDY

OPTIMIZER_KEYS = ('state', 'param_groups')


@register(FUNCTIONS)
def wrap_replknet_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy``: every RepLKBlock and ConvFFN becomes a unit of its own.

    A unit gathers its parameters when its ``forward`` is called. Blocks are always called whole; a
    stage is not, its ``norm`` is called by the backbone, so a policy by size, which wraps stages,
    fails there.

    Args:
        module (nn.Module): The module to decide on.
        recurse (bool): True when FSDP asks whether to look inside it.
        nonwrapped_numel (int): Parameters in it that no inner unit holds; makes no difference.

    Returns:
        bool: Whether to look inside, or to wrap.
    """
    return recurse or isinstance(module, (RepLKBlock, ConvFFN))


@register(STRATEGIES)
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's ``FSDPStrategy``, able to resume.

    That of MMEngine 0.10 hands the optimizer's state to PyTorch in an order of arguments that
    PyTorch has given up (2.1), so every resumed run fails; and what its optimizer wrapper keeps
    beside the state (the loss scale, the base learning rate of the log) is lost. Its
    ``FlexibleRunner`` writes a checkpoint again when validation finds it to be the best, and then
    counts an epoch or iteration too many, which a resumed run would leave out.
    """

    def save_checkpoint(self, filename: str, *, extra_ckpt: dict | None = None, **kwargs) -> None:
        """Save a checkpoint that counts the epochs and iterations that have been trained.

        Args:
            filename (str): The file.
            extra_ckpt (dict, optional): What the runner adds, ``meta`` with ``epoch`` and ``iter``
                among it. Defaults to None.
            **kwargs: As of MMEngine's ``FSDPStrategy``.
        """
        meta, hub = (extra_ckpt or {}).get('meta', {}), MessageHub.get_current_instance()
        for key in ('epoch', 'iter'):
            # The hub has the number of the last one that began, from 0.
            if key in meta and hub.get_info(key) is not None:
                meta[key] = min(meta[key], hub.get_info(key) + 1)
        if not self._is_full_state_dict():  # a folder with a file of each process
            super().save_checkpoint(filename, extra_ckpt=extra_ckpt, **kwargs)
            return

        def save(draft):
            super(ResumableFSDPStrategy, self).save_checkpoint(
                draft, extra_ckpt=extra_ckpt, **kwargs)

        if is_main_process() and not is_remote(filename):
            write_whole(filename, save, REMEDY)
        else:
            save(filename)  # takes part in the gathering, and writes nothing but to an address

    def optim_state_dict(self) -> dict:
        """Gather the optimizer's state from all processes.

        Returns:
            dict: ``state`` and ``param_groups`` by parameter names, and what the wrapper adds.
        """
        state = FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)
        whole = self.optim_wrapper.state_dict()
        return {**state, **{key: whole[key] for key in whole if key not in OPTIMIZER_KEYS}}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Spread the optimizer's state over the processes.

        Args:
            state_dict (dict): As :meth:`optim_state_dict` returns it.
        """
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict={key: state_dict[key] for key in OPTIMIZER_KEYS})
        others = {key: state_dict[key] for key in state_dict if key not in OPTIMIZER_KEYS}
        self.optim_wrapper.load_state_dict({**state, **others})


def is_sharded(cfg: Config) -> bool:
    """Whether a config asks for FSDP.

    Args:
        cfg (Config): The full config.

    Returns:
        bool: True for MMEngine's strategy and for the one of this module.
    """
    names = type_names(cfg.get('strategy'), 'STRATEGIES', cfg.get('default_scope'))
    return bool({'FSDPStrategy', 'ResumableFSDPStrategy'} & set(names))


def fit_fsdp(cfg: Config, launcher: str, gpu: bool) -> None:
    """Check that there is a process group to shard over, and move FSDP to the CPU without a GPU.

    Args:
        cfg (Config): The full config, changed in place.
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        gpu (bool): Whether models are put on a GPU.

    Raises:
        ValueError: If FSDP is asked for and there is no launcher.
    """
    if not is_sharded(cfg):
        return
    if launcher == 'none':
        raise ValueError(
            f'launcher none: CONFIG {cfg.filename} shards the model over processes (FSDP)'
            ', and a launcher has to start them, be it only one: `bash tools/dist_train.sh CONFIG '
            'GPUS`.')
    if cfg.get('env_cfg') is None:  # FlexibleRunner stops at a config without one
        cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    if gpu:
        return
    wrapper = cfg.strategy.get('model_wrapper') or dict(type='MMFullyShardedDataParallel')
    wrapper['device_id'] = 'cpu'
    cfg.strategy['model_wrapper'] = wrapper
    if cfg.strategy.get('state_dict_cfg') == 'full':
        # 'full' copies to the CPU what is there already, and the process dies (torch 2.12.1).
        options = dict(offload_to_cpu=False, rank0_only=False)
        cfg.strategy['state_dict_cfg'] = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **options),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options))


def unshard(cfg: Config) -> str | None:
    """Take FSDP out of a config, for tests: its checkpoints are whole, and nothing is trained.

    Args:
        cfg (Config): The full config, changed in place.

    Returns:
        str | None: A line for the log, if there was FSDP.
    """
    if not is_sharded(cfg):
        return None
    for key in ('strategy', 'runner_type'):
        cfg.pop(key, None)
    return 'FSDP is for training; the test runs without it.'
