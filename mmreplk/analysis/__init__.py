"""What a network costs; importable piece by piece."""

from .cost import ModelCost, PartCost, cost_of, format_cost

__all__ = ['ModelCost', 'PartCost', 'cost_of', 'format_cost']
