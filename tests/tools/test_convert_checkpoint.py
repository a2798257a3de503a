"""convert_checkpoint.py: the authors' files and MMPretrain's into ours and back."""

import argparse
import functools

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope

from mmreplk import RepLKNet
from mmreplk.files import write_new
from mmreplk.models.arch import ARCHS
from mmreplk.models.reparam import merge_kernels
from mmreplk.weights import convert, safe_load as reading


def numbered(state):
    """Other values for every tensor, reproducible."""
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(value.shape, generator=generator).mul(2).add(index).to(value.dtype)
            for index, (name, value) in enumerate(state.items())}


def save(path, content):
    torch.save(content, path)
    return str(path)


def load(path):
    content = torch.load(path, weights_only=True)
    return content.get('state_dict', content)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def official_classifier(arch, classes=7, merged=False):
    """The authors' layout: the backbone's own names, ``norm`` and ``head``."""
    backbone = RepLKNet(arch, final_norm=True)
    if merged:  # as the authors' own program does it: the norms around the kernels stay
        merge_kernels(backbone)
    state = dict(backbone.state_dict())
    channels = state['norm.weight'].shape[0]
    state.update({'head.weight': torch.empty(classes, channels), 'head.bias': torch.empty(classes)})
    return numbered(state)


def classifier(backbone, channels, classes=7):
    from mmpretrain.registry import MODELS
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(
            type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=classes, in_channels=channels,
                      loss=dict(type='CrossEntropyLoss')))).eval()


def theirs(arch, **options):
    """A classifier on MMPretrain's own class."""
    return classifier(dict(type='mmpretrain.RepLKNet', arch=arch, out_indices=(3, ), **options),
                      ARCHS[arch].channels[-1] if isinstance(arch, str) else arch['channels'][-1])


def ours(arch, **options):
    return classifier(
        dict(type='mmreplk.RepLKNet', arch=arch, out_indices=(3, ), final_norm=True, **options),
        ARCHS[arch].channels[-1] if isinstance(arch, str) else arch['channels'][-1])


