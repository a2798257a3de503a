"""Arithmetic that every backend shares: rounded-up division, and the dtype of sums."""

import torch
from torch import Tensor


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of another are summed up: float32 for 16 bits, else itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def to_opmath(tensor: Tensor) -> Tensor:
    """The tensor in its `opmath_dtype`."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
