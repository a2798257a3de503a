"""Processes and hardware: who runs beside whom, and what stands in for a missing GPU.

MMEngine opens the process group itself, but only on accelerators: its ``init_dist`` selects a CUDA
device first. A group that exists already is left alone, so without a GPU one over gloo is opened
here before the Runner is built.
"""

import atexit
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device

from ..config.edit import replace_sync_bn
from ..training.cpu_fallbacks import use_cpu_modules
from ..training.fsdp import fit_fsdp

# Launcher to its names for rank, number of processes and rank on this machine.
PROCESS_ENV = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
STARTED_BY = {
    'pytorch': 'torchrun; start it with `bash tools/dist_train.sh` or `bash tools/dist_test.sh`',
    'slurm': 'srun; start it with `bash tools/slurm_train.sh` or `bash tools/slurm_test.sh`',
    'mpi': 'mpirun',
}


def has_gpu() -> bool:
    """Say whether MMEngine puts models on a device that has SyncBN and its own backend."""
    return get_device() not in ('cpu', 'mps')


def local_rank(launcher: str) -> int:
    """The rank of this process on its machine, before any process group exists."""
    return 0 if launcher == 'none' else int(os.environ.get(PROCESS_ENV[launcher][2], 0))


def is_first_process(launcher: str) -> bool:
    """Whether this is process 0 of all machines, before any process group exists."""
    return launcher == 'none' or int(os.environ.get(PROCESS_ENV[launcher][0], 0)) == 0


def process_count(launcher: str) -> int:
    """The number of processes that the launcher started; 1 without one."""
    if launcher == 'none':
        return 1
    return int(os.environ.get(PROCESS_ENV[launcher][1], 1))


def restarts() -> int:
    """How often torchrun has started these processes again because one had failed."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))


def check_launcher(launcher: str) -> None:
    """Refuse a ``--launcher`` that does not match how this process was started.

    Args:
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        ValueError: If the launcher's environment variables are missing, if torchrun started
            several processes that know nothing of each other, or if there are more processes than
            GPUs on this machine.
    """
    if launcher == 'none':
        # RANK and WORLD_SIZE alone prove nothing: some schedulers set them for any program.
        if 'TORCHELASTIC_RUN_ID' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise ValueError(
                f'--launcher none: torchrun started {os.environ["WORLD_SIZE"]} processes, and each '
                'would do the whole work alone. Add --launcher pytorch.')
        return
    missing = [name for name in PROCESS_ENV[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher}: {", ".join(missing)} not set, so this process was not started '
            f'by {STARTED_BY[launcher]}, or leave --launcher out.')
    if launcher == 'mpi' and 'MASTER_ADDR' not in os.environ:
        raise ValueError('--launcher mpi: MASTER_ADDR not set; set it to the host of rank 0.')
    rank = local_rank(launcher)
    if torch.cuda.is_available() and rank >= torch.cuda.device_count():
        raise ValueError(
            f'--launcher {launcher}: process {rank} of this machine has no GPU, it has '
            f'{torch.cuda.device_count()}. Start as many processes as there are GPUs.')


def _first_slurm_host() -> str:
    nodes = os.environ.get('SLURM_JOB_NODELIST') or os.environ.get('SLURM_NODELIST', '')
    if nodes and shutil.which('scontrol'):
        names = subprocess.run(['scontrol', 'show', 'hostnames', nodes],
                               check=True,
                               capture_output=True,
                               text=True).stdout.split()
        return names[0]
    if int(os.environ.get('SLURM_NNODES', 1)) == 1:
        return '127.0.0.1'
    raise RuntimeError('--launcher slurm: scontrol not found, so the host of rank 0 is unknown; '
                       'set MASTER_ADDR.')


def export_rendezvous(launcher: str) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT from the launcher's variables.

    Args:
        launcher (str): ``pytorch`` (torchrun has set them already), ``slurm`` or ``mpi``.

    Raises:
        RuntimeError: If the host of rank 0 cannot be found.
    """
    if launcher == 'pytorch':
        return
    names = PROCESS_ENV[launcher]
    for target, source in zip(('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), names, strict=True):
        os.environ[target] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host()
    # The job id keeps two jobs on one machine apart; every process of a job computes the same port.
    job = int(os.environ.get('SLURM_JOB_ID', 0)) if launcher == 'slurm' else 0
    os.environ.setdefault('MASTER_PORT', str(29500 + job % 10000))


@contextmanager
def process_group(cfg: Config, launcher: str):
    """Run a block inside the launcher's process group, and close the group afterwards.

    With a GPU the group is opened by MMEngine's Runner; without one, here, over gloo.

    Args:
        cfg (Config): The full config; ``env_cfg.dist_cfg.timeout`` (seconds) is respected.
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Yields:
        None
    """
    if launcher != 'none':
        export_rendezvous(launcher)
        if not has_gpu():
            timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
            torch_dist.init_process_group(
                'gloo', timeout=timeout and timedelta(seconds=timeout))
    yield
    # Not in a `finally`: a process that failed must end at once, not wait for the others to close.
    if torch_dist.is_available() and torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def finish(launcher: str) -> None:
    """End a tool that has succeeded; without gloo behind it, this does nothing.

    gloo's threads outlive the process group and let go of tensors late. If Python is being taken
    down by then, the process aborts after all its work is done (seen in one of four short runs on
    torch 2.12.1, ``terminate called without an active exception``), and the launcher reports a
    failure. So Python is not taken down: what has to happen at exit happens here.

    Args:
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """
    if launcher == 'none' or has_gpu():
        return
    atexit._run_exitfuncs()  # of Python, without another name; tried with 3.10 to 3.12
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fit_to_hardware(cfg: Config, launcher: str) -> str | None:
    """Adapt a config to the processes and the device that it will run on.

    Without a GPU, and in a single process, BN stands in for SyncBN. Without a GPU, processes talk
    over gloo, and mixed precision is bfloat16.

    Args:
        cfg (Config): The full config, changed in place.
        launcher (str): ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Returns:
        str | None: One line to log about it; None if nothing was changed and nothing is missing.

    Raises:
        ValueError: If the config shards the model by FSDP and no launcher started the process.
    """
    gpu, processes = has_gpu(), process_count(launcher)
    fit_fsdp(cfg, launcher, gpu)
    if gpu and processes > 1:
        return None
    replaced = replace_sync_bn(cfg.model)
    if cfg.get('sync_bn') is not None:
        cfg.sync_bn = None
        replaced += 1
    parts = []
    if not gpu:
        parts.append(f'no GPU, so {processes} CPU processes over gloo' if processes > 1 else
                     'no GPU, so one process on the CPU')
        parts += use_cpu_modules(cfg, distributed=processes > 1)
    if replaced:
        where = '' if not gpu else 'one process, so '
        parts.append(f'{where}BN in place of SyncBN')
    line = ', '.join(parts)
    return f'{line[0].upper()}{line[1:]}.' if parts else None
