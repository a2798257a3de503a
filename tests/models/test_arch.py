import pytest

from mmreplk.models.arch import parse_arch, parse_frozen_stages, parse_out_indices

GOOD = dict(large_kernel_sizes=[13, 11], layers=[1, 2], channels=[8, 16])


@pytest.mark.parametrize(('name', 'kernels', 'channels', 'small_kernel', 'dw_ratio'), [
    ('31B', (31, 29, 27, 13), (128, 256, 512, 1024), 5, 1),
    ('31L', (31, 29, 27, 13), (192, 384, 768, 1536), 5, 1),
    ('XL', (27, 27, 27, 13), (256, 512, 1024, 2048), None, 1.5),
])
def test_published_archs(name, kernels, channels, small_kernel, dw_ratio):
    arch = parse_arch(name)
    assert arch.large_kernel_sizes == kernels
    assert arch.layers == (2, 2, 18, 2)
    assert arch.channels == channels
    assert arch.small_kernel == small_kernel
    assert arch.dw_ratio == dw_ratio
    assert arch.ffn_ratio == 4


def test_overrides_win_over_the_name():
    arch = parse_arch('31B', small_kernel=None, dw_ratio=1.5, ffn_ratio=2)
    assert (arch.small_kernel, arch.dw_ratio, arch.ffn_ratio) == (None, 1.5, 2)
    assert parse_arch('XL', small_kernel=3).small_kernel == 3


def test_dict_defaults_are_the_papers():
    arch = parse_arch(GOOD)
    assert (arch.small_kernel, arch.dw_ratio, arch.ffn_ratio) == (5, 1, 4)


@pytest.mark.parametrize(('change', 'words'), [
    (dict(layers=[1]), ["'layers': 1", "'channels': 2"]),
    (dict(large_kernel_sizes=[13, 12]), ['large_kernel_sizes', '12', 'odd']),
    (dict(large_kernel_sizes=[13, 0]), ['large_kernel_sizes', '0', 'positive']),
    (dict(large_kernel_sizes=[13, -3]), ['large_kernel_sizes', '-3']),
    (dict(large_kernel_sizes=31), ['large_kernel_sizes', '31', 'list']),
    (dict(small_kernel=4), ['small_kernel', '4', 'odd']),
    (dict(small_kernel=15), ['small_kernel=15', 'at most 11', 'None']),
    (dict(layers=[1, 0]), ['layers', '0']),
    (dict(channels=[8, 1.5]), ['channels', '1.5']),
    (dict(dw_ratio=0), ['dw_ratio=0']),
    (dict(ffn_ratio=-1), ['ffn_ratio=-1']),
    (dict(ffn_ratio=0.01), ['ffn_ratio=0.01', 'no channel']),
    (dict(depths=[2, 2]), ["unknown keys ['depths']"]),
])
def test_bad_dict_is_refused_by_name(change, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_arch({**GOOD, **change})
    for word in words:
        assert word in str(error.value)


def test_bad_arch():
    with pytest.raises(ValueError, match="'31X' is unknown; choose one of '31B', '31L', 'XL'"):
        parse_arch('31X')
    with pytest.raises(TypeError, match='arch must be a str or a dict, got int'):
        parse_arch(31)
    with pytest.raises(ValueError, match="missing keys \\['channels'\\]"):
        parse_arch(dict(large_kernel_sizes=[3], layers=[1]))


def test_out_indices():
    assert parse_out_indices(None, 4) == (0, 1, 2, 3)
    assert parse_out_indices([1, 3], 4) == (1, 3)
    assert parse_out_indices(2, 4) == (2, )
    for bad, words in [((4, ), 'stage 4'), ((-1, ), 'stage -1'), ((), 'empty'),
                       ((3, 1), r'write \(1, 3\)'), ((1, 1), 'without repeats')]:
        with pytest.raises(ValueError, match=words):
            parse_out_indices(bad, 4)


@pytest.mark.parametrize('bad', [-2, 5, 1.5, None])
def test_frozen_stages(bad):
    assert parse_frozen_stages(4, 4) == 4
    with pytest.raises(ValueError, match='frozen_stages='):
        parse_frozen_stages(bad, 4)
