"""The public names of mmreplk.analysis and mmreplk.ops, as an editor or ``dir`` shows them."""

import ast
from pathlib import Path

import pytest

import mmreplk.analysis
import mmreplk.ops


def test_dir_shows_the_public_names_alone():
    assert set(dir(mmreplk.analysis)) == set(mmreplk.analysis.__all__)
    assert dir(mmreplk.ops) == ['LargeKernelDWConv2d', 'explain', 'large_kernel_dwconv2d',
                                'large_kernel_dwconv2d_pair']


@pytest.mark.parametrize('name', mmreplk.analysis.__all__)
def test_every_name_leads_somewhere(name):
    assert getattr(mmreplk.analysis, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError, match="'mmreplk.analysis' has no attribute 'nothing'"):
        mmreplk.analysis.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(mmreplk.analysis.__file__).read_text(encoding='utf-8'))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {name.name: f'{"." * (node.level - 1)}{node.module}'
             for node in block.body for name in node.names}
    assert found == mmreplk.analysis._MODULE_OF
