"""Private names of other packages stand in one place each, with the versions that were tried."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of collections.namedtuple and os: documented, whatever they look like.
DOCUMENTED = {'_replace', '_fields', '_asdict', '_exit'}
# For classes that derive from nn.Module, nn.Conv2d or a hook's base to call or replace.
FOR_SUBCLASSES = {'_load_from_state_dict', '_conv_forward'}


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__') and len(name) > 1


def our_names(tree: ast.AST) -> set[str]:
    """What a module defines: functions, classes, variables, arguments, attributes of self."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
              and isinstance(node.value, ast.Name) and node.value.id == 'self'):
            names.add(node.attr)
    return names


def private_names(tree: ast.AST) -> set[str]:
    """Private attributes and imports that a module uses, those named in getattr too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.update(part for alias in node.names
                         for part in (*node.module.split('.'), alias.name))
        elif (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
              and node.func.id in ('getattr', 'hasattr', 'setattr')
              and isinstance(node.args[1], ast.Constant)):
            found.add(node.args[1].value)
    return set(filter(is_private, found))


def places() -> dict[str, list[Path]]:
    trees = {file: ast.parse(file.read_text()) for file in sorted((ROOT / 'mmreplk').rglob('*.py'))
             if '.mim' not in file.parts and 'dropin' not in file.parts}
    ours = set().union(*map(our_names, trees.values())) | DOCUMENTED | FOR_SUBCLASSES
    found = defaultdict(list)
    for file, tree in trees.items():
        for name in private_names(tree) - ours:
            found[name].append(file)
    return found


def test_each_stands_in_one_place():
    several = {name: [str(file.relative_to(ROOT)) for file in files]
               for name, files in places().items() if len(files) > 1}
    assert not several


def test_each_place_says_what_was_tried():
    files = {file for files in places().values() for file in files}
    assert files  # the search finds something
    silent = [str(file.relative_to(ROOT)) for file in files
              if not re.search(r'[Tt]ried[\s#]+with', file.read_text())]
    assert not silent


def test_the_search_sees_them():
    tree = ast.parse('from a._b import _c\nx._d\ngetattr(x, "_e")\nself._f = 1\nx.__dict__')
    assert private_names(tree) == {'_b', '_c', '_d', '_e', '_f'}
    assert our_names(tree) == {'_f'}
