"""erf.py, run as a user runs it."""

import csv

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmreplk.analysis import contribution_scores, effective_receptive_field, high_contribution_area
from mmreplk.weights.load import load_model


def rows(bench, folder):
    with open(bench.folder / folder / 'erf.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('kind', ['seg', 'cls', 'det'])
def test_matrix_is_that_of_the_backbone(request, kind):
    bench = request.getfixturevalue(f'{kind}_bench')
    torch.manual_seed(7)  # not the tool's, whose random weights these would be
    checkpoint = bench.checkpoint()
    run = bench.done('erf.py', 'tiny.py', checkpoint, '--images', 'data', '--num-images', 3,
                     '--size', 64, '--out', 'new/erf', '--device', 'cpu')
    assert 'random weights' not in run.text
    assert bench.files('new/erf') == {'tiny.npy', 'tiny.png', 'erf.csv', 'table.png'}
    matrix = np.load(bench.folder / 'new/erf/tiny.npy')

    with DefaultScope.overwrite_default_scope('mmengine'):
        cfg = Config.fromfile(str(bench.folder / 'tiny.py'))
        model, _ = load_model(cfg, str(bench.folder / checkpoint))
    files = sorted(str(path) for path in (bench.folder / 'data').rglob('*.png'))
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, 3).round().astype(int)]
    from PIL import Image
    images = []
    for file in chosen:
        with Image.open(file) as picture:
            rgb = np.array(picture.convert('RGB').resize((64, 64), Image.BICUBIC))
        bgr = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)[None].float()
        images.append((bgr - 90) / 70)
    expected = effective_receptive_field(lambda image: model.backbone(image)[-1], images)
    np.testing.assert_allclose(matrix, expected, rtol=1e-3, atol=1e-5 * expected.max())

    row, = rows(bench, 'new/erf')
    assert (row['model'], row['weights'], row['count']) == ('tiny', checkpoint, '3')
    for threshold in (0.2, 0.3, 0.5, 0.99):
        scores = high_contribution_area(contribution_scores(matrix), threshold)
        found = high_contribution_area(matrix, threshold)
        name = round(100 * threshold)
        assert float(row[f'r{name}']) == pytest.approx(scores.ratio, rel=1e-5)
        assert (row[f'side{name}'], row[f'sum_side{name}']) == (str(scores.side), str(found.side))
        assert float(row[f'sum_r{name}']) == pytest.approx(found.ratio, rel=1e-5)
        assert f'{100 * scores.ratio:.1f}' in run.text
    picture = cv2.imread(str(bench.folder / 'new/erf/tiny.png'))
    assert min(picture.shape[:2]) > 1000
    assert picture.std() > 20


def test_several_models_and_stages(seg_bench):
    bench = seg_bench
    arguments = ('tiny.py', 'tiny.py', 'tiny.py', 'torchvision:squeezenet1_1', '--stage', '0',
                 '--stage', 'decode_head.convs', '--stage', 'backbone.stages.1', '--stage', '-1',
                 '--num-images', 1, '--size', 64, '--device', 'cpu')
    run = bench.done('erf.py', *arguments, '--out', 'erf')
    assert 'No images, so 1 generated pictures' in run.text
    warning, = (line for line in run.text.splitlines() if line.startswith('Warning'))
    for name in ('tiny 0', 'tiny decode_head.convs', 'tiny backbone.stages.1', 'squeezenet1_1'):
        assert name in warning
    assert bench.files('erf', '*.npy') == {
        'tiny_0.npy', 'tiny_decode_head.convs.npy', 'tiny_backbone.stages.1.npy',
        'squeezenet1_1.npy'}
    assert 'maps.png' in bench.files('erf')
    maps = {path.stem: np.load(path) for path in (bench.folder / 'erf').glob('*.npy')}
    # The same weights every time; later maps see more.
    assert (maps['tiny_0'] > 0).sum() < (maps['tiny_backbone.stages.1'] > 0).sum()
    assert [row['stage'] for row in rows(bench, 'erf')] == [
        '0', 'decode_head.convs', 'backbone.stages.1', '-1']
    lines = [line for line in run.text.splitlines() if ' | ' in line and 'image/s' not in line]
    assert len(lines) == 6  # two lines of head
    before = {path: path.read_bytes() for path in (bench.folder / 'erf').iterdir()}
    assert "--out: 'erf': the folder is not empty" in bench.refused(
        'erf.py', *arguments, '--out', 'erf')
    assert before == {path: path.read_bytes() for path in (bench.folder / 'erf').iterdir()}


