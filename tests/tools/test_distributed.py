"""Several processes: the numbers of one, and what happens when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmreplk.weights.safe_load import read_checkpoint

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
TOO_LONG = 240  # seconds


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


@pytest.fixture
def bench(seg_bench):
    """The segmentor with group norm, which sees an image alone, on six images in epochs."""
    bench = seg_bench
    for kind in ('img', 'ann'):  # five are an odd number; the sixth is the first again
        files = bench.folder / 'data' / kind
        for index in range(5):
            content = (files / 'val' / f'{index}.png').read_bytes()
            (files / 'train' / f'{index}.png').write_bytes(content)
        (files / 'six').mkdir()
        for index in range(6):
            content = (files / 'val' / f'{index % 5}.png').read_bytes()
            (files / 'six' / f'{index}.png').write_bytes(content)
    norm = dict(type='GN', num_groups=1)
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], norm_cfg=norm)
    model['decode_head'] = dict(model['decode_head'], norm_cfg=norm)
    loader = dict(bench.config['train_dataloader'],
                  sampler=dict(type='DefaultSampler', shuffle=False))
    bench.config.update(
        model=model, train_dataloader=loader,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1),
        # Plain SGD of rate 1: the weights move by the gradients themselves.
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        log_processor=dict(by_epoch=True))
    bench.write()
    return bench


def weights(bench, folder, name='epoch_1.pth'):
    return read_checkpoint(str(bench.folder / folder / name))['state_dict']


def equal(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, msg=name, **tolerance)


@pytest.mark.slow
def test_two_and_four_processes(bench):
    """Gradients and metrics of one process; the last batch is filled up and smaller than others."""
    six = ('train_dataloader.dataset.data_prefix.img_path=img/six',
           'train_dataloader.dataset.data_prefix.seg_map_path=ann/six')
    one = bench.done('train.py', 'tiny.py', '--work-dir', 'one', '--cfg-options', *six,
                     'train_dataloader.batch_size=4')
    run = bench.done('dist_train.sh', 'tiny.py', 2, '--work-dir', 'two')  # 4 images, then 1 + 1
    assert '[2/2]' in run.text or 'epoch_1' in str(list((bench.folder / 'two').glob('*.pth')))
    equal(weights(bench, 'one'), weights(bench, 'two'), rtol=1e-3, atol=2e-5)
    assert run.metric('mIoU') == one.metric('mIoU')

    loader = ('--cfg-options', 'train_dataloader.batch_size=1', 'train_cfg.max_epochs=1')
    four = bench.done('dist_train.sh', 'tiny.py', 4, '--work-dir', 'four', *loader)
    # Eight places for five images: 0 1 2 3, 4 0 1 2.
    for kind in ('img', 'ann'):
        for place, index in ((5, 0), (6, 1), (7, 2)):
            files = bench.folder / 'data' / kind / 'six'
            (files / f'{place}.png').write_bytes((files / f'{index}.png').read_bytes())
    eight = bench.done('train.py', 'tiny.py', '--work-dir', 'eight', '--cfg-options', *six,
                       'train_dataloader.batch_size=4')
    equal(weights(bench, 'eight'), weights(bench, 'four'), rtol=1e-3, atol=2e-5)
    assert four.metric('mIoU') == eight.metric('mIoU')


class Agents:
    """dist_train.sh in the background, alone or as one of two machines."""

    def __init__(self, bench):
        self.bench, self.all = bench, []

    def start(self, *args, **env):
        log = self.bench.folder / f'agent_{len(self.all)}.log'
        clean = {key: value for key, value in os.environ.items()
                 if key not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'PORT', 'MASTER_PORT')}
        clean |= dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        with open(log, 'w') as file:
            agent = subprocess.Popen(
                ['bash', str(TOOLS / 'dist_train.sh'), *map(str, args)], cwd=self.bench.folder,
                env=clean | {key: str(value) for key, value in env.items()}, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True)
        agent.log = log
        self.all.append(agent)
        return agent

    def wait_for(self, pattern, agent):
        end = time.monotonic() + TOO_LONG
        while not any(self.bench.folder.glob(pattern)):
            assert agent.poll() is None, agent.log.read_text()
            assert time.monotonic() < end, agent.log.read_text()
            time.sleep(0.02)

    def signal_worker(self, agent, rank, number=signal.SIGKILL):
        """Kill the worker of a local rank, as the system does when memory runs out, or stop it."""
        children = Path(f'/proc/{agent.pid}/task/{agent.pid}/children').read_text().split()
        for pid in children:
            try:
                content = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
            except OSError:
                continue
            if f'LOCAL_RANK={rank}'.encode() in content:
                os.kill(int(pid), number)
                return
        raise AssertionError(f'no worker of rank {rank} among {children}')


@pytest.fixture
def agents(bench):
    agents = Agents(bench)
    yield agents
    for agent in agents.all:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


LONG = ('--cfg-options', 'train_cfg.max_epochs=40', 'train_cfg.val_interval=100',
        'default_hooks.checkpoint.max_keep_ckpts=3')


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds workers in /proc')
def test_a_worker_dies(bench, agents):
    """The job names it and ends; --resume goes on, and a restart does so by itself."""
    agent = agents.start('tiny.py', 2, '--work-dir', 'killed', *LONG)
    agents.wait_for('killed/epoch_2.pth', agent)
    agents.signal_worker(agent, 1)
    assert agent.wait(60) == 1
    text = agent.log.read_text()
    assert 'the process of rank 1 (local rank 1, pid' in text
    assert 'was killed by SIGKILL, as the system does when memory runs out' in text
    agent = agents.start('tiny.py', 2, '--work-dir', 'killed', '--resume', *LONG)
    assert agent.wait(TOO_LONG) == 0, agent.log.read_text()
    assert 'resumed epoch' in agent.log.read_text()

    # Those that died do not keep the work dir from those that come after them.
    agent = agents.start('tiny.py', 2, '--work-dir', 'again', *LONG, MAX_RESTARTS=2)
    agents.wait_for('again/epoch_2.pth', agent)
    agents.signal_worker(agent, 0)
    agents.wait_for('again/epoch_12.pth', agent)
    agents.signal_worker(agent, 1)
    assert agent.wait(TOO_LONG) == 0, agent.log.read_text()
    assert agent.log.read_text().count('resumed epoch') == 2
    equal(weights(bench, 'killed', 'epoch_40.pth'), weights(bench, 'again', 'epoch_40.pth'),
          rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds workers in /proc')
def test_a_worker_hangs(bench, agents):
    """The others give it up after the timeout of the config, and torchrun ends it."""
    agent = agents.start('tiny.py', 2, '--work-dir', 'hung', *LONG, 'env_cfg.dist_cfg.timeout=15')
    agents.wait_for('hung/epoch_2.pth', agent)
    agents.signal_worker(agent, 1, signal.SIGSTOP)
    assert agent.wait(TOO_LONG) == 1
    text = agent.log.read_text()
    assert 'Timed out waiting 15000ms' in text
    assert 'Unable to shutdown process' in text  # the one that hangs, by its number


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds workers in /proc')
def test_two_machines(bench, agents):
    """One torchrun on each; the numbers are those of two processes, and both end with a worker."""

    def both(folder, *options):
        env = dict(NNODES=2, MASTER_ADDR='127.0.0.1', PORT=free_port())
        return [agents.start('tiny.py', 1, '--work-dir', folder, *options, NODE_RANK=rank, **env)
                for rank in range(2)]

    for agent in both('machines'):
        assert agent.wait(TOO_LONG) == 0, agent.log.read_text()
    bench.done('dist_train.sh', 'tiny.py', 2, '--work-dir', 'two')
    equal(weights(bench, 'two'), weights(bench, 'machines'), rtol=0, atol=0)

    first, second = both('killed', *LONG)
    agents.wait_for('killed/epoch_2.pth', first)
    agents.signal_worker(second, 0)
    assert [agent.wait(60) for agent in (first, second)] == [1, 1]
    assert 'the process of rank 1 (local rank 0, pid' in second.log.read_text()


def test_restarts_are_for_one_machine(bench):
    message = bench.refused('dist_train.sh', 'c.py', 2, NNODES=2, MASTER_ADDR='h', MAX_RESTARTS=1)
    assert 'MAX_RESTARTS is for one machine' in message
