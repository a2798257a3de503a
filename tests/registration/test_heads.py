"""The recipes of docs/heads.md over stock configs: what they say is built, trained and asked.

``python tests/registration/test_heads.py`` writes the table of the page.
"""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmreplk import RepLKNet
from mmreplk.config.edit import replace_sync_bn
from mmreplk.config.model import build_model
from mmreplk.models.from_config import check_backbone

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/heads.md'
MARKS = '<!-- table -->\n', '<!-- end of table -->'
SHALLOW = dict(large_kernel_sizes=[5] * 4, layers=[1] * 4, channels=[128, 256, 512, 1024],
               small_kernel=3)
SIZE = 96
QUICK = ('UperNet', 'SegFormer', 'RTMDet')  # the others are slow


def recipes() -> dict[str, str]:
    """The configs of the page, by their headings."""
    return dict(re.findall(r'^### (.+?)\n.*?^```python\n(.*?)^```', PAGE.read_text(), re.M | re.S))


def stock_of(recipe: str) -> tuple[str, str]:
    """Package and file of the stock config that a recipe builds on."""
    return re.match(r"_base_ = '(\w+)::(.+)'\n", recipe).groups()


def read(recipe: str, folder: Path) -> Config:
    """A recipe as a user's file, with the stock config by its path."""
    package, stock = stock_of(recipe)
    base = Path(importlib.import_module(package).__file__).parent / '.mim/configs' / stock
    file = folder / 'mine.py'
    file.write_text(recipe.replace(f'{package}::{stock}', str(base)))
    return Config.fromfile(file)


def seg_samples() -> list:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(
            ori_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), img_path=''))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, SIZE, SIZE)))
        samples.append(sample)
    return samples


def det_samples(with_masks: bool) -> list:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            ori_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE),
            batch_input_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0), img_id=0))
        masks = np.zeros((1, SIZE, SIZE), np.uint8)
        masks[:, 20:80, 30:90] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[30.0, 20.0, 90.0, 80.0]]), labels=torch.tensor([3]))
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks, SIZE, SIZE)
        samples.append(sample)
    return samples


def train_and_predict(cfg: Config) -> None:
    """One step of training and one prediction of a shallow network; asserts that they are sound."""
    cfg.model.backbone.arch = SHALLOW
    cfg.model.data_preprocessor.pop('batch_augments', None)  # would pad to 1024 pixels
    if 'num_queries' in cfg.model:  # DINO's are the best of all places, of which there are few
        cfg.model.num_queries = 50
    segments = cfg.default_scope == 'mmseg'
    if segments:
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(build_model(cfg, 'cpu'))
        data = dict(
            inputs=[torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)],
            data_samples=seg_samples() if segments else det_samples(
                'Mask' in cfg.model.type))
        gradients = []
        model.backbone.stem[0].conv.weight.register_hook(gradients.append)
        optim_wrapper = build_optim_wrapper(
            model, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4)))
        losses = model.train().train_step(data, optim_wrapper)
        assert torch.isfinite(losses['loss'])
        assert gradients[0].isfinite().all()
        assert gradients[0].any()
        predictions = model.eval().test_step(data)
    assert len(predictions) == 2
    for prediction in predictions:
        if segments:
            assert prediction.pred_sem_seg.data.shape == (1, SIZE, SIZE)
        else:
            boxes = prediction.pred_instances.bboxes
            assert boxes.shape == (len(prediction.pred_instances.scores), 4)


def row(name: str, folder: Path) -> str:
    """A recipe's row of the table, once it has been tried."""
    recipe = recipes()[name]
    package, stock = stock_of(recipe)
    cfg = read(recipe, folder)
    backbone = check_backbone(cfg)
    replace_sync_bn(cfg.model)
    parameters = sum(p.numel() for p in build_model(cfg).parameters()) / 1e6
    train_and_predict(cfg)
    stages = ', '.join(map(str, backbone.out_indices))
    base = stock.rsplit('/', 1)[1].removesuffix('.py')
    return f'| {name} | {package}, `{base}` | {stages} | {parameters:.1f} M | yes | yes |'


def table() -> str:
    return PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]


def cases():
    for name, recipe in recipes().items():
        marks = [] if name in QUICK else [pytest.mark.slow]
        if stock_of(recipe)[0] == 'mmdet' or 'mmdet' in recipe:
            marks.append(pytest.mark.needs_mmcv_ops)
        yield pytest.param(name, marks=marks, id=name)


@pytest.mark.parametrize('name', cases())
def test_recipe(name, tmp_path):
    assert row(name, tmp_path) in table().splitlines()


def test_the_table_has_every_recipe():
    assert [line.split('|')[1].strip() for line in table().splitlines()[2:]] == list(recipes())


def test_channels_and_strides_of_the_page():
    text = PAGE.read_text()
    for arch in ('31B', '31L', 'XL'):
        with torch.device('meta'):
            model = RepLKNet(arch).eval()
            maps = model(torch.empty(1, 3, 64, 64))
        channels = ' | '.join(str(m.shape[1]) for m in maps)
        assert f"| channels of `'{arch}'` | {channels} |" in text
        strides = ' | '.join(str(64 // m.shape[2]) for m in maps)
        assert f'| stride | {strides} |' in text


def test_base_models_with_pretrained():
    """The figures of the page, of the MMSegmentation that it is made with."""
    mmseg = pytest.importorskip('mmseg')
    files = sorted((Path(mmseg.__file__).parent / '.mim/configs/_base_/models').glob('*.py'))
    found = [file for file in files
             if Config.fromfile(file).get('model', {}).get('pretrained') is not None]
    assert f'{len(found)} of its {len(files)} base models' in PAGE.read_text()


if __name__ == '__main__':
    import sys
    import tempfile
    lines = ['| head | stock config | stages | parameters | step | prediction |',
             '|---|---|---|---|---|---|']
    with tempfile.TemporaryDirectory() as folder:
        for title in recipes():
            torch.manual_seed(0)
            lines.append(row(title, Path(folder)))
            print(lines[-1], file=sys.stderr, flush=True)
    start, end = MARKS
    before, _, rest = PAGE.read_text().partition(start)
    PAGE.write_text(before + start + '\n'.join(lines) + '\n' + end + rest.partition(end)[2])
