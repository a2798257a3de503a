"""What a network costs, and what it looks at; importable piece by piece.

Names are imported when they are asked for, so that what needs no mm package works without them.
"""

from importlib import import_module

_MODULE_OF = {
    'ModelCost': 'cost',
    'PartCost': 'cost',
    'cost_of': 'cost',
    'format_cost': 'cost',
    'CentredSquare': 'erf',
    'centre_point': 'erf',
    'contribution_scores': 'erf',
    'effective_receptive_field': 'erf',
    'high_contribution_area': 'erf',
    'input_contribution': 'erf',
    'spread': 'erf',
    'uniform_spread': 'erf',
    'GeneratedImages': 'erf_images',
    'FolderImages': 'erf_images',
    'ErfModel': 'erf_models',
    'ModelSpec': 'erf_models',
    'open_model': 'erf_models',
    'parse_models': 'erf_models',
    'ErfResult': 'erf_report',
    'format_table': 'erf_report',
    'measure': 'erf_report',
    'draw_heat_maps': 'erf_plot',
    'draw_table': 'erf_plot',
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULE_OF[name]}', __name__), name)
