"""What a network costs, and what it looks at; importable piece by piece.

Names are imported when they are asked for, so that what needs no mm package works without them.
"""

# ruff: noqa: F401  # the names are exported by __all__, which is made of the table

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not follow __getattr__
    from ..models.enlarge.kernels import enlarge_kernels, remove_shortcuts
    from ..models.reparam import merge_kernels
    from .confusion.matrix import Confusion, confusion_of
    from .confusion.plot import draw_confusion
    from .cost.count import ModelCost, PartCost, cost_of
    from .cost.latency import ModelLatency, latency_of
    from .cost.plot import draw_costs
    from .cost.profiling import depthwise_share, time_by_kind
    from .cost.report import format_cost, format_shares, shares_of
    from .erf.field import (
        CenteredSquare,
        center_point,
        contribution_scores,
        effective_receptive_field,
        high_contribution_area,
        input_contribution,
        spread,
        uniform_spread,
    )
    from .erf.images import FolderImages, GeneratedImages
    from .erf.models import ErfModel, ModelSpec, open_model, parse_models
    from .erf.plot import draw_heat_maps, draw_table
    from .erf.report import ErfResult, format_table, measure
    from .kernel_study.camvid import CamVidSettings, CamVidStudy
    from .kernel_study.far_context import draw_picture
    from .kernel_study.plot import draw_study
    from .kernel_study.run import run_study
    from .kernel_study.settings import KernelStudy, StudySettings
    from .runs.logs import RunCurves, read_run
    from .runs.plot import draw_runs
    from .shape_bias.decisions import Decisions, read_decisions
    from .shape_bias.plot import draw_shape_bias

_MODULE_OF = {
    'Confusion': 'confusion.matrix',
    'confusion_of': 'confusion.matrix',
    'draw_confusion': 'confusion.plot',
    'RunCurves': 'runs.logs',
    'read_run': 'runs.logs',
    'draw_runs': 'runs.plot',
    'ModelCost': 'cost.count',
    'PartCost': 'cost.count',
    'cost_of': 'cost.count',
    'format_cost': 'cost.report',
    'format_shares': 'cost.report',
    'shares_of': 'cost.report',
    'draw_costs': 'cost.plot',
    'ModelLatency': 'cost.latency',
    'latency_of': 'cost.latency',
    'depthwise_share': 'cost.profiling',
    'time_by_kind': 'cost.profiling',
    'StudySettings': 'kernel_study.settings',
    'KernelStudy': 'kernel_study.settings',
    'CamVidSettings': 'kernel_study.camvid',
    'CamVidStudy': 'kernel_study.camvid',
    'run_study': 'kernel_study.run',
    'draw_study': 'kernel_study.plot',
    'draw_picture': 'kernel_study.far_context',
    'Decisions': 'shape_bias.decisions',
    'draw_shape_bias': 'shape_bias.plot',
    'read_decisions': 'shape_bias.decisions',
    'CenteredSquare': 'erf.field',
    'center_point': 'erf.field',
    'contribution_scores': 'erf.field',
    'effective_receptive_field': 'erf.field',
    'high_contribution_area': 'erf.field',
    'input_contribution': 'erf.field',
    'spread': 'erf.field',
    'uniform_spread': 'erf.field',
    'GeneratedImages': 'erf.images',
    'FolderImages': 'erf.images',
    'ErfModel': 'erf.models',
    'ModelSpec': 'erf.models',
    'open_model': 'erf.models',
    'parse_models': 'erf.models',
    'ErfResult': 'erf.report',
    'format_table': 'erf.report',
    'measure': 'erf.report',
    'draw_heat_maps': 'erf.plot',
    'draw_table': 'erf.plot',
    'enlarge_kernels': '.models.enlarge.kernels',
    'merge_kernels': '.models.reparam',
    'remove_shortcuts': '.models.enlarge.kernels',
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULE_OF[name]}', __name__), name)


def __dir__() -> list[str]:
    return __all__
