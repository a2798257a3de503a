"""Time whole networks: RepLKNet with our operator, with nn.Conv2d, MMPretrain's, Swin, ConvNeXt.

Candidates that compute the same function start from the same random weights, and what they make
of the same images is compared before anything is timed. One run times all candidates of a case in
turns.
"""

import argparse
import gc
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

# As in tools/train.py, before torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch  # noqa: E402

# Run from a checkout, whether or not the project is installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import ceilings  # noqa: E402
import memory  # noqa: E402
import network_dense  # noqa: E402
import network_growth  # noqa: E402
import network_models as models  # noqa: E402
import network_report  # noqa: E402
import rows as results  # noqa: E402
import timing  # noqa: E402

from mmreplk.analysis.cost.profiling import depthwise_share  # noqa: E402

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
# Largest difference from the first candidate's result, as a share of its largest value.
TOLERANCE = dict(fp32=1e-3, fp16=5e-2, bf16=1e-1)
SUITES = ('classifiers', 'dense', 'growth')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--suite', choices=SUITES, default='classifiers',
                        help='classifiers; UperNet and Cascade Mask R-CNN from picture to '
                        'prediction (dense); or image side, batch and kernel size one by one '
                        '(growth) (default: classifiers)')
    parser.add_argument('--networks', nargs='+', metavar='NAME',
                        help=f'of classifiers: {", ".join(models.NETWORKS)}; of dense: '
                        f'{", ".join(network_dense.DENSE)} (default: all)')
    parser.add_argument('--sizes', nargs='+', type=int, default=[224, 384], metavar='S',
                        help='sides of the images of classifiers (default: 224 384)')
    parser.add_argument('--batch', nargs='+', type=int, default=[1, 64], metavar='N',
                        help='images at a time of classifiers (default: 1 64)')
    parser.add_argument('--mode', nargs='+', choices=['inference', 'training'],
                        default=['inference'], help='training: forward, cross-entropy, backward '
                        'and a fused AdamW step (default: inference)')
    parser.add_argument('--dtype', nargs='+', choices=DTYPES, default=['fp32'],
                        help='weights and maps of inference; of training, that of autocast '
                        '(default: fp32)')
    parser.add_argument('--candidates', nargs='+', choices=models.CANDIDATES,
                        default=models.CANDIDATES, help='(default: all)')
    parser.add_argument('--limit', type=float, default=120.0, metavar='SECONDS',
                        help='a candidate whose first call takes longer is not timed (default: '
                        '120)')
    parser.add_argument('--seconds', type=float, default=10.0, metavar='S',
                        help='time for each candidate of a case (default: 10)')
    parser.add_argument('--rounds', type=int, default=3,
                        help='samples of the slowest candidate, at least (default: 3)')
    parser.add_argument('--device', help='cpu or cuda (default: cuda if there is one)')
    parser.add_argument('--threads', type=int, help="of a CPU (default: PyTorch's own number)")
    parser.add_argument('--out', type=Path, help='file of rows (default: results/<device>-<date>-'
                        'network.jsonl); an existing file is refused')
    parser.add_argument('--append', action='store_true', help='add to an existing file')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the rows')
    parser.add_argument('--plot-from', type=Path, nargs='+', metavar='FILE.jsonl',
                        help='draw and tabulate these rows, time nothing')
    args = parser.parse_args(argv)
    known = network_dense.DENSE if args.suite == 'dense' else models.NETWORKS
    args.networks = args.networks or list(known)
    for name in args.networks:
        if name not in known:
            parser.error(f'--networks {name}: unknown; --suite {args.suite} has {", ".join(known)}')
    if min(*args.sizes, 32) < 32 or min(*args.batch, args.rounds, 1) < 1:
        parser.error('--sizes must be at least 32, --batch and --rounds at least 1')
    return parser, args


class Inference:
    """One candidate that predicts, as a call.

    Args:
        candidate (Candidate): From network_models.
        x (Tensor): Images.
        device (torch.device): Where.
        dtype (torch.dtype): Of weights and maps.
    """

    def __init__(self, candidate, x, device, dtype):
        self.model = candidate.model.eval().to(device, dtype, memory_format=candidate.layout)
        self.x = x.to(device, dtype, memory_format=candidate.layout)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        return self.model(self.x)

    def result(self) -> torch.Tensor:
        """What is compared."""
        return self().float().cpu()


