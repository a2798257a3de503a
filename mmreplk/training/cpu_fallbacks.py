"""What stands in on a CPU for the parts of MMEngine that ask for a GPU."""

from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..config.edit import import_in_config
from ..config.types import class_of
from ..registry import HOOKS, OPTIM_WRAPPERS, register


@register(OPTIM_WRAPPERS)
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: bfloat16 under autocast.

    ``AmpOptimWrapper`` refuses to be built without a GPU, because its loss scaler works around the
    narrow exponent of float16. bfloat16 has the exponent of float32 and needs no scaler.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module):
        """Enter autocast, and the context of gradient accumulation.

        Args:
            model (nn.Module): The model in training.
        """
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


@register(HOOKS)
class AverageBuffersHook(Hook):
    """Average the running statistics of BN over the processes, after every iteration.

    SyncBN keeps them equal; plain BN lets each process drift, so that validation in training would
    use other statistics on each process than the checkpoint, which is that of process 0. MMEngine's
    ``SyncBuffersHook`` acts after the checkpoint is written in an iteration-based loop.
    """

    # Before CheckpointHook and before the EMA copy is updated.
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Average the floating-point buffers of the model in training."""
        all_reduce_params(
            [buffer for buffer in runner.model.buffers() if buffer.is_floating_point()], op='mean')


def use_cpu_modules(cfg: Config, distributed: bool) -> list[str]:
    """Put the stand-ins into a config.

    Args:
        cfg (Config): The full config, changed in place.
        distributed (bool): Whether several processes run.

    Returns:
        list[str]: Phrases that say what was replaced, beyond the device.
    """
    notes = []
    wrapper = cfg.get('optim_wrapper') or {}
    if class_of(wrapper, 'OPTIM_WRAPPERS', cfg.get('default_scope')) is AmpOptimWrapper:
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper['type'] = 'mmreplk.CpuAmpOptimWrapper'
        import_in_config(cfg, 'mmreplk')
        notes.append('bfloat16 without a loss scaler')
    if distributed:
        ddp = cfg.get('model_wrapper_cfg') or dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False))
        # The Runner fills in LOCAL_RANK otherwise, which torch refuses for a model on the CPU.
        ddp['device_ids'] = None
        cfg.model_wrapper_cfg = ddp
        cfg.custom_hooks = [
            *(cfg.get('custom_hooks') or []), dict(type='mmreplk.AverageBuffersHook')]
        if 'env_cfg' in cfg and 'dist_cfg' in cfg.env_cfg:
            cfg.env_cfg.dist_cfg.backend = 'gloo'
        import_in_config(cfg, 'mmreplk')
    return notes
