"""docs/timm.md does what it says."""

import re
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/timm.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', PAGE, re.M | re.S)


def test_the_example(capsys):
    scope = {}
    exec(BLOCKS[0].replace('replknet_31b', 'replknet_31b_narrow'), scope)
    assert capsys.readouterr().out == '[32, 128] [(2, 32, 8, 12), (2, 128, 2, 3)]\n'
    assert scope['model'].deploy


def test_the_calls_with_weights(tmp_path, monkeypatch):
    """Each line, with a file in the place that it names."""
    import mmreplk.timm.replknet as variants
    kept = timm.create_model('replknet_31b_narrow')
    torch.save(kept.state_dict(), tmp_path / 'mine.pth')
    asked = []

    def fetch(url, weights_from, cache_dir):
        asked.append((url.rpartition('/')[2], weights_from))
        return str(tmp_path / 'mine.pth')

    monkeypatch.setattr(variants, 'fetch', fetch)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, 'replknet_31b',
                        lambda pretrained=False, **kwargs: variants._create(
                            'replknet_31b', pretrained, arch=variants.asdict(kept.arch), **kwargs))
    monkeypatch.chdir(tmp_path)
    for line in BLOCKS[1].splitlines():
        scope = dict(timm=timm)
        exec(line, scope)
        assert torch.equal(scope['model'].head.fc.weight, kept.head.fc.weight)
    file = 'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth'
    assert asked == [(file, None), (file, '/a/folder/with/the/files'),
                     (file, 'https://a.mirror.example/replknet')]


def test_the_table_of_weights():
    rows = dict(re.findall(r'^\| `(replknet_\w+\.\w+)` \| (\d+) \|', PAGE, re.M))
    assert set(rows) == set(timm.list_pretrained('replknet*'))
    for name, size in rows.items():
        assert timm.get_pretrained_cfg(name).input_size == (3, int(size), int(size))
