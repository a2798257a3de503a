"""Networks by name: how names are read, stages found, pictures prepared and weights loaded."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmreplk.analysis.erf.images import FolderImages, GeneratedImages, generate_image
from mmreplk.analysis.erf.models import ErfModel, ModelSpec, open_model, parse_models
from mmreplk.analysis.erf.runs import check_models, open_pictures
from mmreplk.analysis.erf.stages import StageError, forward_to, named_module, output_number

torchvision = pytest.importorskip('torchvision')


def names(*arguments, **options):
    return [spec.name for spec in parse_models(arguments, **options)]


def test_what_is_no_model_is_the_checkpoint_before():
    first, second, third = parse_models(
        ['a/cfg.py', 'w.pth', 'timm:resnet18', 'mmreplk::b.py'], ['0', '-1', 'neck'])
    assert (first.source, first.checkpoint, first.stage) == ('a/cfg.py', 'w.pth', '0')
    assert (second.source, second.checkpoint, second.zoo) == ('timm:resnet18', None, 'timm')
    assert (third.source, third.stage, third.zoo) == ('mmreplk::b.py', 'neck', None)
    assert [spec.stage for spec in parse_models(['a.py', 'b.py'], ['2'])] == ['2', '2']


def test_names_say_what_differs():
    assert names('x/a.py', 'timm:resnet18') == ['a', 'resnet18']
    assert names('timm:resnet18', 'torchvision:resnet18') == [
        'resnet18 timm', 'resnet18 torchvision']
    assert names('a.py', 'x/1.pth', 'a.py', 'y/2.pth', 'b.py') == ['a 1', 'a 2', 'b']
    assert names('a.py', 'a.py', stages=['0', '-1']) == ['a 0', 'a last']
    assert names('a.py', 'a.py') == ['a 1', 'a 2']
    assert names('a.py', 'a.py', names=['x', 'y']) == ['x', 'y']


@pytest.mark.parametrize(('arguments', 'options', 'message'), [
    (['w.pth'], {}, "'w.pth' is no model, and there is no model before"),
    (['a.py', 'w.pth', 'v.pth'], {}, "'v.pth' is no model, and a.py has its checkpoint"),
    (['a.py'], dict(stages=['0', '1']), 'stage: given 2 times for 1 models'),
    (['a.py', 'b.py'], dict(names=['x']), 'name: given 1 times for 2'),
    (['a.py', 'b.py'], dict(names=['x', 'x']), 'name: two models have the same'),
])
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        parse_models(arguments, **options)


def test_stages_by_number_and_by_module():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    images = torch.randn(1, 3, 4, 4)
    middle = network[1](network[0](images))
    module = named_module(network, '1')
    torch.testing.assert_close(forward_to(module, network)(images), middle)
    torch.testing.assert_close(forward_to(module, network, True)(images), network[0](images))
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    outputs = [torch.zeros(1), torch.ones(1)]
    assert output_number(lambda _: outputs, '-1')(images) is outputs[1]
    assert output_number(lambda _: outputs, '0')(images) is outputs[0]
    assert output_number(lambda _: outputs[0], '-1')(images) is outputs[0]
    with pytest.raises(StageError, match='stage 2: the backbone gives 2 outputs'):
        output_number(lambda _: outputs, '2')(images)
    with pytest.raises(StageError, match='stage 0.weight: there is no such module; 0 has none'):
        named_module(network, '0.weight')
    with pytest.raises(StageError, match='is not called'):
        forward_to(nn.Identity(), network)(images)


def test_network_is_frozen_in_evaluation():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model = ErfModel(network, network, 'random', (0., ), (1., ))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    model.check_stage(8)  # a map
    with pytest.raises(StageError, match=r'gives \(1, 192\) for pictures of 8 x 8'):
        ErfModel(network, nn.Flatten(), 'random', (0., ), (1., )).check_stage(8)
    with pytest.raises(StageError, match=r'gives \(1, 8, 8, 3\)'):  # channels last
        ErfModel(network, lambda x: x.permute(0, 2, 3, 1), 'random', (0., ), (1., )).check_stage(8)


def test_pictures_are_normalized_and_ordered():
    image = np.zeros((2, 5, 3), np.uint8)
    image[...] = 10, 20, 30
    rgb = ErfModel(nn.Identity(), None, '', (1., 2., 3.), (2., 2., 4.)).prepare(image, 'cpu')
    assert rgb.shape == (1, 3, 2, 5)
    assert rgb[0, :, 1, 4].tolist() == [4.5, 9.0, 6.75]
    bgr = ErfModel(nn.Identity(), None, '', (1., 2., 3.), (2., 2., 4.), True).prepare(image, 'cpu')
    assert bgr[0, :, 1, 4].tolist() == [14.5, 9.0, 1.75]


@pytest.mark.parametrize('source', ['torchvision:resnet18', 'timm:resnet18'])
def test_resnet_of_both_zoos(source, tmp_path):
    pytest.importorskip(source.split(':')[0])
    reference = torchvision.models.resnet18().eval()
    reference.fc = nn.Linear(512, 7)  # the classifier is not run, so it may differ
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=reference.state_dict()), path)
    model = open_model(ModelSpec(source, path), 64)
    image = model.prepare(generate_image(0, 64), 'cpu')
    maps = nn.Sequential(*list(reference.children())[:-2])(image)
    torch.testing.assert_close(model.features(image), maps)
    assert model.weights == path
    # ImageNet's mean and deviation.
    gray = model.prepare(np.full((1, 1, 3), 255, np.uint8), 'cpu').flatten()
    torch.testing.assert_close(gray, (1 - torch.tensor([.485, .456, .406]))
                               / torch.tensor([.229, .224, .225]))
    layer2 = open_model(ModelSpec(source, path, 'layer2'), 64).features(image)
    assert layer2.shape == (1, 128, 8, 8)
    del reference.layer4[1]
    torch.save(reference.state_dict(), path)
    with pytest.raises(ValueError, match=f'does not match {source}: 10 missing'):
        open_model(ModelSpec(source, path), 64)


def test_random_weights_are_the_same_every_time():
    first, second = (open_model(ModelSpec('torchvision:squeezenet1_1'), 64) for _ in range(2))
    assert first.weights == 'random'
    for one, two in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
def test_timm_networks_learn_the_size_and_give_maps(name):
    pytest.importorskip('timm')
    model = open_model(ModelSpec(f'timm:{name}'), 96)
    stride = 32 if 'swin' in name else 16
    features = model.features(torch.zeros(1, 3, 96, 96))
    assert features.shape[2:] == (96 // stride, 96 // stride)


def test_missing_and_unknown_zoos(monkeypatch):
    with pytest.raises(ValueError, match='no such network. Did you mean resnet101'):
        open_model(ModelSpec('torchvision:resnet11'), 64)
    with pytest.raises(ValueError, match='name a module: stem, blocks, classifier'):
        open_model(ModelSpec('torchvision:maxvit_t'), 224)
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match=r'timm is not installed here .* `pip install timm`'):
        open_model(ModelSpec('timm:resnet18'), 64)


def test_unsafe_files_are_refused(tmp_path):
    path = str(tmp_path / 'unsafe.pth')
    torch.save(dict(state_dict={}, hook=print), path)
    with pytest.raises(ValueError, match='could run any code'):
        open_model(ModelSpec('torchvision:resnet18', path), 64)


def test_generated_pictures_have_the_spectrum_of_photographs():
    pictures = list(GeneratedImages(3, 128))
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 3
    assert not np.array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[1], generate_image(1, 128))
    power = sum(abs(np.fft.rfft2(picture[..., 1] - 118.0))**2 for picture in pictures)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    bands = [power[(frequency > low) & (frequency <= 1.5 * low)].mean() for low in (0.03, 0.12)]
    assert bands[0] / bands[1] == pytest.approx(16, rel=0.3)  # 1/f^2 over a factor of 4


def test_folders_are_read_evenly(tmp_path):
    from PIL import Image
    for index in range(10):
        folder = tmp_path / f'class{index // 5}'
        folder.mkdir(exist_ok=True)
        Image.new('L' if index else 'RGB', (30 + index, 20), index * 20).save(
            folder / f'{index}.PNG')
    (tmp_path / 'notes.txt').write_text('no picture')
    pictures = FolderImages(str(tmp_path), 4, 16)
    assert [int(picture[0, 0, 1]) for picture in pictures] == [0, 60, 120, 180]
    assert all(picture.shape == (16, 16, 3) for picture in pictures)
    assert str(pictures) == f'4 of the 10 pictures in {tmp_path}'
    assert len(FolderImages(str(tmp_path), 50, 16)) == 10
    (tmp_path / 'class0/1.PNG').write_text('broken')
    with pytest.raises(ValueError, match='1.PNG.* cannot be read as a picture'):
        FolderImages(str(tmp_path), 50, 16)


@pytest.mark.parametrize(('spec', 'options', 'message'), [
    (ModelSpec('torchvision:resnet18', 'w.pth'), dict(pretrained=True), 'every model has a CHECKP'),
    (ModelSpec('torchvision:resnet18'), dict(cfg_options=dict(a=1)), 'none of the models is a c'),
    (ModelSpec('torchvision:resnet18', name='maps'), {}, 'would be called maps'),
    (ModelSpec('torchvision:resnet18', stage='fc', name='a'), {}, r'gives \(1, 1000\) for'),
    (ModelSpec('mmreplk::upernet_replknet_narrow_scenes.py', name='a'), dict(pretrained=True),
     'names no weights to start from'),
])
def test_checked_before_any_work(spec, options, message):
    with pytest.raises(ValueError, match=message):
        check_models([spec], 64, **options)


@pytest.mark.parametrize(('arguments', 'message'), [
    ((None, 0, 64), 'num_images 0'), ((None, 1, 31), 'size 31'),
    (('gone', 1, 64), "images: no such folder 'gone'")])
def test_bad_pictures(arguments, message, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_pictures(*arguments)
    with pytest.raises(FileNotFoundError, match='holds no picture'):
        open_pictures(str(tmp_path), 1, 64)


def test_from_python(tmp_path):
    from mmreplk.analysis import draw_heat_maps, draw_table, format_table, measure
    specs = parse_models(['torchvision:squeezenet1_1'], ['features.5'])
    result = measure(specs[0], open_model(specs[0], 64), GeneratedImages(2, 64))
    assert result.random
    assert result.matrix.shape == (64, 64)
    assert 'squeezenet1_1' in format_table([result])
    for draw in (draw_heat_maps, draw_table):
        draw([result] * 5, str(tmp_path / f'{draw.__name__}.png'))
    assert len(list(tmp_path.glob('*.png'))) == 2


def test_pictures_with_as_many_channels_as_a_network_takes(tmp_path):
    from PIL import Image
    arrays = np.random.default_rng(0).uniform(0, 255, (3, 8, 9, 5))
    for index, array in enumerate(arrays):
        np.save(tmp_path / f'{index}.npy', array)
    five = FolderImages(str(tmp_path), 2, 8).for_channels(5)
    assert [path[-5:] for path in five.paths] == ['0.npy', '2.npy']
    assert [image.shape for image in five] == [(8, 8, 5)] * 2
    np.testing.assert_allclose(next(iter(five)).mean((0, 1)), arrays[0].mean((0, 1)), rtol=0.05)
    whole, = FolderImages(str(tmp_path / '..' / tmp_path.name), 1, 8).for_channels(5)
    assert whole.dtype == np.float32
    with pytest.raises(ValueError, match='has 5 channels, but the network takes images of 3'):
        FolderImages(str(tmp_path), 2, 8).for_channels(3)
    # Beside pictures: those for colors, arrays for others.
    Image.fromarray(arrays[0, ..., :3].astype(np.uint8)).save(tmp_path / 'a.png')
    images = FolderImages(str(tmp_path), 9, 8)
    assert [image.shape for image in images] == [(8, 8, 3)]
    assert [image.shape for image in images.for_channels(3)] == [(8, 8, 3)]
    assert len(images.for_channels(5)) == 3
    for content in (np.zeros((3, 3)), np.zeros((2, 2, 3), dtype='U1')):
        np.save(tmp_path / '1.npy', content)
        with pytest.raises(ValueError, match=r'1\.npy.*cannot be read as a picture \(an array'):
            images.for_channels(5)
    np.save(tmp_path / '1.npy', np.array([[[{}]]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r'1\.npy.*cannot be read as a picture'):
        images.for_channels(5)
    assert 'of 5 channels' in str(GeneratedImages(2, 8).for_channels(5))
    first = generate_image(0, 64, 5)
    assert first.shape == (64, 64, 5)
    assert np.corrcoef(first[..., 0].ravel(), first[..., 4].ravel())[0, 1] > 0.5


def test_means_of_fewer_channels_are_used_in_turn():
    network = nn.Conv2d(5, 2, 1).double()
    model = ErfModel(network, network, 'random', (1., 2., 3.), (2., ), bgr=True, channels=5)
    image = np.arange(20, dtype=np.uint8).reshape(2, 2, 5)
    prepared = model.prepare(image, 'cpu')
    assert prepared.dtype == torch.float64  # the network's
    wanted = (image.astype(float) - [1, 2, 3, 1, 2]) / 2
    np.testing.assert_allclose(prepared[0].permute(1, 2, 0).numpy(), wanted)
    model.check_stage(8)
