"""A kernel's launch with all that is known looked up: 3 us of Python in place of Triton's 25.

Triton's own way of calling a kernel binds the arguments, specializes on them and looks the compiled
kernel up, every time. Here all tensors are aligned and all sizes known, so that the first call of a
launch on a device finds the compiled kernel, which later calls use.
"""

import triton
from torch import Tensor

from . import kernels as real_kernels

# From this version on, compiled kernels take all arguments in order, constants among them.
_TRIED = (3, 6)
_version = tuple(int(part) for part in triton.__version__.split('.')[:2])


class Launch:
    """One launch of a kernel without its tensors.

    Args:
        name (str): Of the kernel.
        programs (int): Of the grid.
        integers (dict[str, int]): Arguments by name.
        constants (dict): Of compile time, and Triton's options.
    """

    def __init__(self, name: str, programs: int, integers: dict[str, int], constants: dict):
        self.name, self.grid = name, (programs, 1, 1)
        names = getattr(real_kernels, name).arg_names
        known = integers | constants
        self.arguments = [known.get(each) for each in names]
        self.places = [i for i, each in enumerate(names) if each.endswith('_ptr')]
        self.options = {each: value for each, value in constants.items() if each not in names}
        # By device: that of a launcher whose arguments were tensors at multiples of 16 bytes.
        self._compiled = {}

    def __call__(self, kernels, *tensors: Tensor) -> None:
        """Launch on the current stream of the current device, which is the tensors'.

        Args:
            kernels: What has the kernel by its name; the module, but where nothing is to run.
            *tensors (Tensor): For the arguments whose names end in ``_ptr``, in their order.
        """
        arguments = self.arguments.copy()
        for place, tensor in zip(self.places, tensors, strict=True):
            arguments[place] = tensor
        device = tensors[0].device.index
        compiled = self._compiled.get(device)
        if compiled is not None and kernels is real_kernels:
            compiled[self.grid](*arguments)
            return
        compiled = getattr(kernels, self.name)[self.grid](*arguments, **self.options)
        if kernels is real_kernels and _version >= _TRIED and isinstance(
                compiled, triton.compiler.CompiledKernel):
            self._compiled[device] = compiled
