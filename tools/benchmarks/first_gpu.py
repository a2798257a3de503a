"""What to run first where a GPU is at hand: all checks and figures, within one budget of time.

Rows are written as they come to ``rows.jsonl`` in ``--out``; the table of goals is the last thing
printed, and ``table.md``. Each part has a deadline of its own, and time that one leaves is the
next one's. The parts run in a child process: one that hangs, or that breaks the device, is ended,
and the others go on in a new one. Needs torch and Triton alone, no git and no network::

    python tools/benchmarks/first_gpu.py --out DIR --seconds 480
    python tools/benchmarks/first_gpu.py --out DIR --parts cudnn ours   # more rows, of some parts
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

# Run from a checkout, whether or not the project is installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import gpu_check  # noqa: E402
import gpu_goals  # noqa: E402
import gpu_time  # noqa: E402
import rows as results  # noqa: E402
import torch  # noqa: E402
from gpu_machine import Machine  # noqa: E402
from gpu_parts import Context, OutOfTime, Scale  # noqa: E402

# By name, the share of the time after which each is to be over.
PARTS = {'ceilings': 0.05, 'compile': 0.14, 'correct': 0.27, 'tiles': 0.43, 'cudnn': 0.64,
         'ours': 0.85, 'small': 0.97}
GRACE = 25.0  # seconds beyond its deadline after which a part is taken to hang
BROKEN = 3  # exit code of a child whose device has failed


def run_part(name: str, context: Context, out: Path) -> None:
    """One part, up to its deadline."""
    if name == 'ceilings':
        gpu_time.measure_ceilings(context)
    elif name == 'compile':
        gpu_time.compile_all(context)
    elif name == 'correct':
        gpu_check.run(context)
    elif name == 'tiles':
        gpu_time.time_tiles(context, out)
    elif name == 'cudnn':
        gpu_time.time_cudnn(context)
    elif name == 'ours':
        gpu_time.follow(out / 'tiles.json')
        gpu_time.time_ours(context)
    else:
        gpu_time.time_small(context)


def run_parts(names: list[str], context: Context, out: Path, start: float, seconds: float) -> int:
    """Some parts, one after another; the exit code.

    Args:
        names (list[str]): Of `PARTS`.
        context (Context): For them.
        out (Path): Folder of the results.
        start (float): When the whole run has started, by ``time.monotonic``.
        seconds (float): That it may take.
    """
    for name in names:
        context.part, context.deadline = name, start + PARTS[name] * seconds
        context.row(status='begun')
        began = time.monotonic()
        try:
            context.check_time('all of it')
            run_part(name, context, out)
            context.machine.synchronize()
        except OutOfTime as error:
            context.row(status='unfinished', note=f'out of time before {error}')
        except Exception as error:
            context.row(status='failed', kind='part',
                        note=f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')
            try:
                context.machine.synchronize()
            except RuntimeError:
                return BROKEN
        context.row(status='done', seconds=round(time.monotonic() - began, 1))
    return 0


def supervise(names: list[str], command: list[str], file: Path, start: float, seconds: float
              ) -> None:
    """Run the parts in child processes; a new one where one has ended or hangs.

    Args:
        names (list[str]): Of `PARTS`.
        command (list[str]): Of a child; the parts are added.
        file (Path): The rows, by which it is seen how far a child is.
        start (float): As in `run_parts`.
        seconds (float): As in `run_parts`.
    """
    left = list(names)
    while left:
        seen = len(_rows(file))
        child = subprocess.Popen([*command, *left])
        hung = False
        while child.poll() is None:
            time.sleep(0.2)
            at = _last(_rows(file)[seen:], 'begun') or left[0]
            if time.monotonic() > start + PARTS[at] * seconds + GRACE:
                child.kill()
                child.wait()
                hung = True
        _mend(file)
        new = _rows(file)[seen:]
        done = {row['part'] for row in new if row.get('status') == 'done'}
        begun = _last(new, 'begun')
        rest = [name for name in left if name not in done]
        if not rest:
            return
        # What was at work has had its turn; so has the first where none had begun.
        lost = begun if begun in rest else rest[0]
        why = 'hung and was ended' if hung else f'ended the process, exit code {child.returncode}'
        results.RowFile(file, append=True).write(
            dict(part=lost, status='failed', kind='part', note=why))
        left = [name for name in rest if name != lost]


def _rows(file: Path) -> list[dict]:
    try:
        return results.read([file])
    except (OSError, ValueError):  # not there yet, or a line is being written
        return []


def _mend(file: Path) -> None:
    """Cut off a line that a child was ended in."""
    data = file.read_bytes()
    if data and not data.endswith(b'\n'):
        os.truncate(file, data.rfind(b'\n') + 1)


def _last(rows: list[dict], status: str) -> str | None:
    return next((row['part'] for row in reversed(rows) if row.get('status') == status), None)


def context_of(machine: Machine, args) -> Context:
    """What the parts work with, by the options."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    scale = Scale()._replace(**{name: value for name, value in dict(
        batch=args.batch, channels=args.channels, layers=args.layers,
        maps=args.maps and tuple(args.maps)).items() if value})
    file = results.RowFile(args.out / 'rows.jsonl', append=True)
    return Context(machine, file, scale, results.environment(machine.device, args.commit))


def main(argv=None, machine: Machine | None = None) -> int:
    """Returns the exit code: 1 if anything was wrong or has failed.

    Args:
        argv (list[str], optional): Of the command line.
        machine (Machine, optional): In place of the GPU, for tests; there is no child then.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of rows, tiles and table')
    parser.add_argument('--seconds', type=float, default=480.0, help='for all parts (default: 480)')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--batch', type=int, help='of the stack, instead of 64')
    parser.add_argument('--channels', type=int, help='of the stack, instead of 384')
    parser.add_argument('--layers', type=int, help='of the stack, instead of 24')
    parser.add_argument('--maps', type=int, nargs='+', help='of the stack, instead of 16 32 64')
    parser.add_argument('--commit', help='the revision, where git cannot tell it')
    parser.add_argument('--child', type=float, metavar='START', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        parser.error(f'argument --seconds: {args.seconds} must be positive')
    if machine is None and not torch.cuda.is_available():
        parser.exit(2, f'{parser.prog}: PyTorch sees no GPU here\n')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'rows.jsonl').open('a').close()
    except OSError as error:
        parser.error(f'argument --out: {args.out} cannot be written to: {error.strerror}')
    # What the operator finds out about this GPU comes back with the rows.
    os.environ['MMREPLK_CACHE'] = str((args.out / 'cache').resolve())
    start = time.monotonic() if args.child is None else args.child
    if machine is not None or args.child is not None:
        context = context_of(machine or Machine(), args)
        code = run_parts(args.parts, context, args.out, start, args.seconds)
        if args.child is not None:
            return code
    else:
        options = [str(part) for name in ('batch', 'channels', 'layers', 'commit')
                   if getattr(args, name) for part in (f'--{name}', getattr(args, name))]
        options += ['--maps', *map(str, args.maps)] if args.maps else []
        supervise(args.parts, [
            sys.executable, __file__, '--out', str(args.out), '--seconds', str(args.seconds),
            '--child', str(start), *options, '--parts'], args.out / 'rows.jsonl', start,
            args.seconds)
        context = context_of(Machine(), args)
    text = gpu_goals.report(context)
    (args.out / 'table.md').write_text(text + '\n', encoding='utf-8')
    print(f'\n{text}')
    return int(any(row.get('status') in ('wrong', 'failed') for row in context.rows))


if __name__ == '__main__':
    sys.exit(main())
