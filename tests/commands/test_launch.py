import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS

from mmreplk.commands import launch

NAMES = {name for names in launch.PROCESS_ENV.values() for name in names} | {
    'MASTER_ADDR', 'MASTER_PORT', 'TORCHELASTIC_RUN_ID', 'SLURM_JOB_ID', 'SLURM_NNODES',
    'SLURM_JOB_NODELIST', 'SLURM_NODELIST'}


@pytest.fixture
def env(monkeypatch):
    """Sets environment variables, from a state in which no launcher has set any."""
    before = dict(os.environ)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    yield set_all
    # Some the code under test has set itself, and monkeypatch would bring them back.
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def gpu(monkeypatch):
    return lambda there: monkeypatch.setattr(launch, 'has_gpu', lambda: there)


def sync_config() -> Config:
    norm = dict(type='SyncBN', requires_grad=True)
    return Config(
        dict(
            model=dict(
                type='EncoderDecoder',
                norm_cfg=dict(type='MMSyncBN'),
                backbone=dict(type='A', norm_cfg=norm),
                head=[dict(norm_cfg=dict(type='torch.nn.SyncBatchNorm')),
                      dict(norm_cfg=dict(type='GN'), act_cfg=dict(type='ReLU'))]),
            optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict())))


def types(node) -> list:
    if isinstance(node, dict):
        return [node.get('type')] + [kind for value in node.values() for kind in types(value)]
    return [kind for item in node for kind in types(item)] if isinstance(node, list) else []


def test_replace_sync_bn_at_any_depth():
    cfg = sync_config()
    cfg.model.backbone.norm_cfg.type = torch.nn.SyncBatchNorm
    assert launch.replace_sync_bn(cfg.model) == 3
    assert [kind for kind in types(cfg.model) if kind] == [
        'EncoderDecoder', 'BN', 'A', 'BN', 'BN', 'GN', 'ReLU']
    assert cfg.model.backbone.norm_cfg.requires_grad is True
    assert launch.replace_sync_bn(cfg.model) == 0


def test_fit_one_cpu_process(env, gpu):
    gpu(False)
    cfg = sync_config()
    assert launch.fit_to_hardware(cfg, 'none') == (
        'No GPU, so one process on the CPU, bfloat16 without a loss scaler, BN in place of SyncBN.')
    assert cfg.optim_wrapper == dict(type='mmreplk.CpuAmpOptimWrapper', optimizer=dict())
    assert cfg.custom_imports.imports == ['mmreplk']
    assert 'model_wrapper_cfg' not in cfg
    assert 'custom_hooks' not in cfg


def test_fit_two_cpu_processes(env, gpu):
    gpu(False)
    env(WORLD_SIZE=2)
    cfg = sync_config()
    cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    cfg.sync_bn = 'torch'
    cfg.find_unused_parameters = True
    cfg.custom_hooks = [dict(type='EMAHook')]
    assert launch.fit_to_hardware(cfg, 'pytorch').startswith('No GPU, so 2 CPU processes over gloo')
    assert cfg.sync_bn is None
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'mmreplk.AverageBuffersHook']


def test_fit_on_gpus(env, gpu):
    gpu(True)
    cfg = sync_config()
    assert launch.fit_to_hardware(cfg, 'none') == 'One process, so BN in place of SyncBN.'
    assert launch.fit_to_hardware(cfg, 'none') is None
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    env(WORLD_SIZE=2)
    cfg = sync_config()
    assert launch.fit_to_hardware(cfg, 'pytorch') is None
    assert cfg.to_dict() == sync_config().to_dict()


def test_check_launcher(env):
    launch.check_launcher('none')
    env(TORCHELASTIC_RUN_ID='x', WORLD_SIZE=2)
    with pytest.raises(ValueError, match='Add --launcher pytorch'):
        launch.check_launcher('none')
    with pytest.raises(ValueError, match='RANK, LOCAL_RANK not set.*dist_train.sh'):
        launch.check_launcher('pytorch')
    env(RANK=1, LOCAL_RANK=1)
    if not torch.cuda.is_available():
        launch.check_launcher('pytorch')
    with pytest.raises(ValueError, match='slurm_train.sh'):
        launch.check_launcher('slurm')
    env(OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=1, OMPI_COMM_WORLD_LOCAL_RANK=0)
    with pytest.raises(ValueError, match='MASTER_ADDR'):
        launch.check_launcher('mpi')


def test_check_launcher_counts_gpus(env, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    env(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    launch.check_launcher('pytorch')
    env(RANK=1, LOCAL_RANK=1)
    with pytest.raises(ValueError, match='has no GPU, it has 1'):
        launch.check_launcher('pytorch')


def test_slurm_rendezvous(env, monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n'
                        '[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4"\n')
    scontrol.chmod(0o755)
    env(SLURM_PROCID=3, SLURM_NTASKS=4, SLURM_LOCALID=1, SLURM_JOB_ID=20007, SLURM_NNODES=2,
        SLURM_JOB_NODELIST='node[3-4]')
    monkeypatch.setattr(launch.shutil, 'which', lambda name: None)
    with pytest.raises(RuntimeError, match='set MASTER_ADDR'):
        launch.export_rendezvous('slurm')
    monkeypatch.undo()
    env(SLURM_PROCID=3, SLURM_NTASKS=4, SLURM_LOCALID=1, SLURM_JOB_ID=20007, SLURM_NNODES=2,
        SLURM_JOB_NODELIST='node[3-4]', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    launch.export_rendezvous('slurm')
    assert [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR',
                                          'MASTER_PORT')] == ['3', '4', '1', 'node3', '29507']
    env(MASTER_ADDR='given', MASTER_PORT='1')
    launch.export_rendezvous('slurm')
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('given', '1')


def test_process_group_opens_and_closes_gloo(env, gpu):
    gpu(False)
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    env(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    with launch.process_group(Config(dict(env_cfg=dict(dist_cfg=dict(timeout=30)))), 'pytorch'):
        assert torch_dist.get_backend() == 'gloo'
    assert not torch_dist.is_initialized()
    with launch.process_group(Config({}), 'none'):
        assert not torch_dist.is_initialized()


def test_finish_ends_with_success_and_runs_what_waits_for_the_exit():
    code = ('import atexit; from mmreplk.commands import launch; launch.has_gpu = lambda: False\n'
            'atexit.register(print, "at exit")\n'
            'launch.finish("none"); print("still here")\n'
            'launch.finish("pytorch"); print("never here")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ['still here', 'at exit']


def test_cpu_amp_runs_in_bfloat16():
    model = torch.nn.Linear(2, 2)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='CpuAmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    with wrapper.optim_context(model):
        out = model(torch.ones(1, 2))
    assert out.dtype == torch.bfloat16
    before = model.weight.detach().clone()
    wrapper.update_params(out.sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)
