"""What FSDP needs from config and processes. Sharded training itself: tests/tools."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch.distributed.fsdp.wrap import _recursive_wrap

from mmreplk import RepLKNet
from mmreplk.config.files import config_root
from mmreplk.models.blocks import ConvFFN, RepLKBlock
from mmreplk.training.fsdp import fit_fsdp, is_sharded, unshard

NAME = 'upernet_replknetxl_meg73m_ade20k_640'


@pytest.fixture
def cfg():
    return Config.fromfile(str(config_root() / f'{NAME}_fsdp.py'))


def test_the_policy_wraps_blocks_alone(cfg, tiny_arch):
    policy = FUNCTIONS.get(cfg.strategy.model_wrapper.auto_wrap_policy)

    class Unit(torch.nn.Module):

        def __init__(self, module):
            super().__init__()
            self.module = module

    net = RepLKNet(tiny_arch)
    blocks = sum(isinstance(m, (RepLKBlock, ConvFFN)) for m in net.modules())
    _recursive_wrap(net, policy, Unit, ignored_modules=set(), ignored_params=set())
    units = [m for m in net.modules() if isinstance(m, Unit)]
    assert len(units) == blocks == 2 * sum(tiny_arch['layers'])
    assert all(isinstance(unit.module, (RepLKBlock, ConvFFN)) for unit in units)


def test_nothing_is_asked_of_other_configs():
    cfg = Config.fromfile(str(config_root() / f'{NAME}.py'))
    before = cfg.to_dict()
    assert not is_sharded(cfg)
    fit_fsdp(cfg, 'none', gpu=False)
    assert unshard(cfg) is None
    assert cfg.to_dict() == before


def test_a_launcher_is_needed(cfg):
    with pytest.raises(ValueError, match=r'launcher none: .*_fsdp\.py.*tools/dist_train\.sh'):
        fit_fsdp(cfg, 'none', gpu=True)


def test_on_gpus_the_config_stays(cfg):
    before = cfg.to_dict()
    fit_fsdp(cfg, 'pytorch', gpu=True)
    assert cfg.to_dict() == before


def test_on_cpus_nothing_is_offloaded(cfg):
    fit_fsdp(cfg, 'pytorch', gpu=False)
    assert cfg.strategy.model_wrapper.device_id == 'cpu'
    strategy = STRATEGIES.build(cfg.strategy)
    assert strategy.state_dict_type.name == 'FULL_STATE_DICT'
    assert strategy.state_dict_config.offload_to_cpu is False
    assert strategy.optim_state_dict_config.offload_to_cpu is False


def test_the_strategy_of_the_config_gathers_whole_checkpoints(cfg):
    strategy = STRATEGIES.build(cfg.strategy)
    assert strategy.state_dict_type.name == 'FULL_STATE_DICT'
    assert strategy.state_dict_config.offload_to_cpu is True
    assert strategy.model_wrapper['use_orig_params'] is True


def test_tests_run_unsharded(cfg):
    assert 'without' in unshard(cfg)
    assert not is_sharded(cfg)
    assert 'runner_type' not in cfg