class Training:
    """One candidate that learns, as a call: forward, cross-entropy, backward, fused AdamW.

    Args: As of :class:`Inference`; the dtype is that of autocast, float32 for none.
    """

    def __init__(self, candidate, x, device, dtype):
        self.model = candidate.model.train().to(device, memory_format=candidate.layout)
        self.x = x.to(device, memory_format=candidate.layout)
        self.labels = torch.arange(len(x), device=device) % models.CLASSES
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.autocast = nullcontext if dtype == torch.float32 else (
            lambda: torch.autocast(device.type, dtype))
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def __call__(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = torch.nn.functional.cross_entropy(self.model(self.x).float(), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def result(self) -> torch.Tensor:
        """The first loss and the first gradient of the stem, which everything has to do with."""
        loss = self().float().cpu()
        first = next(p for p in self.model.parameters() if p.grad is not None).grad
        return torch.cat([loss.reshape(1), first.float().norm().reshape(1).cpu()])


def run_case(makes: dict, shape: tuple[int, ...], mode: str, dtype: str, args, device,
             columns: dict, rates=None) -> list[dict]:
    """Compare and time the candidates of one case; rows without the columns of the environment."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kind, rows, calls, first = Training if mode == 'training' else Inference, [], {}, {}
    columns |= dict(mode=mode, dtype=dtype, batch=shape[0], height=shape[2], width=shape[3])

    def refuse(name, status, note):
        rows.append(columns | dict(candidate=name, status=status, note=note))
        print(f'  {name}: {status}: {note}', flush=True)

    for name, make in makes.items():
        try:
            candidate = make()
            call = kind(candidate, x, device, DTYPES[dtype])
            start = time.perf_counter()
            result = call.result()
            seconds = time.perf_counter() - start
        except Exception as error:  # a candidate may lack a kernel, a compiler or memory
            refuse(name, 'failed', f'{type(error).__name__}: {str(error).splitlines()[0][:200]}')
            continue
        if not result.any():  # as of a detector that finds no box
            refuse(name, 'failed', 'nothing was predicted, so there is nothing to compare')
            continue
        reference = first.setdefault(candidate.group, result)
        error = ((result - reference).abs().max() / reference.abs().max()).item()
        if not error <= TOLERANCE[dtype]:
            refuse(name, 'wrong', f'differs from the first candidate by {error:.2g}')
        elif seconds > args.limit and 'compiled' not in name:
            refuse(name, 'skipped', f'the first call took {seconds:.0f} s')
        else:
            calls[name] = call, error
    times = timing.interleaved({name: timing.Job(call) for name, (call, _) in calls.items()},
                               device, args.seconds, args.rounds)
    for name, (call, error) in calls.items():
        peak, how = memory.peak_of(call, device)
        depthwise, total = depthwise_share(call, device)
        row = columns | dict(
            candidate=name, status='ok', error=error, median_ms=times[name].median,
            p20_ms=times[name].p20, p80_ms=times[name].p80, repeats=times[name].repeats,
            images_per_second=1e3 * shape[0] / times[name].median, peak_bytes=peak, peak_how=how,
            depthwise_ms=1e3 * depthwise, depthwise_share=depthwise / total)
        if columns['suite'] == 'growth' and name == 'ours':
            row |= network_growth.bounds_of(call, rates)
        rows.append(row)
        print(f'  {name}: {row["median_ms"]:.1f} ms, depth-wise '
              f'{100 * row["depthwise_share"]:.1f}%', flush=True)
    return rows


def classifier_cases(args):
    """Cases of the suite: title, candidates, shape, mode, dtype, columns."""
    for size in args.sizes:
        for mode in args.mode:
            for name in args.networks:
                for dtype in args.dtype:
                    for batch in args.batch:
                        makes = models.classifiers(
                            name, size, mode == 'training', args.candidates)
                        yield makes, (batch, 3, size, size), mode, dtype, dict(
                            suite='network', network=name)


def main(argv=None) -> int:
    parser, args = parse_args(argv)
    if args.plot_from:
        rows = results.read(args.plot_from)
        print(network_report.table(rows))
        if args.plot:
            network_report.draw(args.plot, rows)
        return 0
    device = timing.prepare(args.device, args.threads)
    path = args.out or results.default_path(device, 'network')
    try:
        file = results.RowFile(path, args.append)
    except FileExistsError as error:
        parser.error(str(error))
    cases = dict(classifiers=classifier_cases, dense=network_dense.cases,
                 growth=network_growth.cases)[args.suite](args)
    where, rows, rates = results.environment(device), [], {}
    if args.suite == 'growth':
        rates = {dtype: ceilings.measure(device, DTYPES[dtype]) for dtype in args.dtype}
    for makes, shape, mode, dtype, columns in cases:
        print(f'{columns["network"]}, {mode}, {dtype}, {"x".join(map(str, shape))}', flush=True)
        for row in run_case(makes, shape, mode, dtype, args, device, columns,
                            rates.get(dtype)):
            rows.append(where | row)
            file.write(rows[-1])
        gc.collect()
    print(f'\n{network_report.table(rows)}\nrows in {path}')
    if args.plot:
        network_report.draw(args.plot, rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
