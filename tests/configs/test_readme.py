"""The table in configs/README.md says what the configs say."""

import re

import pytest
from mmengine.config import Config

from mmreplk.config.files import config_root

COLUMNS = 9


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
