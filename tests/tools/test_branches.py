"""``tools/benchmarks/branches.py``: both branches of a block, compared before they are timed."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'


@pytest.fixture
def branches(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import branches
    yield branches
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(FOLDER)):
            del sys.modules[name]


def test_times_every_candidate(branches):
    rows = branches.measure(branches.shape_suites.Shape(2, 6, 12, 12, (9, 9)), 5, 0.01)
    assert [row['candidate'] for row in rows] == list(branches.CANDIDATES)
    for row in rows:
        assert 0 < row['p20_ms'] <= row['median_ms'] <= row['p80_ms']
        assert row['error'] <= row['tolerance']
    report = branches.report(rows)
    assert '2x6x12x12, K 9 + 5' in report
    assert 'times as long as the pair' in report


def test_a_wrong_candidate_is_not_timed(branches, monkeypatch):
    layout, call = branches.CANDIDATES['ours two calls']
    monkeypatch.setitem(branches.CANDIDATES, 'ours two calls',
                        (layout, lambda x, *weights: [1.01 * y for y in call(x, *weights)]))
    with pytest.raises(ArithmeticError, match='ours two calls'):
        branches.measure(branches.shape_suites.Shape(1, 6, 12, 12, (9, 9)), 5, 0.01)
