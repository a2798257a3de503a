"""The families of GPU kernels: to add one, add its record."""

from . import backend as triton
from .cuda import backend as cuda
from .family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (triton.FAMILY, cuda.FAMILY)}
