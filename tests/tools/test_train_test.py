"""train.py, test.py and their launch scripts, run as a user runs them, on all three codebases."""

import os
import pickle
import socket
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
LONGER = ('--cfg-options', 'train_cfg.max_iters=40', 'train_cfg.val_interval=40',
          'default_hooks.checkpoint.interval=40', 'optim_wrapper.optimizer.type=Adam',
          'optim_wrapper.optimizer.lr=0.03')
BN_LINE = 'BN in place of SyncBN'


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def weights(path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_train_refuse_resume(seg_bench):
    bench = seg_bench
    run = bench.done('train.py', 'tiny.py')
    assert run.text.count(f'No GPU, so one process on the CPU, {BN_LINE}.') == 1
    first = weights(bench.folder / 'work_dirs/tiny/iter_2.pth')
    assert {'iter_2.pth', 'last_checkpoint', 'tiny.py'} <= bench.files('work_dirs/tiny')

    message = bench.refused('train.py', 'tiny.py')
    assert "--work-dir: 'work_dirs/tiny' holds" in message
    assert 'iter_2.pth' in message
    assert '--resume' in message

    longer = ('--cfg-options', 'train_cfg.max_iters=4')
    run = bench.done('train.py', 'tiny.py', '--resume', *longer)
    assert 'resumed epoch: 0, iter: 2' in run.text
    assert 'Iter(train) [3/4]' in run.text
    assert 'Iter(train) [1/4]' not in run.text
    assert not torch.equal(
        weights(bench.folder / 'work_dirs/tiny/iter_4.pth')['decode_head.conv_seg.weight'],
        first['decode_head.conv_seg.weight'])

    run = bench.done('train.py', 'tiny.py', '--resume', 'work_dirs/tiny/iter_2.pth', '--work-dir',
                     'other', *longer)
    assert 'Iter(train) [3/4]' in run.text
    assert 'iter_4.pth' in bench.files('other')


def test_amp_and_auto_scale_lr(seg_bench):
    bench = seg_bench
    # lr 0.01 is meant for a batch of 8, and this run has 2.
    bench.write(work_dir='from_config', auto_scale_lr=dict(base_batch_size=8, enable=False))
    run = bench.done('train.py', 'tiny.py', '--amp', '--auto-scale-lr')
    assert 'lr: 2.5000e-03' in run.text
    assert 'bfloat16 without a loss scaler' in run.text
    dumped = (bench.folder / 'from_config/tiny.py').read_text()
    assert "'mmreplk.CpuAmpOptimWrapper'" in dumped  # found by its scope


def test_a_short_console(seg_bench):
    """Two processes say once what they have to say, and what is long stands in the log file."""
    bench = seg_bench
    optim = dict(type='OptimWrapper', paramwise_cfg=dict(norm_decay_mult=0.0),
                 optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05))
    bench.write(optim_wrapper=optim)
    run = bench.done('dist_train.sh', 'tiny.py', 2, '--work-dir', 'run')
    log, = (bench.folder / 'run').glob('2*/2*.log')
    for text in ('Config:\n', 'System environment:', 'Hooks will be executed', 'paramwise_options'):
        assert text in log.read_text()
        assert text not in run.text
    assert f'Config, environment and hooks are in {log}.' in run.text
    assert run.text.count('UserWarning: Default ``avg_non_ignore`` is False') == 1
    assert 'MKL_NUM_THREADS' not in run.text
    debug = bench.done('train.py', 'tiny.py', '--work-dir', 'debug', '--cfg-options',
                       'log_level=DEBUG')
    assert 'paramwise_options -- ' in debug.text
    assert 'System environment:' in debug.text


