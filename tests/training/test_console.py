"""Long messages stay out of the console and in the log file."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from mmreplk import RepLKNet
from mmreplk.training.console import LONG, keep_off_console

LINES = ('Config:\na = 1', 'paramwise_options -- a:lr=1', 'a line',
         '\n-----\nSystem environment:\n    sys.platform: linux', 'a table\nConfig: of it')


def logger(tmp_path, level='INFO'):
    # MMEngine gives another logger of the same name back as it was.
    return MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / 'log'), log_level=level)


def test_the_console_is_short_and_the_file_whole(tmp_path, capsys):
    log = logger(tmp_path)
    assert keep_off_console(log, LONG)
    assert keep_off_console(log, LONG)
    for line in LINES:
        log.info(line)
    shown, kept = capsys.readouterr().out, (tmp_path / 'log').read_text()
    assert all(line in kept for line in LINES)
    assert [line in shown for line in LINES] == [False, False, True, False, True]


@pytest.mark.parametrize('level', ['INFO', 'DEBUG'])
def test_nothing_is_lost(tmp_path, capsys, level):
    """With DEBUG all is shown; so it is where there is no file to read it in."""
    log = (logger(tmp_path, level) if level == 'DEBUG' else
           MMLogger.get_instance(str(tmp_path)))
    assert not keep_off_console(log, LONG)
    log.info(LINES[0])
    assert LINES[0] in capsys.readouterr().out


def test_layer_decay_is_one_line(tmp_path, capsys, tiny_arch):
    """Also under the mm packages' own tools, whose constructor it is then."""
    log = logger(tmp_path)
    assert MMLogger.get_current_instance() is log
    wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
        constructor='mmreplk.RepLKNetLayerDecayConstructor',
        paramwise_cfg=dict(layer_decay=0.7, norm_decay_mult=0.0))
    build_optim_wrapper(torch.nn.Sequential(RepLKNet(tiny_arch)), wrapper)
    shown = capsys.readouterr().out
    assert 'Learning rates decay by 0.7' in shown
    assert shown.count('\n') == 1
    assert (tmp_path / 'log').read_text().count('paramwise_options') > 20
