"""How long a model of the three codebases takes for an image, and what it spends the time on.

The paper's argument (section 3, guideline 1): large depth-wise convolutions are a small part of the
multiply-adds, and with a good implementation of the latency too.
"""

import statistics
import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from mmengine.config import Config

from ...config.edit import replace_sync_bn
from ...config.model import build_model, drop_pretrained
from .models import check_shape, default_shape, first_channels, merge, run_model, silence
from .profiling import TIME_KINDS, time_by_kind

WARM_UP = 2


@dataclass(frozen=True)
class ModelLatency:
    """Latency of a model.

    Attributes:
        seconds (float): Median time of a forward pass, not profiled.
        shares (dict[str, float]): Of the operators' time in a profiled pass, by kind of layer, see
            :data:`.profiling.TIME_KINDS`; their sum is 1.
        shape (tuple[int, int]): Height and width of the images in pixels.
        batch (int): Images in a pass.
        device (str): What it ran on.
        rounds (int): Passes that were timed.
    """
    seconds: float
    shares: dict[str, float]
    shape: tuple[int, int]
    batch: int
    device: str
    rounds: int


def latency_of(cfg: Config, shape: tuple[int, int] | None = None, deploy: bool = False,
               device: str | torch.device = 'cpu', batch: int = 1, rounds: int = 5
               ) -> ModelLatency:
    """Time a config's model, in evaluation mode, float32, on random weights and random images.

    What runs is what :func:`.count.cost_of` counts: backbone, neck and heads, without
    post-processing. The total is timed without the profiler, the shares with it; shares are medians
    over the rounds, scaled to a sum of 1.

    Args:
        cfg (Config): The full config; it is not changed.
        shape (tuple[int, int], optional): Height and width of the images. Defaults to None, what
            :func:`.models.default_shape` finds in the config.
        deploy (bool): Whether to merge small kernels into large ones first. Defaults to False.
        device (str | torch.device): Where to run. Defaults to the CPU.
        batch (int): Images in a pass. Defaults to 1.
        rounds (int): Passes to time, after two that are not. Defaults to 5.

    Returns:
        ModelLatency: Time and shares.

    Raises:
        ValueError: If a number is impossible, the model cannot be built, or there is nothing to
            merge.
        RuntimeError: If the model does not run on such images, or the device cannot be profiled.
    """
    for option, value in (('batch', batch), ('rounds', rounds)):
        if value < 1:
            raise ValueError(f'{option} {value}: give a positive number.')
    shape = tuple(shape or default_shape(cfg))
    check_shape(shape)
    device = torch.device(device)
    model_cfg = deepcopy(cfg)
    replace_sync_bn(model_cfg.model)
    drop_pretrained(model_cfg.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(model_cfg, 'cpu').eval()
        if deploy:
            merge(model, cfg)
        images = torch.randn(batch, first_channels(model), *shape, device='cpu')
    model, images = model.to(device), images.to(device)

    def run():
        run_model(model, images)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    try:
        with silence(), torch.inference_mode():
            for _ in range(WARM_UP):
                run()
            times = [_timed(run) for _ in range(rounds)]
            profiles = [time_by_kind(run, device) for _ in range(min(rounds, 3))]
    except RuntimeError as error:
        raise RuntimeError(f'CONFIG {cfg.filename}: the model does not run on {batch} image'
                           f'{"s" * (batch > 1)} of {shape[0]} x {shape[1]} pixels: {error}'
                           ) from error
    medians = {kind: statistics.median(profile[kind] for profile in profiles)
               for kind in TIME_KINDS}
    total = sum(medians.values())
    if not total:
        raise RuntimeError(f'latency: the profiler has seen no work on {device}. Does PyTorch '
                           'have the rights to profile it?')
    return ModelLatency(statistics.median(times), {k: v / total for k, v in medians.items()}, shape,
                        batch, device_name(device), rounds)


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def device_name(device: torch.device) -> str:
    """What a reader should know of a device: the GPU's name, or the number of CPU threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{device.type.upper()}, {threads} thread{"s" * (threads > 1)}'