def test_two_processes_train_like_one(seg_bench):
    # GN instead of BN: statistics of a batch would differ between one batch of 2 and two of 1.
    bench = seg_bench
    norm = dict(type='GN', num_groups=1)
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], norm_cfg=norm)
    model['decode_head'] = dict(model['decode_head'], norm_cfg=norm)
    bench.write(model=model)
    bench.done('train.py', 'tiny.py', '--work-dir', 'one')
    run = bench.done('dist_train.sh', 'tiny.py', 2, '--work-dir', 'two', '--cfg-options',
                     'train_dataloader.batch_size=1')
    assert run.text.count('No GPU, so 2 CPU processes over gloo.') == 1
    one = weights(bench.folder / 'one/iter_2.pth')
    two = weights(bench.folder / 'two/iter_2.pth')
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_segmentor(seg_bench):
    bench = seg_bench
    run = bench.done('dist_train.sh', 'tiny.py', 2, '--work-dir', 'run', *LONGER)
    assert run.text.count(f'No GPU, so 2 CPU processes over gloo, {BN_LINE}.') == 1
    assert 'destroy_process_group' not in run.text  # torch's warning about a group left open
    checkpoint = 'run/iter_40.pth'
    dumped = (bench.folder / 'run/tiny.py').read_text()

    bench.done('test.py', 'tiny.py', checkpoint, '--work-dir', 'run', '--out', 'one')
    # A test leaves the config of the training run alone.
    assert (bench.folder / 'run/tiny.py').read_text() == dumped
    assert 'tiny_test.py' in bench.files('run')
    bench.done('dist_test.sh', 'tiny.py', checkpoint, 2, '--work-dir', 'two_run', '--out', 'two',
               '--show-dir', 'two_show', PORT=free_port())
    one = bench.metrics('run')
    assert 0 < one['mIoU'] < 100
    fast = bench.done('test.py', 'tiny.py', checkpoint, '--work-dir', 'fast', '--accelerate')
    assert 'AccelerateHook: accelerated ' in fast.text
    assert bench.metrics('fast')['mIoU'] == pytest.approx(one['mIoU'], abs=0.1)
    assert bench.metrics('two_run') == one
    # Otherwise both processes would write the file of metrics, and it may be no JSON.
    assert 'SafeLoggerHook' in (bench.folder / 'two_run/tiny_test.py').read_text()
    # The running statistics are the same on both processes, and those of the checkpoint.
    assert run.metric('mIoU') == pytest.approx(one['mIoU'], abs=1e-3)
    names = {f'{index}.png' for index in range(5)}
    assert bench.files('one') == bench.files('two') == names
    pictures = {
        folder: [cv2.imread(str(bench.folder / folder / name), -1) for name in sorted(names)]
        for folder in ('one', 'two')
    }
    assert np.array_equal(pictures['one'], pictures['two'])
    assert 0 < np.mean(pictures['one']) < 1, 'one class only: the comparison shows nothing'
    # Every image once, from both processes, under the names of one.
    drawn = {f'test_{index}.png_{index + 1}.png' for index in range(5)}
    assert bench.files('two_show') == drawn
    assert 'DrawOnEveryProcessHook' in (bench.folder / 'two_run/tiny_test.py').read_text()

    bench.done('test.py', 'tiny.py', checkpoint, '--tta', '--amp', '--out', 'tta', '--show-dir',
               'show', '--work-dir', 'tta_run')
    dumped = (bench.folder / 'tta_run/tiny_test.py').read_text()
    assert 'SegTTAModel' in dumped
    assert 'fp16=True' in dumped
    assert bench.files('show', '*.png') == drawn
    tta = [cv2.imread(str(bench.folder / 'tta' / name), -1) for name in sorted(names)]
    assert not np.array_equal(tta, pictures['one'])
    assert "--out: 'tta'" in bench.refused('test.py', 'tiny.py', checkpoint, '--out', 'tta')


