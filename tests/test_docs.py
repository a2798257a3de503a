"""What the front door says can be done: limits of its length, links, snippets, the notebook."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / 'README.md'
PAGES = [
    README, ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md')),
    *(ROOT / folder / 'README.md'
      for folder in ('configs', 'mmreplk/analysis', 'mmreplk/ops', 'mmreplk/training', 'tests',
                     'tools/benchmarks'))
]


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub names the headings of a page."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
            for title in re.findall(r'^#+ (.+)$', text, re.M)}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_fits_on_one_screen():
    text = README.read_text()
    assert len(text.split()) <= 1500
    lines = text.splitlines()
    assert len(lines) <= 180
    assert max(len(line) for line in lines if not re.match(r'> \||\|', line)) <= 125


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = page.parent / path if path else page
        assert file.exists(), f'{name(page)}: {target}'
        if anchor:
            assert anchor in anchors(file), f'{name(page)}: {target}'


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page.parent in (ROOT, ROOT / 'docs')], ids=name)
def test_commands_name_files_and_options_that_exist(page):
    files = [file for folder in ('tools', 'mmreplk/commands')
             for file in (ROOT / folder).rglob('*')]
    sources = '\n'.join(file.read_text() for file in files if file.suffix in ('.py', '.sh'))
    for line in '\n'.join(blocks('bash', page)).splitlines():
        command, _, comment = line.partition(' #')
        for path in re.findall(r'\b((?:tools|configs|tests|requirements)/[\w/.]+)', command):
            assert (ROOT / path).exists(), line
        if 'tools/' in command:
            for option in re.findall(r'(?<=[ \[])--[a-z][\w-]*', command + comment):
                assert re.search(rf"""(?<!\w){option}\b""", sources), line


@pytest.mark.parametrize('stock', [
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'])  # has pretrained=
def test_the_config_snippet_in_a_stock_config(stock, tmp_path):
    mmseg = pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS
    stock = Path(mmseg.__file__).parent / '.mim/configs' / stock
    snippet, = (block for block in blocks('python') if block.startswith('custom_imports'))
    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = '{stock}'\n{snippet}")
    cfg = Config.fromfile(file)
    cfg.model.data_preprocessor = cfg.get('data_preprocessor')
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'RepLKNet'
    maps = model.backbone.eval()(torch.empty(1, 3, 64, 64, device='meta'))
    assert model.decode_head.in_channels == [feature_map.shape[1] for feature_map in maps]
    assert model.auxiliary_head.in_channels == maps[2].shape[1]


def test_the_operator_snippet(capsys):
    snippet, = (block for block in blocks('python') if 'mmreplk.ops' in block)
    scope = {}
    exec(snippet, scope)
    assert scope['x'].grad is not None
    assert scope['weight'].grad is not None
    assert re.match(r'(fft|direct|torch): ', capsys.readouterr().out)


def test_the_notebook(tmp_path):
    missing = [package for package in ('nbclient', 'nbformat', 'ipykernel', 'mmseg', 'matplotlib')
               if find_spec(package) is None]
    if missing:
        pytest.skip(f'the notebook needs {", ".join(missing)}')
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(ROOT / 'docs/quickstart.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells), 'outputs are to be stripped'
    text = '\n'.join(cell.source for cell in notebook.cells if cell.cell_type == 'markdown')
    for target in re.findall(r'\]\(([^)#\s]+)', text):
        assert (ROOT / 'docs' / target).exists(), target
    # This checkout, pictures as outputs whatever the shell says, and nothing in the user's folders.
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        MPLBACKEND='module://matplotlib_inline.backend_inline', IPYTHONDIR=str(tmp_path))
    executed = NotebookClient(
        notebook, timeout=300, kernel_name='python3',
        resources=dict(metadata=dict(path=str(ROOT / 'docs')))).execute(env=environment)
    outputs = [output for cell in executed.cells for output in cell.get('outputs', [])]
    printed = ''.join(output.text for output in outputs if output.get('name') == 'stdout')
    assert 'F.conv2d' in printed
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
