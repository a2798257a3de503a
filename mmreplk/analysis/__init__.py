"""What a network costs, and what it looks at; importable piece by piece.

Names are imported when they are asked for, so that what needs no mm package works without them.
"""

from importlib import import_module

_MODULE_OF = {
    'ModelCost': 'cost',
    'PartCost': 'cost',
    'cost_of': 'cost',
    'format_cost': 'cost_report',
    'format_shares': 'cost_report',
    'shares_of': 'cost_report',
    'draw_costs': 'cost_plot',
    'ModelLatency': 'latency',
    'latency_of': 'latency',
    'depthwise_share': 'profiling',
    'time_by_kind': 'profiling',
    'StudySettings': 'kernel_study',
    'KernelStudy': 'kernel_study',
    'run_study': 'kernel_study_run',
    'draw_study': 'kernel_study_plot',
    'draw_picture': 'far_context',
    'Decisions': 'shape_bias',
    'draw_shape_bias': 'shape_bias_plot',
    'read_decisions': 'shape_bias',
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
    'enlarge_kernels': '.models.enlarge',
    'merge_kernels': '.models.reparam',
    'remove_shortcuts': '.models.enlarge',
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULE_OF[name]}', __name__), name)
