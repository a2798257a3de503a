"""Drawing the predictions of every process of a test.

MMEngine's visualizers draw on process 0 alone (``mmengine.dist.master_only``), so that of N
processes only every Nth image would be drawn.
"""

from functools import wraps

from mmengine.dist import get_dist_info, master_only
from mmengine.hooks import Hook
from mmengine.visualization import LocalVisBackend

from ..registry import HOOKS, register
from .internals import keep_backends

# What draws one image for a hook, in the visualizers of the three codebases.
DRAWS_ONE = ('add_datasample', 'visualize_cls')
# Not of images; these go on being the business of process 0.
RECORDS = ('add_config', 'add_graph', 'add_scalar', 'add_scalars', 'show')
_WRAPPER = master_only(len).__code__  # of whatever it decorates


def on_every_process(kind: type, rank: int, processes: int, images: int) -> type:
    """A visualizer's class that also draws on other processes than 0.

    Process ``rank`` tests the images ``rank``, ``rank + processes``, and so on; the last ones of
    some processes are again the first of the data set, and are left out. An image is numbered as if
    one process drew them all, so names of files are the same.

    Args:
        kind (type): The visualizer's class.
        rank (int): This process.
        processes (int): How many there are.
        images (int): How many images the data set has.

    Returns:
        type: A subclass of the same name.
    """
    plain = {}
    for base in reversed(kind.__mro__):
        for name, item in vars(base).items():
            if name not in RECORDS:
                plain[name] = _undecorated(item)
    methods = {name: item for name, item in plain.items() if item is not None}
    for name in DRAWS_ONE:
        if name in methods:
            methods[name] = _numbered(methods[name], rank, processes, images)
    return type(kind.__name__, (kind, ), {**methods, '__module__': kind.__module__})


def _undecorated(item):
    """What ``master_only`` decorates, as the same kind of attribute; None for anything else."""
    if isinstance(item, property):
        parts = [part and (_undecorated(part) or part) for part in (item.fget, item.fset)]
        return property(*parts) if parts != [item.fget, item.fset] else None
    if isinstance(item, staticmethod):
        inner = _undecorated(item.__func__)
        return inner and staticmethod(inner)
    return item.__wrapped__ if getattr(item, '__code__', None) is _WRAPPER else None


def _numbered(draw, rank: int, processes: int, images: int):
    count = 0

    @wraps(draw)
    def one(self, *args, step: int = 0, **kwargs):
        nonlocal count
        index = count * processes + rank
        count += 1
        if index < images:
            # The hooks count from one, or leave the step at 0.
            draw(self, *args, step=index + 1 if step else 0, **kwargs)

    return one


@register(HOOKS)
class DrawOnEveryProcessHook(Hook):
    """Let the visualizer of a test draw on all processes, as ``test.py --show-dir`` needs it.

    For hooks that draw every image of the test (``interval=1``) and MMEngine's
    ``DefaultSampler``. Other processes than 0 write images to disk alone: a service such as
    TensorBoard's gets those of process 0. With one process nothing is changed.
    """

    def before_test(self, runner) -> None:
        """Exchange the visualizer's class.

        Args:
            runner (Runner): The runner, with a loop for the test.
        """
        rank, processes = get_dist_info()
        if processes == 1:
            return
        dataset = runner.test_dataloader.dataset
        visualizer = runner.visualizer
        visualizer.__class__ = on_every_process(type(visualizer), rank, processes, len(dataset))
        if rank != 0:
            # MMEngine has told process 0 alone.
            visualizer.dataset_meta = dataset.metainfo
            keep_backends(visualizer, LocalVisBackend)
