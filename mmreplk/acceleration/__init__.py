"""The operator in networks that know nothing of it: ``accelerate`` and ``restore``."""

from .network import accelerate, restore
from .table import Row, Table

__all__ = ['Row', 'Table', 'accelerate', 'restore']
