"""What a family of GPU kernels is to the code that makes it safe: one record."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..problem import Problem
from .arch import Arch


class Family(NamedTuple):
    """Kernels that are compiled, checked, timed and given up together; a backend of that name.

    A task is 'forward' or 'weight_grad', a mode one of ``tiles.MODES``. A variant is one way to
    compile and launch the kernels, such as a tile: a hashable tuple of numbers and such tuples.

    Attributes:
        name (str): Of the backend.
        supports (Callable): ``(problem, task) -> (ok, reason)``.
        estimate (Callable): ``(problem, task) -> seconds``.
        variants (Callable): ``(problem, task, mode, arch) -> variants``, best first, at least one.
        probe (Callable): ``(problem, task, mode, variant, arch) -> (key, small)``: a name for what
            the variant is compiled to, and a small problem that compiles to the same.
        forward (Callable): ``(x, weight, bias, problem, mode, variant) -> out``.
        weight_grad (Callable): ``(x, grad, problem, mode, variant) -> gradient of the weights``.
        versions (Callable): ``() -> {name: version}`` of what its kernels are made by and of.
        read (Callable): ``(task, variant as read from JSON) -> variant``; raises ValueError or
            TypeError for what is none.
    """

    name: str
    supports: Callable[[Problem, str], tuple[bool, str]]
    estimate: Callable[[Problem, str], float]
    variants: Callable[[Problem, str, str, Arch], list[Any]]
    probe: Callable[[Problem, str, str, Any, Arch], tuple[str, Problem]]
    forward: Callable[[Tensor, Tensor, Tensor | None, Problem, str, Any], Tensor]
    weight_grad: Callable[[Tensor, Tensor, Problem, str, Any], Tensor]
    versions: Callable[[], dict[str, str]]
    read: Callable[[str, Any], Any]
