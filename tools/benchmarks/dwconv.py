"""Check, then time the large-kernel depth-wise convolution against what else there is.

All candidates of a shape are compared with float64 first and then timed in turns, in one run. Each
gives a row in a file of JSON lines. At the end a table, the means, and the project's goals are
printed. Needs torch alone; see README.md in this folder for the columns and some examples.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

# Run from a checkout, whether or not the project is installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import candidates as choice  # noqa: E402
import ceilings  # noqa: E402
import memory  # noqa: E402
import plots  # noqa: E402
import rows as results  # noqa: E402
import shapes as shape_suites  # noqa: E402
import summary  # noqa: E402
import timing  # noqa: E402
from task import DTYPES, MODES, TOLERANCE, Task, Wrong  # noqa: E402

# Statuses of a row: timed; not the convolution; raised although it should serve; cannot serve here
# or is not installed; would have taken too long.
FAILURES = ('wrong', 'failed')
# Only a call of at least this many multiply-adds is worth a prediction of its time.
PREDICT_MACS = {'cpu': 3e9, 'cuda': 3e12}


class Settings(NamedTuple):
    """How a shape is measured; see the options of the same names."""
    dtype: str = 'fp32'
    mode: str = 'forward'
    bias: bool = False
    fresh_weights: bool = False
    max_seconds: float = 5.0
    max_call: float = 60.0
    rounds: int = 30
    graph: bool = False
    peak_memory: bool = True
    seed: int = 0


def measure(shape: shape_suites.Shape, candidates: list[choice.Candidate], settings: Settings,
            device: torch.device, rates: ceilings.Ceilings,
            missing: dict[str, str] | None = None) -> list[dict]:
    """The rows of one shape, one for each candidate, without the columns of the environment.

    Args:
        shape (Shape): What to measure.
        candidates (list[Candidate]): Whom; a wrong one is reported and not timed.
        settings (Settings): How.
        device (torch.device): Where.
        rates (Ceilings): Of the device, in this dtype.
        missing (dict[str, str], optional): Candidates that are not installed, and why.
    """
    task = Task(shape, settings.dtype, settings.mode, device, settings.bias,
                settings.fresh_weights, settings.seed)
    common = _columns(task, settings, rates)
    rows, jobs = {}, {}
    for name, why in (missing or {}).items():
        rows[name] = common | dict(candidate=name, layout='nchw', ours=False,
                                   status='unavailable', note=why)
    for candidate in candidates:
        row = rows[candidate.name] = common | dict(
            candidate=candidate.name, layout=candidate.layout, ours=candidate.ours)
        job = _prepare(task, candidate, settings, row)
        if job is not None:
            jobs[candidate.name] = job
    with task.context():
        times = timing.interleaved(jobs, device, settings.max_seconds,
                                   max_rounds=settings.rounds, seed=settings.seed)
        for name, taken in times.items():
            row = rows[name]
            row |= dict(median_ms=taken.median, p20_ms=taken.p20, p80_ms=taken.p80,
                        repeats=taken.repeats, calls=taken.calls)
            if not settings.peak_memory or settings.graph:
                row['peak_how'] = 'not measured: asked for none, or a graph holds its memory'
            elif taken.median > settings.max_seconds * 1e3:
                row['peak_how'] = 'not measured: a call takes longer than --max-seconds'
            else:
                row['peak_bytes'], row['peak_how'] = memory.peak_of(jobs[name].run, device)
    return list(rows.values())


def _columns(task: Task, settings: Settings, rates: ceilings.Ceilings) -> dict:
    """What all rows of a shape share; the rest is filled with None, so that all have one schema."""
    shape, (nbytes, macs) = task.shape, task.cost()
    bound = ceilings.bound(nbytes, macs, rates)
    return dict(
        dtype=settings.dtype, mode=settings.mode, weights=task.weights_are, bias=settings.bias,
        graph=settings.graph, label=shape.label, batch=shape.batch, channels=shape.channels,
        height=shape.height, width=shape.width, kernel=list(shape.kernel),
        padding=list(shape.padding), layers=shape.layers, candidate=None, layout=None, ours=None,
        backend=None, reason=None, status='ok', note='', median_ms=None, p20_ms=None, p80_ms=None,
        repeats=0, calls=0, error=None, tolerance=max(TOLERANCE[settings.dtype]), bytes=nbytes,
        macs=macs, copy_bytes_per_second=rates.bandwidth, matmul_macs_per_second=rates.rate,
        memory_bound_ms=bound.memory, direct_bound_ms=bound.direct, bound_ms=bound.both,
        bound_by='direct' if bound.direct > bound.memory else 'memory', peak_bytes=None,
        peak_how=None)


def _prepare(task: Task, candidate: choice.Candidate, settings: Settings,
             row: dict) -> timing.Job | None:
    """Check a candidate; its job, or None with the reason in the row."""
    try:
        row['backend'], row['reason'] = choice.backend_of(candidate, *task.first_call(candidate))
    except RuntimeError as error:  # a backend asked for by name that cannot serve
        return _refuse(row, 'failed' if candidate.backend == 'auto' else 'unavailable', error)
    try:
        if row['macs'] > PREDICT_MACS[task.device.type]:
            seconds = task.predict(candidate, timing.seconds_of)
            if seconds > settings.max_call:
                return _refuse(row, 'skipped', f'a call would take about {seconds:.0f} s, longer '
                               'than --max-call')
        row['error'] = task.check(candidate)
        with task.context():
            job = task.job(candidate)
            if settings.graph:
                job = job._replace(run=timing.captured(job.run))
            elif settings.mode == 'backward' or task.shape.layers > 1 or task.fresh:
                job.run()  # the check was another call than the one that is timed
        return job
    except Wrong as error:
        return _refuse(row, 'wrong', error)
    except (RuntimeError, NotImplementedError) as error:
        # Out of memory is a RuntimeError, too, and what a baseline raises for a dtype it lacks.
        return _refuse(row, 'failed' if candidate.ours else 'unavailable', error)


def _refuse(row: dict, status: str, why) -> None:
    text = str(why).strip().splitlines() or [type(why).__name__]
    row |= dict(status=status, note=text[0][:300])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_argument_group('what')
    what.add_argument('--suite', choices=shape_suites.SUITES, default='facts',
                      help='shapes to time (default: facts)')
    what.add_argument('--shape', action='append', type=_shape, metavar='N,C,H,W,K[,Kw]',
                      help="instead of a suite, this shape; may be repeated. Suite 'custom'")
    what.add_argument('--batch', type=int, nargs='+', help='batch sizes of the suite')
    what.add_argument('--layers', type=int, help="depth of the stack of suite 'authors'")
    what.add_argument('--sample', type=int, metavar='N', help='only N random shapes of the suite')
    what.add_argument('--seed', type=int, default=0, help='of the sample, inputs, order')
    what.add_argument('--max-elements', type=float, help='leave out larger inputs (N*C*H*W)')
    what.add_argument('--mode', nargs='+', choices=MODES, default=None,
                      help='forward without gradients (default), the gradients of input, weight '
                      'and bias alone, or both passes together')
    what.add_argument('--dtype', nargs='+', choices=DTYPES, default=None,
                      help='tf32 is float32 with TF32 allowed (default: fp32; on a GPU fp16 tf32)')
    what.add_argument('--bias', action='store_true', help='with a bias')
    what.add_argument('--fresh-weights', action='store_true',
                      help='forward: change the weights before every call, so that nothing kept '
                      'from the last one applies (default: unchanged weights, as in inference)')
    what.add_argument('--candidates', nargs='+', metavar='NAME',
                      help='only these baselines; "none" for ours alone')
    what.add_argument('--backends', nargs='+', default=[], metavar='NAME',
                      help='also time these backends of ours by name; "all" for each')
    how = parser.add_argument_group('how')
    how.add_argument('--device', help='cpu or cuda (default: cuda if there is one)')
    how.add_argument('--threads', type=int, help="of a CPU (default: PyTorch's own number)")
    how.add_argument('--max-seconds', type=float, default=5.0, metavar='S',
                     help='time spent on one candidate of one shape, as long as at least 3 rounds '
                     'are made (default: 5)')
    how.add_argument('--max-call', type=float, default=60.0, metavar='S',
                     help='skip a candidate of which one call would take longer (default: 60)')
    how.add_argument('--rounds', type=int, default=30, help='samples at most (default: 30)')
    how.add_argument('--minutes', type=float, help='start no further shape after this long')
    how.add_argument('--graph', action='store_true', help='GPU: replay CUDA graphs')
    how.add_argument('--no-peak', action='store_true', help='do not measure peak memory')
    out = parser.add_argument_group('results')
    out.add_argument('--out', help='file of rows; "-" for none (default: tools/benchmarks/results/'
                     '<device>-<date>-<suite>.jsonl). An existing file is refused')
    out.add_argument('--append', action='store_true',
                     help='add to an existing file, leaving out the shapes that it has')
    out.add_argument('--commit', help='the revision, where there is no git repository')
    out.add_argument('--table', type=Path, metavar='FILE.md', help='also write the report here')
    out.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the rows')
    out.add_argument('--title', help='of the picture')
    out.add_argument('--plot-from', '--from', type=Path, nargs='+', metavar='ROWS.jsonl',
                     dest='source', help='time nothing: report on and draw these rows; --mode, '
                     '--dtype and --batch then choose among them')
    args = parser.parse_args(argv)
    if args.graph and args.fresh_weights:
        parser.error('--graph replays one call: it has no fresh weights')
    if args.max_seconds <= 0 or args.rounds < 3:
        parser.error('--max-seconds must be positive, --rounds at least 3')
    return parser, args


def _shape(text: str) -> shape_suites.Shape:
    try:
        return shape_suites.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(parser, args) -> torch.device:
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type not in PREDICT_MACS:
        parser.error(f'--device {device}: cpu or cuda')
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            parser.error('--device cuda: PyTorch sees no GPU here')
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    elif args.graph:
        parser.error('--graph needs a GPU')
    if args.threads:
        torch.set_num_threads(args.threads)
    return device


def _candidates(parser, args, device) -> tuple[list[choice.Candidate], dict[str, str]]:
    from mmreplk.ops.dispatch import BACKENDS, CHOICES
    others, missing = choice.baselines(device.type)
    if args.candidates:
        known = {c.name for c in others} | set(missing)
        wanted = set(args.candidates) - {'none'}
        if wanted - known:
            parser.error(f'--candidates {" ".join(sorted(wanted - known))}: unknown; there are '
                         + ', '.join(sorted(known)))
        others = [c for c in others if c.name in wanted]
        missing = {name: why for name, why in missing.items() if name in wanted}
    names = list(BACKENDS) if 'all' in args.backends else args.backends
    if set(names) - set(CHOICES):
        parser.error(f'--backends: choose from all, {", ".join(CHOICES)}')
    ours = [choice.ours(b, layout) for b in dict.fromkeys(['auto', *names])
            for layout in choice.LAYOUTS]
    return ours + others, missing


def _allow_tf32(dtype: str) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == 'tf32'


def _shapes(args, device) -> tuple[str, list[shape_suites.Shape]]:
    if args.shape:
        return 'custom', args.shape
    shapes = shape_suites.suite(args.suite, device.type, args.batch, args.layers)
    if args.max_elements:
        shapes = [s for s in shapes
                  if s.batch * s.channels * s.height * s.width <= args.max_elements]
    return args.suite, shape_suites.sample(shapes, args.sample, args.seed)


def run(parser, args) -> list[dict]:
    """Measure what is asked for; all rows, with those that the file had."""
    device = _device(parser, args)
    suite, shapes = _shapes(args, device)
    candidates, missing = _candidates(parser, args, device)
    path = None if args.out == '-' else (
        Path(args.out) if args.out else results.default_path(device, suite))
    try:
        file = results.RowFile(path, args.append)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    done = {(case.condition, case.shape) for case in summary.cases(file.earlier)}
    rows, start = list(file.earlier), time.perf_counter()
    environment = dict(suite=suite) | results.environment(device, args.commit)
    dtypes = args.dtype or (['fp16', 'tf32'] if device.type == 'cuda' else ['fp32'])
    if path:
        print(f'rows go to {path}')
    for dtype, mode in itertools.product(dtypes, args.mode or ['forward']):
        if device.type == 'cuda':
            _allow_tf32(dtype)
        rates = ceilings.measure(device, DTYPES[dtype])
        print(f'{environment["device"]}, {dtype}, {mode}: copies {rates.bandwidth / 1e9:.3g} GB/s, '
              f'sums {rates.rate / 1e9:.4g} G products/s')
        settings = Settings(dtype, mode, args.bias, args.fresh_weights, args.max_seconds,
                            args.max_call, args.rounds, args.graph, not args.no_peak, args.seed)
        weights = ('fresh' if args.fresh_weights else 'kept') if mode == 'forward' else 'trained'
        condition = summary.condition_of(environment | settings._asdict() | dict(weights=weights))
        for number, shape in enumerate(shapes, 1):
            if (condition, shape) in done:
                continue
            if args.minutes and time.perf_counter() - start > args.minutes * 60:
                print(f'--minutes is over: {len(shapes) - number + 1} shapes of {dtype}, {mode} '
                      'are left; go on with --append')
                break
            new = measure(shape, candidates, settings, device, rates, missing)
            for row in new:
                rows.append(environment | row)
                file.write(rows[-1])
            _say(number, len(shapes), shape, new)
    return rows


def _say(number: int, count: int, shape: shape_suites.Shape, rows: list[dict]) -> None:
    times = '  '.join(f"{row['candidate']} {row['median_ms']:.4g}" if row['status'] == 'ok' else
                      f"{row['candidate']} {row['status']}" for row in rows)
    print(f'[{number}/{count}] {shape.text}: {times}', flush=True)


def _selected(parser, args) -> list[dict]:
    """The rows of the files, as far as --mode, --dtype, --batch and --fresh-weights choose them."""
    try:
        rows = results.read(args.source)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    chosen = [row for row in rows
              if (not args.mode or row['mode'] in args.mode)
              and (not args.dtype or row['dtype'] in args.dtype)
              and (not args.batch or row['batch'] in args.batch)
              and (not args.fresh_weights or row['weights'] == 'fresh')]
    if not chosen:
        parser.error('no row fits')
    return chosen


def main(argv=None) -> int:
    """Returns the exit code: 1 if a result was wrong or ours raised."""
    parser, args = parse_args(argv)
    rows = _selected(parser, args) if args.source else run(parser, args)
    report = summary.report(rows)
    print(f'\n{report}')
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(report + '\n', encoding='utf-8')
    if args.plot:
        try:
            plots.draw_rows(args.plot, rows, args.title)
        except (ImportError, ValueError) as error:
            print(f'dwconv.py: no picture: {error}', file=sys.stderr)
            return 1
    return int(any(row['status'] in FAILURES for row in rows))


if __name__ == '__main__':
    sys.exit(main())
