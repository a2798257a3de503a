"""What is used of MMEngine's Runner, loops and optimizer wrappers without being documented.

Tried with mmengine 0.10.7 and onedl-mmengine 0.10.12. ``Runner`` and ``FlexibleRunner`` have these
names alike.
"""

from torch.utils.data import DataLoader


def is_resuming(runner) -> bool:
    """Whether a run goes on with another. There is no public name for it.

    Args:
        runner (Runner): MMEngine's.
    """
    return bool(runner._resume)


def start_of(runner) -> str | None:
    """The checkpoint that a run starts from, if one is known. There is no public name for it.

    Args:
        runner (Runner): MMEngine's.
    """
    return runner._load_from


def resume_from(runner, path: str | None) -> None:
    """Choose the checkpoint before the Runner looks for one by ``last_checkpoint`` alone.

    Args:
        runner (Runner): MMEngine's, which has not loaded anything yet.
        path (str, optional): The checkpoint; None to begin at the beginning.
    """
    runner._load_from, runner._resume = path, path is not None


def built_loops(runner) -> dict:
    """The loops that this run uses. The public properties would build the others.

    Args:
        runner (Runner): MMEngine's.

    Returns:
        dict[str, BaseLoop]: By ``train``, ``val`` and ``test``.
    """
    loops = {phase: getattr(runner, f'_{phase}_loop', None) for phase in ('train', 'val', 'test')}
    return {phase: loop for phase, loop in loops.items() if hasattr(loop, 'dataloader')}


def replace_loader(loop, loader: DataLoader) -> None:
    """Give a loop that has not begun another data loader.

    Args:
        loop (BaseLoop): MMEngine's. One by iterations has made an iterator of its loader.
        loader (DataLoader): The loader.
    """
    loop.dataloader = loader
    if hasattr(loop, 'dataloader_iterator'):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)


def settle_val_interval(loop) -> None:
    """Let a training loop choose ``val_interval`` for where it is, as it does after a step.

    Args:
        loop (BaseLoop): MMEngine's, by epochs or iterations.
    """
    loop._decide_current_val_interval()


def accumulative_counts(optim_wrapper) -> int:
    """Iterations whose gradients make one step. The argument of that name is kept privately.

    Args:
        optim_wrapper (OptimWrapper): MMEngine's, or what has no such thing: 1.
    """
    return getattr(optim_wrapper, '_accumulative_counts', 1)


def count_iteration(optim_wrapper) -> None:
    """Count an iteration that is left out, as ``update_params`` would.

    Args:
        optim_wrapper (OptimWrapper): MMEngine's.
    """
    optim_wrapper._inner_count += 1


def keep_backends(visualizer, kind: type) -> None:
    """Take all but one kind of the places that a visualizer writes to away from it.

    Args:
        visualizer (Visualizer): MMEngine's.
        kind (type): The class of the backends that stay.
    """
    visualizer._vis_backends = {name: backend for name, backend in visualizer._vis_backends.items()
                                if isinstance(backend, kind)}
