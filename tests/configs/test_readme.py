"""The tables in configs/README.md and in the README say what the configs say."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmreplk.config.files import config_root

COLUMNS = 9
README = Path(__file__).resolve().parents[2] / 'README.md'


def rows() -> dict[str, list[str]]:
    """The table, by file name."""
    found = {}
    for line in (config_root() / 'README.md').read_text().splitlines():
        if line.startswith('| `'):
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            name = cells[0].strip('`')
            assert name not in found
            found[name] = cells
    return found


def test_every_config_has_a_row_and_every_row_a_config():
    assert set(rows()) == {path.name for path in config_root().glob('*.py')}


@pytest.mark.parametrize('name', sorted(path.name for path in config_root().glob('*.py')))
def test_a_row(name):
    row = rows()[name]
    cfg = Config.fromfile(str(config_root() / name))
    assert len(row) == COLUMNS

    total, *factors = map(int, re.findall(r'\d+', row[1]))
    gpus, images, steps = [*factors, 1][:3]
    assert total == gpus * images * steps
    assert images == cfg.train_dataloader.batch_size
    assert steps == cfg.optim_wrapper.get('accumulative_counts', 1)
    assert total == cfg.get('auto_scale_lr', dict(base_batch_size=8))['base_batch_size']

    count, unit = re.fullmatch(r'(\d+k?) (iterations|epochs)', row[2]).groups()
    key = 'max_iters' if unit == 'iterations' else 'max_epochs'
    assert int(count.replace('k', '000')) == cfg.train_cfg[key]

    lr, _, decay = row[3].partition(', layers x ')
    assert float(lr) == cfg.optim_wrapper.optimizer.lr
    assert float(decay or 1) == cfg.optim_wrapper.get('paramwise_cfg', {}).get('layer_decay', 1)
    assert float(row[4]) == cfg.optim_wrapper.optimizer.weight_decay
    assert float(row[5]) == cfg.model.backbone.get('drop_path_rate', 0)

    # The figures are those that the header of the file gives.
    header = (config_root() / name).read_text().split('_base_')[0]
    for figure in re.findall(r'\d+\.\d+', row[6]):
        assert figure in header
    assert bool(re.search(r'\d', row[6])) is ('Published by the authors' in header)

    init = cfg.model.backbone.get('init_cfg') or cfg.model.get('init_cfg') or {}
    study = 'the 100 epochs' if 'mobilenetv2' in name else 'the 120 epochs'
    source = dict(https='mmpretrain', checkpoints="authors' file", work_dirs=study).get(
        re.split('[:/]', init.get('checkpoint', ''))[0], 'random weights')
    assert row[7].startswith(source)


def front_page() -> list[list[str]]:
    """The model table of the README: model, configs, figures, weights."""
    section = README.read_text().split('## Models')[1].split('\n## ')[0]
    lines = [line for line in section.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[1:]]


def test_the_front_page_has_the_figures_of_the_configs_that_it_links():
    known, linked = rows(), 0
    for _, configs, figures, status in front_page():
        names = re.findall(r'\]\(configs/(\w+\.py)\)', configs)
        published = re.findall(r'\d+\.\d+', figures)
        assert [name for name in names if name not in known] == []
        if names:
            linked += len(names)
            first = [re.match(r'\d+\.\d+|none', known[name][6]).group() for name in names]
            assert (published or ['none'] * len(names)) == first
            for name in names:
                weights = known[name][8]
                if 'by MMPretrain' in status:
                    assert weights.startswith('mmpretrain, untested')
                elif published:
                    assert status == 'untested'
                    assert weights == 'authors, untested'
        else:  # families of configs: from the lowest figure to the highest
            patterns = re.findall(r'`?(\w+)_\*', configs)
            for pattern, low, high in zip(patterns, published[::2], published[1::2], strict=True):
                family = [float(figure.group()) for name, row in known.items()
                          if name.startswith(pattern) and (figure := re.match(r'\d+\.\d+', row[6]))]
                assert [float(low), float(high)] == [min(family), max(family)]
    assert linked >= 17
