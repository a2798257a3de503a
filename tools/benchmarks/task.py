"""One shape as something to run: its inputs, what is called in each mode, and the check."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from candidates import LAYOUTS, Candidate
from shapes import Shape
from timing import Job
from torch import Tensor

MODES = ('forward', 'backward', 'both')
# Names of dtypes on the command line; 'tf32' is float32 with TF32 allowed in convolutions.
DTYPES = {'fp64': torch.float64, 'fp32': torch.float32, 'tf32': torch.float32,
          'fp16': torch.float16, 'bf16': torch.bfloat16}
# The one table of tolerances: norm of the error over norm of the float64 result, for outputs and
# input gradients, and for gradients of weights and bias, which are sums over all pixels.
TOLERANCE = {'fp64': (1e-12, 1e-11), 'fp32': (1e-5, 1e-4), 'tf32': (2e-3, 2e-3),
             'fp16': (1e-3, 2e-3), 'bf16': (8e-3, 1.6e-2)}
# Multiply-adds of the float64 check: a second or so on two cores.
CHECK_MACS = 3e8
FRESH_SETS = 4


class Wrong(Exception):
    """A result that is not the convolution. The message says how far off it is."""


class Task:
    """Inputs of one shape, and the calls on them.

    Args:
        shape (Shape): The convolution, or the stack.
        dtype (str): A key of `DTYPES`.
        mode (str): 'forward' (no gradients wanted), 'backward' (the gradients of input, weight and
            bias alone) or 'both' (a forward pass and these gradients).
        device (torch.device): Of the inputs.
        bias (bool): Whether there is one. Defaults to False.
        fresh (bool): Only for 'forward': change the weights before every call, so that nothing
            derived from them can be kept from one call to the next. Defaults to False.
        seed (int): Of the inputs and of the channels that are checked. Defaults to 0.
    """

    def __init__(self, shape: Shape, dtype: str, mode: str, device: torch.device,
                 bias: bool = False, fresh: bool = False, seed: int = 0):
        if shape.layers > 1 and (shape.kernel[0] % 2 == 0 or shape.kernel[1] % 2 == 0):
            raise ValueError(f'an even kernel changes the size of the map: no stack of {shape}')
        self.shape, self.dtype, self.mode, self.device = shape, dtype, mode, device
        self.fresh = fresh and mode == 'forward'
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size):
            values = torch.randn(size, device=device, dtype=torch.float32, generator=generator)
            return values.to(DTYPES[dtype])

        size, (kh, kw) = (shape.height, shape.width), shape.kernel
        self.out_size = tuple(
            s + 2 * p - k + 1 for s, p, k in zip(size, shape.padding, shape.kernel, strict=True))
        self.x = normal(shape.batch, shape.channels, *size)
        # Scaled so that values keep their size down the stack.
        scale = (kh * kw)**-0.5
        self.weights = [[normal(shape.channels, 1, kh, kw) * scale for _ in range(shape.layers)]
                        for _ in range(FRESH_SETS if self.fresh else 1)]
        self.biases = [normal(shape.channels) if bias else None for _ in range(shape.layers)]
        self.grad = normal(shape.batch, shape.channels, *self.out_size)
        self._generator = torch.Generator().manual_seed(seed)
        self._expected = None
        self._in_layout = {}

    @property
    def weights_are(self) -> str:
        """The column that says what the operator may keep between calls."""
        if self.mode != 'forward':
            return 'trained'
        return 'fresh' if self.fresh else 'kept'

    def cost(self) -> tuple[int, int]:
        """Bytes that have to move and in-bounds multiply-adds of one call.

        Backward reads the input, the weights and the output's gradient and writes the gradients of
        the first two; each of the two gradients has as many products as the forward pass.
        """
        problem = self.problem()
        bias = problem.channels * problem.has_bias
        maps = problem.batch * problem.channels * problem.height * problem.width
        taps = problem.channels * problem.kernel[0] * problem.kernel[1]
        backward = (2 * maps + self.grad.numel() + 2 * taps + bias) * problem.dtype.itemsize
        passes = {'forward': (problem.bytes_moved, 1), 'backward': (backward, 2),
                  'both': (problem.bytes_moved + backward, 3)}
        nbytes, sums = passes[self.mode]
        return nbytes * self.shape.layers, sums * problem.macs * self.shape.layers

    def problem(self):
        """One layer as the operator's `Problem`."""
        from mmreplk.ops.problem import Problem
        ph, pw = self.shape.padding
        return Problem.of(self.x, self.weights[0][0].shape, (ph, ph, pw, pw),
                          has_bias=self.biases[0] is not None)

    def first_call(self, candidate: Candidate) -> tuple:
        """x, weight, bias and padding of the first layer, in the candidate's layout."""
        x = self._inputs(candidate.layout)[0]
        weight = self.weights[0][0].contiguous(memory_format=LAYOUTS[candidate.layout])
        return x, weight, self.biases[0], self.shape.padding

    def job(self, candidate: Candidate) -> Job:
        """What is timed."""
        x, weights, grad = self._inputs(candidate.layout)
        call, biases, padding = candidate.call, self.biases, self.shape.padding

        def stack(x, weights, biases):
            for weight, bias in zip(weights, biases, strict=True):
                x = call(x, weight, bias, padding)
            return x

        if self.mode == 'forward':
            turn = changes = 0

            def forward():
                nonlocal turn
                turn = (turn + 1) % len(weights)
                return stack(x, weights[turn], biases)

            def change():
                nonlocal changes
                changes += 1
                for layers in weights:
                    for weight in layers:  # one tap of each channel, to a value not seen lately
                        weight[:, :, 0, 0] = changes % 128 / 128

            return Job(forward, change, FRESH_SETS) if self.fresh else Job(forward)

        leaves = [x, *weights[0], *(b for b in biases if b is not None)]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        layers = self.shape.layers
        inputs = leaves[0], leaves[1:1 + layers], leaves[1 + layers:] or biases
        if self.mode == 'both':
            return Job(lambda: torch.autograd.grad(stack(*inputs), leaves, grad))
        y = stack(*inputs)
        return Job(lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))

    def context(self):
        """Entered around everything that is timed."""
        return torch.no_grad() if self.mode == 'forward' else nullcontext()

    def check(self, candidate: Candidate) -> float:
        """Compare one layer with float64 and return the relative error, the largest of all results.

        Checked are all images (two of them for an output) of the first, the last and some random
        channels, and of the others that they are finite.

        Raises:
            Wrong: If the error exceeds the tolerance, or a shape, a dtype or a value is no good.
        """
        x, weight, bias, padding = self.first_call(candidate)
        results = self._results(candidate.call, x, weight, bias, padding,
                                self._inputs(candidate.layout)[2])
        worst = 0.0
        images, channels, expected = self._reference()
        for name, wanted in expected.items():
            result = results[name]
            if result.dtype != x.dtype:
                raise Wrong(f'{name} is {result.dtype}, not {x.dtype}')
            full = self._full_shape(name)
            if tuple(result.shape) != full:
                raise Wrong(f'{name} has the shape {tuple(result.shape)}, not {full}')
            if not torch.isfinite(result).all():
                raise Wrong(f'{name} has values that are not finite')
            some = (result[images][:, channels] if name in ('output', 'input gradient')
                    else result[channels])
            error = float((some.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))
            allowed = TOLERANCE[self.dtype][name not in ('output', 'input gradient')]
            if not error <= allowed:
                raise Wrong(f'{name}: relative error {error:.2g}, allowed is {allowed:.2g}')
            worst = max(worst, error)
        return worst

    def predict(self, candidate: Candidate, seconds_of: Callable, channels: int = 16) -> float:
        """Seconds of one call, guessed from one image, one layer and a few channels."""
        x, weight, bias, padding = self.first_call(candidate)
        some = slice(0, channels)
        x = x[:1, some].contiguous(memory_format=LAYOUTS[candidate.layout])
        weight, bias = weight[some], None if bias is None else bias[some]
        grad = self._inputs(candidate.layout)[2][:1, some]
        seconds = seconds_of(
            lambda: self._results(candidate.call, x, weight, bias, padding, grad), self.device)
        shape = self.shape
        return seconds * shape.batch * shape.layers * shape.channels / x.shape[1]

    def _inputs(self, layout: str):
        if layout not in self._in_layout:
            to = LAYOUTS[layout]
            # Clones, as timing with fresh weights writes into them; the check needs the originals.
            self._in_layout[layout] = (
                self.x.contiguous(memory_format=to),
                [[w.clone(memory_format=to) for w in layers] for layers in self.weights],
                self.grad.contiguous(memory_format=to))
        return self._in_layout[layout]

    def _results(self, call, x, weight, bias, padding, grad) -> dict[str, Tensor]:
        """What the mode computes, by name, of one layer."""
        if self.mode == 'forward':
            with torch.no_grad():
                return {'output': call(x, weight, bias, padding)}
        leaves = {'input gradient': x, 'weight gradient': weight}
        if bias is not None:
            leaves['bias gradient'] = bias
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        x, weight, *bias = leaves.values()
        y = call(x, weight, bias[0] if bias else None, padding)
        grads = torch.autograd.grad(y, tuple(leaves.values()), grad)
        results = dict(zip(leaves, grads, strict=True))
        return results | {'output': y.detach()} if self.mode == 'both' else results

    def _reference(self):
        """Images and channels that are checked, and their float64 results."""
        if self._expected is None:
            shape = self.shape
            images = slice(None)
            if self.mode == 'forward' and shape.batch > 2:
                images = slice(0, None, shape.batch - 1)
            x = self.x[images]
            macs = self.problem().macs_per_plane * len(x) * (1 if self.mode == 'forward' else 3)
            count = min(16, max(2, int(CHECK_MACS / macs)))
            others = torch.randperm(shape.channels, generator=self._generator)[:count].tolist()
            channels = sorted({0, shape.channels - 1, *others[2:]})
            bias = self.biases[0]
            results = self._results(
                lambda x, w, b, padding: F.conv2d(x, w, b, padding=padding, groups=len(channels)),
                x[:, channels].double(), self.weights[0][0][channels].double(),
                None if bias is None else bias[channels].double(), shape.padding,
                self.grad[images][:, channels].double())
            self._expected = images, channels, results
        return self._expected

    def _full_shape(self, name: str) -> tuple[int, ...]:
        shape = self.shape
        return {'output': (shape.batch, shape.channels, *self.out_size),
                'input gradient': tuple(self.x.shape),
                'weight gradient': (shape.channels, 1, *shape.kernel),
                'bias gradient': (shape.channels, )}[name]