def check_against_mmpretrain(folder, arch, size, randomize_norms):
    """Their weights through all three layouts; our classifier then computes what theirs does."""
    model = randomize_norms(theirs(arch))
    torch.nn.init.normal_(model.head.fc.weight)
    source = save(folder / 'theirs.pth', dict(state_dict=model.state_dict()))
    chain = [source]
    for to in ('official', 'mmreplk', 'mmpretrain', 'mmreplk'):
        chain.append(str(folder / f'{len(chain)}_{to}.pth'))
        convert.convert(chain[-2], chain[-1], to)
    assert same(load(chain[3]), model.state_dict())
    assert same(load(chain[4]), load(chain[2]))
    official = load(chain[1])
    assert 'norm.weight' in official
    assert {name for name in official if name.startswith('head')} == {'head.weight', 'head.bias'}
    assert not any('backbone' in name or 'stages.3.norm' in name for name in official)

    model.train(False)
    image = torch.randn(2, 3, *size)
    copy = ours(arch)
    copy.load_state_dict(load(chain[2]))
    direct = ours(arch)
    direct.load_state_dict(load(source))
    with torch.no_grad():
        expected = model(image, mode='tensor')
        assert expected.std() > 0.1
        torch.testing.assert_close(copy(image, mode='tensor'), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(direct(image, mode='tensor'), copy(image, mode='tensor'))


@pytest.fixture
def mm_arch(tiny_arch):
    """MMPretrain's class takes the ratio of ConvFFN elsewhere."""
    tiny_arch.pop('ffn_ratio')
    return tiny_arch


class TestClassifier:

    def test_against_mmpretrain(self, tmp_path, mm_arch, randomize_norms):
        check_against_mmpretrain(tmp_path, mm_arch, (64, 65), randomize_norms)

    @pytest.mark.parametrize('merged', [False, True])
    def test_authors_round_trip(self, tmp_path, tiny_arch, merged):
        state = official_classifier(tiny_arch, merged=merged)
        source = save(tmp_path / 'theirs.pth', state)
        lines = convert.convert(source, str(tmp_path / 'ours.pth'))
        assert lines[0].startswith(f'{source}: the authors\' classifier, unpublished arch')
        assert ('not merged' in lines[0]) != merged
        assert f'7 classes, {len(state)} tensors' in lines[0]
        assert 'with head (2)' in lines[0]
        model = ours(tiny_arch, deploy=merged)
        model.load_state_dict(load(tmp_path / 'ours.pth'))
        assert torch.equal(model.head.fc.bias, state['head.bias'])
        if not merged:
            assert torch.equal(model.backbone.norm.running_mean, state['norm.running_mean'])
        convert.convert(str(tmp_path / 'ours.pth'), str(tmp_path / 'back.pth'), 'official')
        back = torch.load(tmp_path / 'back.pth', weights_only=True)
        assert same(back, state)
        assert list(back) == list(state)

    @pytest.mark.parametrize('name', [
        'head.weight', 'norm.running_var', 'stages.1.blocks.0.large_kernel.lkb_origin.conv.weight'])
    @pytest.mark.parametrize('dtype', [torch.int8, torch.int64, torch.bool])
    def test_integers(self, tmp_path, tiny_arch, name, dtype):
        """As a program that quantizes weights leaves them."""
        state = official_classifier(tiny_arch)
        assert state['norm.num_batches_tracked'].dtype == torch.int64
        state[name] = state[name].to(dtype)
        source, out = save(tmp_path / 'whole.pth', state), tmp_path / 'out.pth'
        with pytest.raises(ValueError, match=f'^SRC: .*whole.pth. holds {name} of {dtype}: save it '
                           'as an ordinary tensor of floating point numbers.$'):
            convert.convert(source, str(out))
        assert not out.exists()

    def test_deployed(self, tmp_path, tiny_arch):
        """Without norms, weights have a place in this project alone."""
        model = ours(tiny_arch, deploy=True)
        source = save(tmp_path / 'deployed.pth', dict(state_dict=numbered(model.state_dict())))
        lines = convert.convert(source, str(tmp_path / 'same.pth'))
        assert 'merged and its norms folded' in lines[0]
        assert same(load(tmp_path / 'same.pth'), load(source))
        for to in ('official', 'mmpretrain'):
            with pytest.raises(ValueError, match='has no norms left, which .* network needs'):
                convert.convert(source, str(tmp_path / 'out.pth'), to)
        assert not (tmp_path / 'out.pth').exists()

    def test_half_precision_stays(self, tmp_path, tiny_arch):
        state = {name: value.half() if value.is_floating_point() else value
                 for name, value in official_classifier(tiny_arch).items()}
        lines = convert.convert(save(tmp_path / 'a.pth', state), str(tmp_path / 'b.pth'))
        assert 'float16' in lines[0]
        convert.convert(str(tmp_path / 'b.pth'), str(tmp_path / 'c.pth'), 'official')
        assert same(load(tmp_path / 'c.pth'), state)

    def test_training_file_with_an_average(self, tmp_path, tiny_arch):
        state, average = official_classifier(tiny_arch), official_classifier(tiny_arch)
        average['head.bias'] = torch.zeros(7)
        source = save(tmp_path / 'a.pth', dict(
            model=state, model_ema=average, epoch=299, optimizer=dict(state={}, param_groups=[]),
            args=argparse.Namespace(lr=4e-3)))
        lines = convert.convert(source, str(tmp_path / 'b.pth'), 'official')
        assert 'left out: model_ema, epoch, optimizer, args' in lines
        assert any('ema=True takes it instead' in line for line in lines)
        assert same(load(tmp_path / 'b.pth'), state)
        convert.convert(source, str(tmp_path / 'c.pth'), 'official', ema=True)
        assert same(load(tmp_path / 'c.pth'), average)

    def test_what_mmpretrain_has_no_place_for(self, tmp_path, tiny_arch):
        bare = save(tmp_path / 'a.pth', dict(RepLKNet(tiny_arch).state_dict()))
        with pytest.raises(ValueError, match='exactly one norm, .* these weights have none'):
            convert.convert(bare, str(tmp_path / 'b.pth'), 'mmpretrain')
        convert.convert(bare, str(tmp_path / 'b.pth'))
        assert all(name.startswith('backbone.') for name in load(tmp_path / 'b.pth'))


class TestDense:

    def model(self, arch, **options):
        state = {f'backbone.{name}': value
                 for name, value in RepLKNet(arch, **options).state_dict().items()}
        state['decode_head.conv_seg.weight'] = torch.empty(19, 8, 1, 1)
        state['auxiliary_head.conv_seg.weight'] = torch.empty(19, 4, 1, 1)
        return numbered(state)

    def test_segmentor(self, tmp_path, tiny_arch):
        state = self.model(tiny_arch)
        source = save(tmp_path / 'a.pth', dict(
            state_dict=state, optimizer=dict(), meta=dict(CLASSES=['a', 'b'], config='x = 1')))
        lines = convert.convert(source, str(tmp_path / 'b.pth'))
        assert 'a segmentor' in lines[0]
        assert '19 classes' in lines[0]
        assert 'decode_head (1), auxiliary_head (1)' in lines[0]
        assert 'left out: optimizer' in lines
        content = torch.load(tmp_path / 'b.pth', weights_only=True)
        assert same(content['state_dict'], state)
        assert content['meta']['CLASSES'] == ['a', 'b']
        with pytest.raises(ValueError, match='always has norms.*these weights have none'):
            convert.convert(source, str(tmp_path / 'c.pth'), 'mmpretrain')

    def test_with_stage_norms_into_mmpretrain(self, tmp_path, mm_arch):
        from mmpretrain.models.backbones import RepLKNet as Theirs
        state = self.model(mm_arch, norm_intermediate_features=True)
        source = save(tmp_path / 'a.pth', dict(state_dict=state))
        lines = convert.convert(source, str(tmp_path / 'b.pth'), 'mmpretrain')
        assert 'norms on stages 0, 1, 2, 3' in lines[0]
        body = {name.removeprefix('backbone.'): value for name, value in
                load(tmp_path / 'b.pth').items() if name.startswith('backbone.')}
        Theirs(arch=mm_arch, out_indices=(0, 1, 2, 3)).load_state_dict(body)

    @pytest.mark.parametrize(('layer', 'outputs'), [
        ('bbox_head.conv_cls', 80), ('roi_head.bbox_head.0.fc_cls', 81)])
    def test_detectors(self, tmp_path, tiny_arch, layer, outputs):
        state = {f'backbone.{name}': value
                 for name, value in RepLKNet(tiny_arch).state_dict().items()}
        state |= {'neck.a': torch.ones(1), f'{layer}.weight': torch.ones(outputs, 4)}
        lines = convert.convert(save(tmp_path / 'a.pth', dict(state_dict=state)),
                                str(tmp_path / 'b.pth'))
        assert 'a detector' in lines[0]
        assert '80 classes' in lines[0]
        assert same(load(tmp_path / 'b.pth'), state)


class TestRefused:

    def refuse(self, tmp_path, content, match, **options):
        source = save(tmp_path / 'a.pth', content)
        with pytest.raises(ValueError, match=match):
            convert.convert(source, str(tmp_path / 'b.pth'), **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth']

    def test_other_arch(self, tmp_path, tiny_arch):
        self.refuse(tmp_path, official_classifier(tiny_arch), 'not 31L as asked for', arch='31L')

    def test_missing_and_unknown(self, tmp_path, tiny_arch):
        for name in ('norm.bias', 'stem.2.bn.bias', 'stages.3.blocks.1.pw2.conv.weight'):
            state = official_classifier(tiny_arch)
            del state[name]
            self.refuse(tmp_path, state, rf'incomplete.*1 missing \({name}')
        state = official_classifier(tiny_arch)
        del state['head.bias']
        self.refuse(tmp_path, state, 'classifier of the wrong form')
        state['head.bias'] = torch.ones(7)
        self.refuse(tmp_path, {**state, 'head_dist.weight': torch.ones(1)}, 'unknown: head_dist')
        self.refuse(tmp_path, {**state, 'stages.0.extra': torch.ones(1)}, r'1 unexpected \(stages')

    def test_inconsistent_shapes(self, tmp_path, tiny_arch):
        state = official_classifier(tiny_arch)
        state['stages.2.blocks.2.pw1.conv.weight'] = torch.ones(3, 3, 1, 1)
        self.refuse(tmp_path, state, r'1 of other shape \(stages\.2\.blocks\.2\.pw1')

    def test_other_networks(self, tmp_path):
        self.refuse(tmp_path, {'conv1.weight': torch.ones(1)}, 'holds no RepLKNet')
        self.refuse(tmp_path, dict(state_dict={'stem.0.conv.weight': 'text'}), 'no tensors')

    def test_what_could_run_code(self, tmp_path, tiny_arch):
        class Runs:
            def __reduce__(self):
                return open, (str(tmp_path / 'it_ran'), 'w')

        self.refuse(tmp_path, dict(model=official_classifier(tiny_arch), note=Runs()),
                    'needs more than weights to be read .*open')

    def test_mmengine_keeps_its_log_in_checkpoints(self, tmp_path, tiny_arch):
        """Their pickles ask for getattr, which is granted for the methods of that class alone."""
        class Asks:
            def __init__(self, *args):
                self.args = args

            def __reduce__(self):
                return getattr, self.args

        log = HistoryBuffer([1.0, 2.0], [1, 1])
        log.mean()
        save(tmp_path / 'a.pth', dict(state_dict={}, log=log, method=Asks(HistoryBuffer, 'mean')))
        content = reading.read_checkpoint(tmp_path / 'a.pth')
        assert content['log'].mean() == 1.5
        assert content['method'] is HistoryBuffer.mean
        for args in ((HistoryBuffer, '__init__'), (argparse.Namespace, '__class__')):
            self.refuse(tmp_path, dict(model=official_classifier(tiny_arch), note=Asks(*args)),
                        'needs more than weights to be read .*getattr')


def test_outputs_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / 'new' / 'out.bin'

    def fails(path):
        with open(path, 'w') as file:
            file.write('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(str(target), fails)
    assert list(target.parent.iterdir()) == []
    assert not write_new(str(target), lambda path: False)
    assert write_new(str(tmp_path / 'other'), lambda path: open(path, 'w').close())
    assert (tmp_path / 'other').is_file()
    target.write_bytes(b'old')
    with pytest.raises(FileExistsError, match='left as it is'):
        write_new(str(target), lambda path: open(path, 'w').close())
    assert target.read_bytes() == b'old'
    assert [path.name for path in target.parent.iterdir()] == ['out.bin']


def test_command_line(seg_bench):
    """A segmentor's file under 'model' is refused by test.py, converted, and then evaluated."""
    bench = seg_bench
    state = reading.read_checkpoint(bench.folder / bench.checkpoint())['state_dict']
    save(bench.folder / 'authors.pth', dict(model=state))
    message = bench.refused('test.py', 'tiny.py', 'authors.pth')
    assert 'convert_checkpoint.py' in message
    before = (bench.folder / 'authors.pth').read_bytes()
    run = bench.done('convert_checkpoint.py', 'authors.pth', 'ours.pth')
    assert 'authors.pth: a segmentor' in run.text
    assert (bench.folder / 'authors.pth').read_bytes() == before
    bench.done('test.py', 'tiny.py', 'ours.pth', '--work-dir', 'run')
    assert 0 < bench.metrics('run')['mIoU'] < 100
    assert 'the file exists' in bench.refused(
        'convert_checkpoint.py', 'authors.pth', 'authors.pth')


def test_damaged_files(tmp_path):
    save(tmp_path / 'a.pth', {'x': torch.rand(1000)})
    whole = (tmp_path / 'a.pth').read_bytes()
    torch.save({'x': torch.rand(1000)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    old = (tmp_path / 'old.pth').read_bytes()
    assert reading.read_checkpoint(tmp_path / 'old.pth')['x'].shape == (1000, )
    for content in (whole[:len(whole) // 2], whole[:-1], old[:len(old) // 2], old[:40], b'', b'hi'):
        (tmp_path / 'cut.pth').write_bytes(content)
        with pytest.raises(ValueError, match='truncated|damaged'):
            reading.read_checkpoint(tmp_path / 'cut.pth')


@pytest.mark.slow
def test_31b_at_full_size_against_mmpretrain(tmp_path, randomize_norms):
    check_against_mmpretrain(tmp_path, '31B', (224, 224), randomize_norms)
    lines = convert.convert(str(tmp_path / 'theirs.pth'), str(tmp_path / 'out.pth'), arch='31B')
    assert 'MMPretrain\'s classifier, arch 31B, not merged, 7 classes' in lines[0]


@pytest.mark.parametrize('arch', list(ARCHS))
def test_full_size_names_and_shapes_against_mmpretrain(arch, monkeypatch):
    # Their class reads its drop-path rates from a tensor.
    monkeypatch.setattr(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))
    with torch.device('meta'):
        their_state, our_state = theirs(arch).state_dict(), ours(arch).state_dict()
    found = convert.recognize(their_state, arch)
    assert (found.layout, found.kind, found.merged) == ('mmpretrain', 'classifier', False)
    renamed = convert.rename(found, 'mmreplk')
    assert {name: value.shape for name, value in renamed.items()} == {
        name: value.shape for name, value in our_state.items()}
    official = convert.recognize(convert.rename(found, 'official'), arch)
    assert official.layout == 'official'
    assert convert.rename(official, 'mmpretrain').keys() == their_state.keys()
