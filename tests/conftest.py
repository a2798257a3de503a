"""Shared by all tests: one thread, one seed, a small architecture, and checks of the machine.

What takes long in many variants is marked ``sample``: a run takes enough of its parametrizations
that each value of each parameter occurs, though not each combination. With ``MMREPLK_ALL=1`` in the
environment (``tools/run_tests.sh --all``) it takes them all.
"""

import importlib.util
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ALL = os.environ.get('MMREPLK_ALL') == '1'
SAMPLED = pytest.StashKey[tuple[int, int]]()
NO_OPS = 'mmdet needs MMCV with compiled operators'


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_scope_kept():
    """A runner's scope outlives it, and a name without a scope is looked up there first."""
    if find_spec('mmengine') is None:  # tests of the operator alone, on a machine lent
        yield
        return
    from mmengine.registry import DefaultScope
    kept = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(kept)


@pytest.fixture
def tiny_arch():
    """A RepLKNet with every kind of block that a test can afford: a fresh dict each time."""
    return dict(
        large_kernel_sizes=[13, 11, 9, 7], layers=[1, 2, 1, 1], channels=[8, 12, 16, 20],
        small_kernel=5, dw_ratio=1, ffn_ratio=4)


@pytest.fixture(scope='session')
def tool_server():
    """Runs tools as forks of a process that has imported the libraries; see tool_server.py."""
    path = Path(__file__).with_name('tool_server.py')
    spec = importlib.util.spec_from_file_location('tool_server', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.ToolServer()
    yield server
    server.close()


def randomize_norms(module):
    """Give every batch norm statistics and parameters that make a wrong merge visible."""
    for m in module.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(m.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(m.running_var, 0.3, 3.0)
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
            torch.nn.init.uniform_(m.bias, -0.5, 0.5)
    return module


@pytest.fixture(name='randomize_norms')
def _randomize_norms():
    return randomize_norms


def has_mmcv_ops():
    return find_spec('mmcv') is not None and find_spec('mmcv._ext') is not None


def pytest_runtest_setup(item):
    if item.get_closest_marker('needs_mmcv_ops') and not has_mmcv_ops():
        pytest.skip(NO_OPS)


def cover(features):
    """Indices of a few of these sets, in order, that together hold each element of all of them.

    Each next one adds the most; among equals it repeats the least, so that combinations vary.
    """
    missing, seen, kept = set().union(*features), Counter(), []
    while missing:
        best = max(range(len(features)), key=lambda i: (
            len(features[i] & missing), -sum(seen[f] for f in features[i]), -i))
        kept.append(best)
        missing -= features[best]
        seen.update(features[best])
    return sorted(kept)


def features_of(item, by=None):
    if by is not None:
        return set(by(**item.callspec.params))
    return {(name, repr(value)) for name, value in item.callspec.params.items()}


# Last: of what -m and -k have left, so that one variant that is asked for by name is run.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Of tests marked ``sample``, take some of the parametrizations."""
    functions = {}
    for item in items:
        if item.get_closest_marker('sample') and hasattr(item, 'callspec'):
            functions.setdefault(item.nodeid.partition('[')[0], []).append(item)
    if ALL or not functions:
        return
    kept, total = [], 0
    for variants in functions.values():
        mark = variants[0].get_closest_marker('sample')
        chosen = cover([features_of(item, **mark.kwargs) for item in variants])
        assert chosen, f'no parametrization of {variants[0].nodeid} is in the sample'
        kept += [variants[i] for i in chosen]
        total += len(variants)
    dropped = {item for variants in functions.values() for item in variants} - set(kept)
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=list(dropped))
    config.stash[SAMPLED] = len(kept), total
    if hasattr(config, 'workeroutput'):  # of pytest-xdist, whose workers print nothing
        config.workeroutput['sampled'] = len(kept), total


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Every worker of pytest-xdist has collected the same: the last one's figures are the run's."""
    if 'sampled' in getattr(node, 'workeroutput', ()):
        node.config.stash[SAMPLED] = tuple(node.workeroutput['sampled'])


def pytest_terminal_summary(terminalreporter, config):
    if SAMPLED in config.stash:
        terminalreporter.write_line('Sampled: {} of {} parametrizations of the tests marked so; '
                                    'MMREPLK_ALL=1 runs all.'.format(*config.stash[SAMPLED]))


@pytest.fixture(scope='session')
def everything():
    """Whether all is to be run, however long it takes."""
    return ALL


@pytest.fixture(scope='session')
def some():
    """``some(tiles)``: of tuples, as few as hold each value of each field, or all: see above."""
    def some(tuples):
        tuples = list(tuples)
        return tuples if ALL else [tuples[i] for i in cover([set(enumerate(t)) for t in tuples])]

    return some


def pytest_configure(config):
    # The suite's install step builds the operators: CI must not pass by skipping what needs them.
    if os.environ.get('CI') and not has_mmcv_ops():
        raise pytest.UsageError(
            'mmcv has no compiled operators; run `bash tools/install.sh --with-ops`')


@pytest.fixture
def run_state():
    """What a checkpoint of a training run holds beside the weights."""
    return dict(
        meta=dict(epoch=0, iter=2),
        optimizer=dict(state={}, param_groups=[dict(params=[0], lr=0.1)]),
        param_schedulers=[],
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}))
