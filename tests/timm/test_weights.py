"""Weights: which layouts load, where they come from, and what is said where they do not."""

import hashlib
import re
import shutil
import socket
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
import yaml

from mmreplk.config.files import config_root

NAME = 'replknet_31b_narrow'


def official(state):
    return {name.replace('head.fc.', 'head.'): value for name, value in state.items()}


def ours(state):
    return {name if name.startswith('head.') else f'backbone.{name}': value
            for name, value in state.items()}


def mmpretrain(state):
    return {re.sub(r'^backbone\.norm\.', 'backbone.stages.3.norm.', name): value
            for name, value in ours(state).items()}


LAYOUTS = dict(
    timm=lambda state: state,
    timm_ema=lambda state: dict(state_dict={k: v * 0 for k, v in state.items()},
                                state_dict_ema=state, epoch=3),
    authors=official,
    authors_wrapped=lambda state: dict(model=official(state), epoch=3),
    parallel=lambda state: dict(state_dict={f'module.{k}': v for k, v in state.items()}),
    mmreplk=lambda state: dict(meta=dict(epoch=1), state_dict=ours(state)),
    mmpretrain=lambda state: dict(state_dict=mmpretrain(state)))


@pytest.fixture
def model(randomize_norms):
    return randomize_norms(timm.create_model(NAME)).eval()


def load(source, name=NAME, **kwargs):
    overlay = dict(file=str(source)) if not isinstance(source, dict) else dict(state_dict=source)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay,
                             **kwargs).eval()


class TestLayouts:

    @pytest.mark.parametrize('layout', LAYOUTS)
    def test_every_layout(self, model, layout, tmp_path):
        torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / 'weights.pth')
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(load(tmp_path / 'weights.pth')(x), model(x))
            features = load(tmp_path / 'weights.pth', features_only=True)
            assert torch.equal(features(x)[1], model.forward_intermediates(x)[1][1])

    def test_safetensors_and_a_dict(self, model, tmp_path):
        from safetensors.torch import save_file
        save_file(official(model.state_dict()), tmp_path / 'weights.safetensors')
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(load(tmp_path / 'weights.safetensors')(x), model(x))
            assert torch.equal(load(mmpretrain(model.state_dict()))(x), model(x))

    def test_of_a_segmentor(self, model, tmp_path):
        state = {name: value for name, value in ours(model.state_dict()).items()
                 if name.startswith('backbone.')}
        state['decode_head.conv_seg.weight'] = torch.rand(3, 2, 1, 1)
        torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
        loaded = load(tmp_path / 'weights.pth', num_classes=3)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded.forward_features(x), model.forward_features(x))
            assert loaded(x).shape == (1, 3)

    def test_against_mmpretrain(self, tmp_path, randomize_norms):
        pytest.importorskip('mmpretrain')
        from mmpretrain.models import ImageClassifier
        net = timm.create_model(NAME)
        arch = dict(large_kernel_sizes=[31, 29, 27, 13], layers=[1, 1, 2, 1],
                    channels=[16, 32, 64, 128], small_kernel=5, dw_ratio=1)
        theirs = randomize_norms(ImageClassifier(
            backbone=dict(type='RepLKNet', arch=arch, out_indices=(3, )),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=128)))
        theirs.train(False)
        torch.save(dict(state_dict=theirs.state_dict()), tmp_path / 'weights.pth')
        net = load(tmp_path / 'weights.pth')
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize('in_chans', [1, 4])
    def test_other_channels_and_classes(self, model, in_chans, tmp_path):
        torch.save(mmpretrain(model.state_dict()), tmp_path / 'weights.pth')
        loaded = load(tmp_path / 'weights.pth', in_chans=in_chans, num_classes=9)
        assert loaded(torch.randn(1, in_chans, 64, 64)).shape == (1, 9)
        torch.testing.assert_close(loaded.stages[0].state_dict(), model.stages[0].state_dict())
        if in_chans == 1:
            x = torch.randn(1, 1, 64, 64)
            with torch.no_grad():
                torch.testing.assert_close(
                    loaded.forward_features(x), model.forward_features(x.expand(1, 3, 64, 64)),
                    rtol=1e-3, atol=1e-4)

    def test_merged(self, model, tmp_path):
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(x)
        torch.save(model.state_dict(), tmp_path / 'plain.pth')
        model.switch_to_deploy()
        torch.save(official(model.state_dict()), tmp_path / 'merged.pth')
        with torch.no_grad():
            torch.testing.assert_close(load(tmp_path / 'merged.pth', deploy=True)(x), expected,
                                       rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match=r'is merged, the model is not: .*deploy=True'):
            load(tmp_path / 'merged.pth')
        with pytest.raises(ValueError, match=r'is not merged, but the model is: leave deploy out'):
            load(tmp_path / 'plain.pth', deploy=True)

    def test_other_networks(self, model, tmp_path):
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        with pytest.raises(ValueError, match='file of weights is of arch .* 16-32-64-128.*'
                                             '24-48-96-192'):
            load(tmp_path / 'weights.pth', 'replknet_31l_narrow')
        torch.save({'conv.weight': torch.rand(1)}, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match='file of weights holds no RepLKNet'):
            load(tmp_path / 'other.pth')


