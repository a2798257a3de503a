"""The first use of a kernel on a device: a small problem beside float64, and the outcome kept.

Two channels and a few images of the caller's kernel size, compiled as for the caller. Inputs,
results and workspaces lie between margins of a huge number, and are full of it before they are
written. Costs one launch, PyTorch's convolution in float64 and one synchronization, beside the
compilation that the caller's problem needs anyway; once for each device, driver, version and
compiled kernel.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Problem
from . import cache, health, memory, versions
from .arch import arch_of
from .family import Family

# Largest error, as a share of the root mean square of the exact result and of each value: some
# roundings of the dtype, or of TF32's 11 bits in each product. What is wrong is off by about 1.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, 'tf32': 1e-2, 'exact': 2e-5}
RIGHT = 'right'
# Outcomes that this process knows; and what it has loaded, which a CUDA graph may then record.
_outcomes: dict[tuple[str, str, str], str] = {}
_loaded: set[tuple[str, str, str]] = set()
_lock = threading.RLock()


class Mismatch(RuntimeError):
    """A kernel's results are not the convolution's."""


def forget() -> None:
    """Take nothing for checked any more; files stay."""
    _outcomes.clear()
    _loaded.clear()


def ensure(family: Family, device: torch.device, problem: Problem, task: str, mode: str,
           variant) -> tuple[str, str, str]:
    """Check what a call is about to use, unless that was done; what `loaded` is to be told.

    Raises:
        Mismatch: If the kernel is known to be wrong.
        NotReady: If a CUDA graph is recorded and the kernel was not used before.
        Exception: What compiling, loading or launching it raises.
    """
    key, small = family.probe(problem, task, mode, variant, arch_of(device))
    name = str(device), family.name, key
    if health.is_capturing(device):
        if name not in _loaded:
            raise health.NotReady(
                f'the {family.name!r} kernel was not used on {device} before this CUDA graph is '
                'recorded: call it once before, with inputs of this shape')
        return name
    with _lock:
        if name not in _outcomes:
            _outcomes[name] = _known_or_found(family, device, key, small, task, mode, variant)
        outcome = _outcomes[name]
    if outcome != RIGHT:
        raise Mismatch(outcome)
    return name


def _known_or_found(family, device, key, small, task, mode, variant) -> str:
    facts = versions.about(device, family)
    file = f'checks-{versions.fingerprint(facts)}'
    outcome = cache.read(file, facts).get(key)
    if outcome == RIGHT:
        return outcome
    if isinstance(outcome, str):
        return f'{outcome} (found earlier; delete {cache.path_of(file)} to have it checked again)'
    outcome = outcome_of(family, device, small, task, mode, variant)
    cache.add(file, facts, {key: outcome})
    return outcome


def loaded(name: tuple[str, str, str]) -> None:
    """Note that a kernel has run in this process."""
    _loaded.add(name)


def outcome_of(family: Family, device: torch.device, p: Problem, task: str, mode: str, variant
               ) -> str:
    """`RIGHT`, or what is wrong with a family's kernels on a problem, in poisoned memory."""
    generator = torch.Generator('cpu').manual_seed(0)

    def normal(*shape):
        values = torch.randn(shape, generator=generator, device='cpu', dtype=torch.float32)
        return memory.in_poison(values.to(p.dtype).to(device))

    x = normal(p.batch, p.channels, p.height, p.width)
    with torch.no_grad(), memory.poisoned() as margins_are_intact:
        if task == 'forward':
            weight = normal(p.channels, 1, *p.kernel)
            bias = normal(p.channels) if p.has_bias else None
            out = family.forward(x, weight, bias, p, mode, variant)
            expected = exact_forward(x, weight, bias, p)
        else:
            grad = normal(*p.out_shape)
            out = family.weight_grad(x, grad, p, mode, variant)
            expected = exact_weight_grad(x, grad, p)
        error = relative_error(out, expected)
        allowed = TOLERANCE[p.dtype if mode == 'half' else mode]
        if not error <= allowed:
            return (f'{task} of {tuple(x.shape)} by {p.kernel} in {mode} with {variant} is wrong: '
                    f'off by {error:.2g} of its root mean square, {allowed:.2g} is allowed')
        if not margins_are_intact():
            return f'{task} in {mode} with {variant} writes beside its results'
    return RIGHT


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Largest error, as a share of the root mean square and of each value; Inf for NaN."""
    if out.shape != expected.shape:
        return float('inf')
    scale = expected.square().mean().sqrt() + expected.abs()
    error = ((out.double() - expected).abs() / scale.clamp_min(1e-300)).max().item()
    return error if error == error else float('inf')


def exact_forward(x: Tensor, weight: Tensor, bias: Tensor | None, p: Problem) -> Tensor:
    """The convolution in float64, by PyTorch."""
    out = F.conv2d(_padded(x, p), weight.double(), None if bias is None else bias.double(),
                   groups=p.channels)
    return out.relu() if p.relu else out


def exact_weight_grad(x: Tensor, grad: Tensor, p: Problem) -> Tensor:
    """The gradient of the weights in float64, by PyTorch."""
    return torch.ops.aten.convolution_backward(
        grad.double(), _padded(x, p), x.new_empty(p.channels, 1, *p.kernel, dtype=torch.float64),
        None, (1, 1), (0, 0), (1, 1), False, (0, 0), p.channels, (False, True, False))[1]


def _padded(x: Tensor, p: Problem) -> Tensor:
    top, bottom, left, right = p.padding
    return F.pad(x.double(), (left, right, top, bottom))
