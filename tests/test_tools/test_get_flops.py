"""get_flops.py, run as a user runs it."""

import re


def numbers(text: str, row: str) -> list[float]:
    """Parameters in millions and multiply-adds in billions of a row of its tables."""
    return [float(value) for value in re.search(
        rf'^{row} +([\d.]+) M +([\d.]+) G$', text, re.MULTILINE).groups()]


def test_table_of_a_published_config(seg_bench):
    text = seg_bench.done(
        'get_flops.py', 'mmreplk::upernet_replknet31b_ade20k.py', '--deploy', '--shape', 256, 512,
        '--cfg-options', 'model.auxiliary_head=None').text
    assert '256 x 512 pixels (height x width), merged network' in text
    parts = [numbers(text, row) for row in ('backbone', 'decode_head')]
    kinds = [numbers(text, row) for row in ('depth-wise', '1x1', 'other')]
    whole = numbers(text, 'whole model')
    for rows in (parts, kinds):
        for column, total in enumerate(whole):
            assert abs(sum(row[column] for row in rows) - total) < 0.02  # two decimals a row
    # 1169.3 G on the 512 x 2048 pixels of the published figure.
    assert abs(whole[1] - 1169.3 / 8) < 1.5
    assert 'Not run in evaluation' not in text  # no head is left that only training uses
    assert 'Warning' not in text


def test_errors(seg_bench):
    bench = seg_bench
    assert 'training network' in bench.done('get_flops.py', 'tiny.py', '--shape', 32, 48).text
    assert 'its test pipeline has neither' in bench.refused('get_flops.py', 'tiny.py')
    assert 'no such file' in bench.refused('get_flops.py', 'gone.py')


def test_reduce_is_checked_before_anything_is_written(seg_bench):
    message = seg_bench.refused('train.py', 'tiny.py', '--reduce', 3)
    assert '--reduce 3: give a power of two' in message