def test_classifier(cls_bench):
    bench = cls_bench
    bench.done('dist_train.sh', 'tiny.py', 2, '--amp')
    checkpoint = 'work_dirs/tiny/iter_2.pth'
    bench.done('test.py', 'tiny.py', checkpoint, '--out', 'plain.pkl', '--show-dir', 'show',
               '--work-dir', 'one')
    bench.done('dist_test.sh', 'tiny.py', checkpoint, 2, '--tta', '--out', 'tta.pkl', '--work-dir',
               'two')
    plain, tta = (pickle.loads((bench.folder / name).read_bytes())
                  for name in ('plain.pkl', 'tta.pkl'))
    assert len(plain) == len(tta) == 5
    assert [Path(item['img_path']).name for item in plain] == [
        Path(item['img_path']).name for item in tta]
    assert any(not torch.equal(first['pred_score'], second['pred_score'])
               for first, second in zip(plain, tta, strict=True))
    assert len(bench.files('show', '*.png')) == 5
    assert 'accuracy/top1' in bench.metrics('one')


def test_detector(det_bench):
    bench = det_bench
    run = bench.done('dist_train.sh', 'tiny.py', 2, '--amp', '--work-dir', 'run', *LONGER)
    assert BN_LINE in run.text
    checkpoint = 'run/iter_40.pth'
    bench.done('test.py', 'tiny.py', checkpoint, '--out', 'one.pkl', '--show-dir', 'show',
               '--work-dir', 'one')
    bench.done('dist_test.sh', 'tiny.py', checkpoint, 2, '--out', 'two.pkl', '--work-dir', 'two',
               '--show-dir', 'two_show')
    assert bench.files('show') == {f'{index}.png' for index in range(5)}
    assert bench.files('two_show') == bench.files('show')
    for name in bench.files('show'):
        assert np.array_equal(cv2.imread(str(bench.folder / 'show' / name)),
                              cv2.imread(str(bench.folder / 'two_show' / name)))
    one, two = (pickle.loads((bench.folder / name).read_bytes()) for name in ('one.pkl', 'two.pkl'))
    assert len(one) == len(two) == 5
    for first, second in zip(one, two, strict=True):
        assert len(first['pred_instances']['scores']) > 0
        assert torch.equal(first['pred_instances']['bboxes'], second['pred_instances']['bboxes'])
    assert bench.metrics('one') == bench.metrics('two')
    bench.done('test.py', 'tiny.py', checkpoint, '--tta', '--amp', '--work-dir', 'tta')
    assert 'DetTTAModel' in (bench.folder / 'tta/tiny_test.py').read_text()


def test_slurm(seg_bench, tmp_path):
    # srun and scontrol are played by scripts: they start the processes as Slurm does.
    bench = seg_bench
    folder = tmp_path / 'bin'
    folder.mkdir()
    script(folder / 'scontrol', '#!/bin/sh\necho localhost\n')
    script(
        folder / 'srun', '''#!/usr/bin/env bash
printf '%s\\n' "$@" >> srun_args
while [[ $1 == -* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; -p) shift ;; esac
    shift
done
for ((rank = 0; rank < tasks; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=$tasks SLURM_NODELIST=node1 \\
        SLURM_JOB_NODELIST=node1 SLURM_NNODES=1 SLURM_JOB_ID=7 "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit; done
''')
    env = dict(PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}', GPUS=2, GPUS_PER_NODE=0)
    run = bench.done('slurm_train.sh', 'part', 'a job', 'tiny.py', '--work-dir', 'run',
                     PORT=free_port(), SRUN_ARGS='--quiet --mem=1G', **env)
    assert run.text.count(f'2 CPU processes over gloo, {BN_LINE}') == 1
    args = (bench.folder / 'srun_args').read_text().splitlines()
    assert args[:3] == ['-p', 'part', '--job-name=a job']
    assert '--mem=1G' in args
    assert not any('gres' in arg for arg in args)
    lines = bench.done('slurm_test.sh', 'part', 'job', 'a c.py', 'w.pth', '--tta',
                       PATH=env['PATH'], GPUS=1, PYTHON='echo').text.splitlines()
    assert lines == [f'-u {TOOLS}/test.py a c.py w.pth --launcher slurm --tta']
    assert '--gres=gpu:1' in (bench.folder / 'srun_args').read_text().splitlines()


