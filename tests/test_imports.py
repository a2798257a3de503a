"""Imports go one way: each part of the package knows what is below it, and nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom to the top. A part may import those of lower rank, and itself.
RANKS = {
    'version': 0,
    'packages': 0,
    'files': 0,
    'paths': 0,
    'registry': 1,
    'config': 2,
    'ops': 2,
    'models': 3,
    'weights': 4,
    'acceleration': 5,
    'training': 5,
    'deploy': 5,
    'timm': 5,
    'analysis': 5,
    'hub': 6,
    'commands': 6,
    '__init__': 7,
    'utils': 8,
    '__main__': 8,
    'tools': 8,
}
# What works with nothing but torch installed.
TORCH_ALONE = ('ops', )


def part_of(module: str) -> str:
    """The part that a module belongs to: ``mmreplk.ops.cpu.plan`` to ``ops``."""
    return (module.split('.') + ['__init__'])[1]


def imports_of(text: str, module: str, is_package: bool) -> set[str]:
    """The modules of mmreplk that a module imports, also inside functions.

    Args:
        text (str): Its source.
        module (str): Its dotted name.
        is_package (bool): Whether it is an ``__init__.py``.

    Returns:
        set[str]: Dotted names.
    """
    package = module.split('.') if is_package else module.split('.')[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join(base + ([node.module] if node.module else []))
            # Of the package itself, what is named may be a module, such as `from .. import files`.
            found.update(f'{base}.{name.name}' if base == 'mmreplk' and name.name in RANKS else base
                         for name in node.names)
    return {name for name in found if name.split('.')[0] == 'mmreplk'}


def forbidden(part: str, imports: set[str]) -> set[str]:
    """Those of some imports that are not below a part."""
    return {name for name in imports
            if part_of(name) != part and (RANKS[part_of(name)] >= RANKS[part]
                                          or part in TORCH_ALONE)}


def modules():
    for file in sorted((ROOT / 'mmreplk').rglob('*.py')):
        names = file.relative_to(ROOT).with_suffix('').parts
        is_package = names[-1] == '__init__'
        module = '.'.join(names[:-1] if is_package else names)
        yield part_of(module), module, is_package, file
    for file in sorted((ROOT / 'tools').rglob('*.py')):
        yield 'tools', 'tools.x', False, file


def test_every_part_has_a_rank():
    assert {part for part, *_ in modules()} == set(RANKS)


def test_imports_go_one_way():
    wrong = []
    for part, module, is_package, file in modules():
        imports = imports_of(file.read_text(encoding='utf-8'), module, is_package)
        wrong += [f'{file.relative_to(ROOT)} imports {name}'
                  for name in sorted(forbidden(part, imports))]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize(('module', 'text', 'wrong'), [
    ('mmreplk.models.fold', 'from ..weights.layouts import unwrap', 'mmreplk.weights.layouts'),
    ('mmreplk.models.fold', 'def f():\n    from ..weights import layouts', 'mmreplk.weights'),
    ('mmreplk.config.edit', 'from .. import hub', 'mmreplk.hub'),
    ('mmreplk.analysis.erf.zoo', 'from ...deploy.merge import compare', 'mmreplk.deploy.merge'),
    ('mmreplk.training.fsdp', 'import mmreplk.commands.launch', 'mmreplk.commands.launch'),
    ('mmreplk.ops.module', 'from ..config.files import config_root', 'mmreplk.config.files'),
])
def test_the_check_sees_what_is_wrong(module, text, wrong):
    assert forbidden(part_of(module), imports_of(text, module, False)) == {wrong}