class Counting(SimpleHTTPRequestHandler):
    asked = []  # set anew for each server

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address, and the paths that were asked for."""
    monkeypatch.setenv('no_proxy', '*')
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = type('Handler', (Counting, ), dict(asked=[]))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{server.server_port}', handler.asked
    server.shutdown()
    server.server_close()
    thread.join()


def publish(model, folder):
    """A file of weights as MMPretrain publishes them; its name ends with its hash."""
    file = folder / 'weights.pth'
    torch.save(dict(state_dict=mmpretrain(model.state_dict())), file)
    return file.rename(folder / f'narrow-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth')


def fetched(url, cache, **kwargs):
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(url=url),
                             cache_dir=str(cache), **kwargs).eval()


class TestWhereTheyComeFrom:

    def test_downloaded_once(self, model, served, tmp_path):
        folder, address, asked = served
        file, x = publish(model, folder), torch.randn(1, 3, 64, 64)
        for _ in range(2):
            with torch.no_grad():
                assert torch.equal(fetched(f'{address}/{file.name}', tmp_path / 'c')(x), model(x))
        assert asked == [f'/{file.name}']
        assert [path.name for path in (tmp_path / 'c').iterdir()] == [file.name]

    def test_into_the_folder_of_torch_hub(self, model, served, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
        file = publish(model, served[0])
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(
            url=f'{served[1]}/{file.name}'))
        assert (tmp_path / 'hub/checkpoints' / file.name).is_file()

    def test_a_damaged_copy_is_fetched_anew(self, model, served, tmp_path):
        folder, address, asked = served
        file = publish(model, folder)
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-100])
        fetched(f'{address}/{file.name}', tmp_path)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
        assert len(asked) == 1

    @pytest.mark.parametrize('source', ['folder', 'path', 'address', 'file address'])
    def test_from_another_place(self, model, served, tmp_path, source):
        folder, address, asked = served
        file = publish(model, folder)
        place = dict(folder=str(folder), path=folder, address=f'{address}/').get(
            source, folder.as_uri())
        loaded = fetched(f'http://published.invalid/{file.name}', tmp_path / 'c',
                         weights_from=place)
        assert torch.equal(loaded.norm.running_var, model.norm.running_var)
        assert len(asked) == (source == 'address')

    def test_another_file_of_that_name(self, model, served, tmp_path):
        folder, address, _ = served
        file = publish(model, folder)
        wrong = folder / 'narrow-00000000.pth'
        shutil.move(file, wrong)
        with pytest.raises(ValueError, match=r'^http.*00000000\.pth is not the published file: .*'
                                             r'weights_from=PLACE'):
            fetched(f'{address}/{wrong.name}', tmp_path / 'c')
        assert not list((tmp_path / 'c').iterdir())
        with pytest.raises(ValueError, match=r'narrow-00000000\.pth is not the published file, its '
                                             r'SHA-256 begins with [0-9a-f]{8}\. .*file=FILE'):
            fetched(f'{address}/{wrong.name}', tmp_path / 'c', weights_from=folder)

    def test_nothing_there(self, served, tmp_path):
        folder, address, _ = served
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            closed = f'http://127.0.0.1:{free.getsockname()[1]}'
        name = 'narrow-01234567.pth'
        for url in (f'{closed}/{name}', f'http://published.invalid/{name}', f'{address}/{name}'):
            with pytest.raises(ConnectionError) as caught:
                fetched(url, tmp_path / 'c')
            message = str(caught.value)
            assert message.startswith(f'{url} cannot be fetched (')
            assert message.endswith(f'holds {name}: create_model(..., weights_from=PLACE)')
            assert '\n' not in message
            assert caught.value.__suppress_context__
        with pytest.raises(FileNotFoundError, match=f'^weights_from=.* holds no {name}; name'):
            fetched(url, tmp_path / 'c', weights_from=tmp_path)

    def test_the_published_addresses_are_asked(self, full, tmp_path):
        """By the name of the file, which a folder has to hold: nothing is asked of the network."""
        cfg = timm.get_pretrained_cfg(full)
        with pytest.raises(FileNotFoundError, match=re.escape(cfg.url.rpartition('/')[2])):
            timm.create_model(full, pretrained=True, weights_from=tmp_path)

    def test_none_published(self, narrow):
        with pytest.raises(RuntimeError, match='No pretrained weights exist'):
            timm.create_model(narrow, pretrained=True)


class TestDefaultConfigs:

    def configs(self):
        names = [*timm.list_pretrained('replknet*'), *timm.list_models('replknet*_narrow')]
        return {name: timm.get_pretrained_cfg(name) for name in names}

    def test_consistent(self):
        for name, cfg in self.configs().items():
            with torch.device('meta'):
                model = timm.create_model(name)
            state = model.state_dict()
            assert state[f'{cfg.classifier}.weight'] is not None
            assert state[f'{cfg.first_conv}.weight'].shape[1] == cfg.input_size[0]
            assert model.num_classes == cfg.num_classes
            assert model.pretrained_cfg['architecture'] == name.partition('.')[0]
            out = model.forward_features(torch.empty(1, *cfg.input_size, device='meta'))
            assert out.shape == (1, model.num_features, *cfg.pool_size)

    def test_every_published_file_and_its_evaluation(self):
        """Addresses of configs/metafile.yml, each with a hash; sizes and crops of the configs."""
        mmengine_config = pytest.importorskip('mmengine.config')
        cfgs = {cfg.url: cfg for cfg in self.configs().values() if cfg.url}
        meta = yaml.safe_load((config_root() / 'metafile.yml').read_text())
        published = {entry['Weights']: entry['Config'] for entry in meta['Models']
                     if 'imagenet' in entry['Name'] and '://' in entry['Weights']}
        assert set(cfgs) == set(published)
        assert len(cfgs) == 6
        for url, config in published.items():
            cfg = cfgs[url]
            assert re.search(r'-[0-9a-f]{8}\.pth$', url)
            recipe = mmengine_config.Config.fromfile(config_root() / Path(config).name)
            resize, crop = recipe.test_pipeline[1], recipe.test_pipeline[2]
            size = cfg.input_size[1]
            if crop['type'] == 'CenterCrop':
                assert (crop['crop_size'], int(size / cfg.crop_pct)) == (size, resize['scale'])
                assert cfg.crop_mode == 'center'
            else:
                assert tuple(resize['scale']) == (size, size)
                assert (cfg.crop_mode, cfg.crop_pct) == ('squash', 1.0)
            assert cfg.interpolation == resize['interpolation']
            for key in ('mean', 'std'):
                assert [255 * value for value in getattr(cfg, key)] == pytest.approx(
                    recipe.data_preprocessor[key])
            arch = cfg.architecture.removeprefix('replknet_').upper()
            assert recipe.model.backbone.arch == arch