def test_clear_errors(seg_bench, tmp_path):
    bench = seg_bench
    missing = ('--cfg-options', 'train_dataloader.dataset.data_root=gone')
    message = bench.refused('dist_train.sh', 'tiny.py', 2, *missing)
    assert message.count('train.py: error:') == 1
    assert "train_dataloader.dataset.data_root: 'gone'" in message

    # A package that is not installed, and one of the other set, are played from PYTHONPATH.
    hidden = tmp_path / 'hidden'
    hidden.mkdir()
    (hidden / 'sitecustomize.py').write_text('''
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'mmseg':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
''')
    message = bench.refused('train.py', 'tiny.py', PYTHONPATH=hidden, PYTHONDONTWRITEBYTECODE=1)
    assert 'needs mmseg, which is not installed' in message
    assert 'tools/install.sh' in message
    mixed = tmp_path / 'mixed'
    for name in ('mmcv-2.1.0', 'onedl_mmcv-2.3.6'):
        info = mixed / f'{name}.dist-info'
        info.mkdir(parents=True)
        project, version = name.replace('_', '-').rsplit('-', 1)
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n')
    message = bench.refused('test.py', 'tiny.py', 'x.pth', PYTHONPATH=mixed)
    assert 'mmcv 2.1.0' in message
    assert 'onedl-mmcv 2.3.6' in message


@pytest.mark.parametrize(('tool', 'given'), [('dist_train.sh', 1), ('dist_test.sh', 2),
                                             ('slurm_train.sh', 2), ('slurm_test.sh', 3)])
def test_scripts_say_how_to_use_them(seg_bench, tool, given):
    message = seg_bench.refused(tool, *['word'] * given)
    assert 'usage:' in message
    assert f'tools/{tool}' in message


def test_dist_scripts_pass_everything_on(seg_bench, tmp_path):
    echo = script(tmp_path / 'python', '#!/bin/sh\necho "threads=$OMP_NUM_THREADS"\n'
                  'printf "<%s>\\n" "$@"\n')
    bench = seg_bench

    def arguments(tool, *args, **env):
        return bench.done(tool, *args, PYTHON=echo, OMP_NUM_THREADS='', **env).text.splitlines()

    lines = arguments('dist_train.sh', 'a config.py', 2, '--cfg-options', 'x=[a, b]')
    cores = len(os.sched_getaffinity(0))
    assert lines[0] == f'threads={max(1, cores // 2)}'
    assert lines[1:] == [
        f'<{TOOLS}/torchrun.py>', '<--standalone>', '<--nproc_per_node>', '<2>',
        f'<{TOOLS}/train.py>', '<a config.py>', '<--launcher>', '<pytorch>', '<--cfg-options>',
        '<x=[a, b]>'
    ]
    lines = arguments('dist_test.sh', 'c.py', 'a b.pth', 3, '--tta', PORT=1234)
    assert lines[2:] == [
        '<--nnodes>', '<1>', '<--node_rank>', '<0>', '<--master_addr>', '<127.0.0.1>',
        '<--master_port>', '<1234>', '<--nproc_per_node>', '<3>', f'<{TOOLS}/test.py>', '<c.py>',
        '<a b.pth>', '<--launcher>', '<pytorch>', '<--tta>'
    ]
    lines = arguments('dist_train.sh', 'c.py', 8, NNODES=2, NODE_RANK=1, MASTER_ADDR='host')
    assert lines[2:10] == [
        '<--nnodes>', '<2>', '<--node_rank>', '<1>', '<--master_addr>', '<host>', '<--master_port>',
        '<29500>'
    ]
    assert 'NNODES=2 needs MASTER_ADDR' in bench.refused('dist_train.sh', 'c.py', 8, NNODES=2)