def test_pretrained_takes_the_start_of_the_config(seg_bench):
    bench = seg_bench
    torch.manual_seed(7)
    bench.checkpoint()
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], init_cfg=dict(
        type='Pretrained', checkpoint='random.pth', prefix='backbone.'))
    bench.write('starts.py', model=model)
    common = ('--num-images', 1, '--size', 64, '--device', 'cpu')
    run = bench.done('erf.py', 'starts.py', 'tiny.py', 'random.pth', '--pretrained', *common,
                     '--out', 'a')
    assert not run.warns
    maps = [np.load(bench.folder / f'a/{name}.npy') for name in ('starts', 'tiny')]
    np.testing.assert_allclose(*maps, rtol=1e-6)
    # Without the option the config's start is left out, and the user told.
    run = bench.done('erf.py', 'starts.py', *common, '--out', 'b')
    assert 'Warning: starts: random weights' in run.text
    assert not np.allclose(np.load(bench.folder / 'b/starts.npy'), maps[0], rtol=0.1)


@pytest.mark.parametrize('channels', [6, 1])
def test_other_channels(seg_bench, channels):
    """Multispectral and gray images: generated, or the user's own."""
    bench = seg_bench
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], in_channels=channels)
    bench.write('other.py', model=model)
    common = ('other.py', '--num-images', 2, '--size', 64, '--device', 'cpu')
    run = bench.done('erf.py', 'tiny.py', *common, '--out', 'generated')
    line, = (line for line in run.text.splitlines() if 'other takes images' in line)
    assert f'of {channels} channel' in line
    assert 'measured on 2 generated pictures' in line
    assert bench.files('generated', '*.npy') == {'other.npy', 'tiny.npy'}

    rng = np.random.default_rng(0)
    arrays = rng.uniform(0, 255, (2, 64, 64, channels)).astype(np.float32)
    (bench.folder / 'arrays').mkdir()
    for index, array in enumerate(arrays):
        np.save(bench.folder / f'arrays/{index}.npy', array)
    torch.manual_seed(7)
    with DefaultScope.overwrite_default_scope('mmengine'):
        cfg = Config.fromfile(str(bench.folder / 'other.py'))
        network, _ = load_model(cfg, None)
    torch.save(dict(state_dict=network.state_dict()), bench.folder / 'other.pth')
    bench.done('erf.py', 'other.py', 'other.pth', *common[1:], '--images', 'arrays', '--out', 'own')
    images = torch.from_numpy((arrays - 90) / 70).permute(0, 3, 1, 2)
    network.eval()
    expected = effective_receptive_field(lambda image: network.backbone(image)[-1],
                                         [image[None] for image in images])
    np.testing.assert_allclose(np.load(bench.folder / 'own/other.npy'), expected, rtol=1e-3,
                               atol=1e-5 * expected.max())
    if channels == 1:  # colors make gray
        run = bench.done('erf.py', *common, '--images', 'data', '--out', 'gray')
        assert 'measured on 2 of the' in run.text
        return
    folder = next((bench.folder / 'data').rglob('img*'))
    message = bench.refused('erf.py', *common, '--images', folder, '--out', 'no')
    assert "has 3 channels, but the network takes images of 6" in message
    assert '(H, W, 6) in files of NumPy (.npy), or leave images out' in message
    assert not (bench.folder / 'no').exists()


def test_bad_arguments(seg_bench):
    bench = seg_bench
    bench.checkpoint()
    quick = ('--size', 64, '--num-images', 1)
    for arguments, message in (
        (('tiny.py', 'gone.pth'), "CHECKPOINT: no such file 'gone.pth'"),
        (('tiny.py', 'random.pth', '--cfg-options', 'model.decode_head.num_classes=3'),
         'has 2 classes, but the model 3'),
        (('tiny.py', '--stage', '2'), 'stage 2: the backbone gives 2 outputs'),
    ):
        assert message in bench.refused('erf.py', *arguments, *quick)
