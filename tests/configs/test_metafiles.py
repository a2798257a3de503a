"""The model index and the metafile, as MIM, MMEngine's hub and their own library read them."""

import re
import traceback
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.fileio import load

from mmreplk.hub import NONE

ROOT = Path(__file__).resolve().parents[2]
HOSTED = 'https://download.openmmlab.com/mmclassification/v0/replknet/replknet-'
# The same models, trained or evaluated in another way, what has no figure, and drawn data.
WITHOUT_ENTRY = re.compile(
    r'.*_fsdp|.*_shape_bias|.*_dilated_.*|.*_camvid|.*_nuts|upernet_replknet_narrow_scenes|'
    r'kernel_study_far_context')


@pytest.fixture(scope='module')
def models() -> dict:
    """Config file name to its entry."""
    found = {}
    for path in load(ROOT / 'model-index.yml')['Import']:
        for entry in load(ROOT / path)['Models']:
            found[Path(entry['Config']).name] = entry
    return found


def test_every_config_has_an_entry_and_every_entry_a_config(models):
    files = {path.name for path in ROOT.glob('configs/*.py')
             if not WITHOUT_ENTRY.fullmatch(path.stem)}
    assert set(models) == files
    assert all((ROOT / entry['Config']).is_file() for entry in models.values())
    assert len({entry['Name'] for entry in models.values()}) == len(models)


def test_the_model_index_library_reads_them():
    modelindex = pytest.importorskip('modelindex')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    assert len(index.models) == len(load(ROOT / 'configs/metafile.yml')['Models'])
    assert {model.in_collection for model in index.models} == {'RepLKNet'}


def test_mim_says_in_words_that_there_are_no_weights(models, tmp_path):
    """``mim download`` takes whatever stands there, in parts at each comma, for an address."""
    mim = pytest.importorskip('mim.utils')
    words = models['upernet_replknet31b_ade20k.py']['Weights']
    assert ',' not in words
    with pytest.raises(TypeError) as caught:  # mim 0.3.9 raises a string, which is none of its own
        mim.download_from_file(words, str(tmp_path / 'file'))
    assert words in ''.join(traceback.format_exception(caught.value))
    assert not (tmp_path / 'file').exists()


def test_mmengines_hub_reads_them(tmp_path):
    (tmp_path / '.mim').symlink_to(ROOT)  # as setup.py lays them out in the wheel
    entry = _get_cfg_metainfo(str(tmp_path), 'configs/replknetxl_meg73m_imagenet_320_finetune.py')
    assert entry['Weights'].startswith(f'{HOSTED}XL')


def test_weights_and_status_agree(models):
    for entry in models.values():
        status, weights = entry['Metadata']['Status'], entry['Weights']
        source = entry.get('Converted From', {}).get('Weights')
        if not weights.startswith(NONE):
            assert status == 'converted by MMPretrain, untested here'
            assert weights.startswith(HOSTED)
        elif source:
            assert weights == 'none to download (see Converted From)'
            assert status.endswith('tools/convert_checkpoint.py, untested here')
        else:
            assert weights == 'none published'
            assert status == 'no weights published'
        assert source is None or re.fullmatch(
            r'https://drive\.google\.com/file/d/[\w-]{33}/view', source)


def test_no_address_stands_for_two_models(models):
    for key in (lambda entry: entry['Weights'] if '://' in entry['Weights'] else None,
                lambda entry: entry.get('Converted From', {}).get('Weights')):
        addresses = [key(entry) for entry in models.values() if key(entry)]
        assert len(set(addresses)) == len(addresses)


def test_figures_and_starting_weights_are_those_of_the_configs(models):
    for name, entry in models.items():
        header = (ROOT / 'configs' / name).read_text().split('_base_')[0]
        for result in entry['Results']:
            for metric, value in result['Metrics'].items():
                assert re.search(rf'\b{value:g}0?\b', header), (name, metric, value)
        init = Config.fromfile(str(ROOT / 'configs' / name)).model
        init = init.backbone.get('init_cfg') or init.get('init_cfg') or {}
        hosted = init.get('checkpoint', '').startswith('https://')
        if hosted:
            assert entry['Metadata']['Starting Weights'] == init['checkpoint']
