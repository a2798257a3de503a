"""What a training run needs beside the network: hooks, runners, samplers, FSDP."""

from . import (  # noqa: F401  # registers them
    checkpoint_hook,
    cpu_fallbacks,
    finite_loss,
    fsdp,
    guarded_dataset,
    layer_decay,
    metrics_file,
    recipe_samples,
    resumable_rng,
    runner,
)
from .harden import harden

__all__ = ['harden']
