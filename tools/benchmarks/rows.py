"""Result rows of every benchmark: where they were measured, JSON lines, and means of ratios."""

import json
import math
import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / 'results'


def environment(device: torch.device, commit: str | None = None) -> dict:
    """The columns that say where, when and with what a row was measured.

    Args:
        device (torch.device): The device that is measured.
        commit (str, optional): The revision, where no git repository can tell.
    """
    found, dirty = _revision()
    columns = dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=commit or found,
        dirty=dirty,
        device=device_name(device),
        device_type=device.type,
        cpu=_cpu_name(),
        isa=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        capability=None,
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version('triton'),
        numpy=_version('numpy'),
        cuda=None,
        cudnn=None)
    if device.type == 'cuda':
        columns |= dict(
            capability='.'.join(map(str, torch.cuda.get_device_capability(device))),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version())
    return columns


def device_name(device: torch.device) -> str:
    """For people: the GPU, or the processor and the number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{_cpu_name()}, {torch.get_num_threads()} threads'


def default_path(device: torch.device, suite: str) -> Path:
    """``results/<device>-<date>-<suite>.jsonl`` beside this file."""
    name = re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')
    date = datetime.now(timezone.utc).strftime('%Y%m%d')
    return RESULTS / f'{name}-{date}-{suite}.jsonl'


class RowFile:
    """JSON lines, written one by one, so that a run that is broken off keeps what it has.

    Args:
        path (Path | None): The file; None writes nothing.
        append (bool): Add to a file that exists. Defaults to False.

    Raises:
        FileExistsError: If the file exists and ``append`` is False.
    """

    def __init__(self, path: Path | None, append: bool = False):
        self.path = path
        self.earlier: list[dict] = []
        if path is None:
            return
        if path.exists():
            if not append:
                raise FileExistsError(
                    f'{path} exists: add to it with --append, or name another file with --out')
            self.earlier = read([path])
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, row: dict) -> None:
        if self.path is not None:
            with self.path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(row) + '\n')


def read(paths: Iterable[Path]) -> list[dict]:
    """The rows of some files, in their order.

    Raises:
        ValueError: If a line is not a row, with its number.
    """
    rows = []
    for path in paths:
        for number, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f'{path}, line {number}: not JSON ({error})') from None
            if not isinstance(row, dict):
                raise ValueError(f'{path}, line {number}: not a row')
            rows.append(row)
    return rows


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table, the first column to the left and the others to the right, padded to line up."""
    table = [header, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    def one(line):
        cells = [line[0].ljust(widths[0]),
                 *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        return '| ' + ' | '.join(cells) + ' |'
    return '\n'.join(one(line) for line in (header, rule, *lines))


def _revision() -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether tracked files differ from it; None without git."""
    def git(*args):
        return subprocess.run(['git', '-C', str(ROOT), *args], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD'), bool(git('status', '--porcelain', '-uno'))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _cpu_name() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
        return re.search(r'^model name\s*: *(.*\S)', text, re.MULTILINE)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _version(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except (ImportError, AttributeError):
        return None
