"""Time a whole optimizer step of a segmentor with our operator and with plain `nn.Conv2d`.

Forward pass, loss, backward pass, AdamW as the config has it. All candidates start from the same
weights and see the same batch; their first losses are compared before anything is timed. Needs the
mm packages; see README.md in this folder.
"""

import argparse
import copy
import math
import os
import sys
from pathlib import Path

# As in tools/train.py, before torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch  # noqa: E402

# Run from a checkout, whether or not the project is installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import memory  # noqa: E402
import networks  # noqa: E402
import plots  # noqa: E402
import rows as results  # noqa: E402
import timing  # noqa: E402

from mmreplk.analysis.cost.profiling import depthwise_share  # noqa: E402

# Largest difference of the first losses, as a share: rounding of a network 24 blocks deep.
TOLERANCE = {'amp': 2e-2, 'fp32': 1e-3}
CANDIDATES = ('ours', 'ours channels_last', 'ours unfused AdamW', 'conv2d', 'conv2d channels_last')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', default='mmreplk::upernet_replknet31b_ade20k.py',
                        metavar='CONFIG', help="a segmentor's config (default: %(default)s)")
    parser.add_argument('--batch', type=int, default=2, help='images a step (default: 2)')
    parser.add_argument('--crop', type=int, default=512, help='side of the images (default: 512)')
    parser.add_argument('--no-amp', action='store_true',
                        help='float32 instead of mixed precision (GPU: float16 with a loss scale, '
                        'CPU: bfloat16)')
    parser.add_argument('--candidates', nargs='+', choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument('--rounds', type=int, default=3, help='timed steps of each (default: 3)')
    parser.add_argument('--device', help='cpu or cuda (default: cuda if there is one)')
    parser.add_argument('--threads', type=int, help="of a CPU (default: PyTorch's own number)")
    parser.add_argument('--out', type=Path, help='file of rows (default: results/<device>-<date>-'
                        'train-step.jsonl); an existing file is refused')
    parser.add_argument('--append', action='store_true', help='add to an existing file')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the rows')
    args = parser.parse_args(argv)
    if min(args.batch, args.rounds) < 1 or args.crop < 32:
        parser.error('--batch and --rounds must be at least 1, --crop at least 32')
    return parser, args


class Step:
    """One candidate: a model, its optimizer and the batch, callable as one training step."""

    def __init__(self, optim_wrapper, model, data, layout: torch.memory_format):
        from mmengine.optim import build_optim_wrapper
        self.model = model.to(memory_format=layout)
        self.optimizer = build_optim_wrapper(self.model, optim_wrapper)
        self.data = data

    def __call__(self) -> float:
        torch.manual_seed(0)  # of drop-path and dropout
        return self.model.train_step(self.data, self.optimizer)['loss'].item()


def random_batch(cfg, batch: int, crop: int) -> dict:
    """Images of noise with labels of every class, as MMSegmentation's collate hands them over."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    generator = torch.Generator().manual_seed(0)
    classes = cfg.model.decode_head.num_classes
    images, samples = [], []
    for _ in range(batch):
        images.append(torch.randint(256, (3, crop, crop), dtype=torch.uint8, generator=generator))
        label = torch.randint(classes, (1, crop // 16, crop // 16), generator=generator)
        label = label.repeat_interleave(16, 1).repeat_interleave(16, 2)
        label = torch.nn.functional.pad(label, [0, crop % 16, 0, crop % 16], value=255)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label))
        sample.set_metainfo(dict(img_shape=(crop, crop), ori_shape=(crop, crop)))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def prepare(args, device: torch.device) -> dict[str, Step]:
    """The candidates, by name."""
    from mmengine.logging import MMLogger

    from mmreplk.commands import launch, train_options as options
    # Three lines a parameter on its weight decay otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    cfg, model = networks.build(args.config, (args.crop, args.crop))
    if 'decode_head' not in cfg.model:
        raise ValueError(f'CONFIG {args.config}: train_step.py times segmentors, and this model '
                         'has no decode_head.')
    if not args.no_amp:
        options.use_amp(cfg)
    launch.fit_to_hardware(cfg, 'none')
    data = random_batch(cfg, args.batch, args.crop)
    model = model.to(device)
    steps = {}
    for name in args.candidates:
        layout = torch.channels_last if 'channels_last' in name else torch.contiguous_format
        make = networks.with_plain_convolutions if name.startswith('conv2d') else copy.deepcopy
        optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
        if 'unfused' in name:
            optim_wrapper.optimizer.pop('fused', None)
        steps[name] = Step(optim_wrapper, make(model), data, layout)
    return steps


def measure(steps: dict[str, Step], args, device: torch.device) -> list[dict]:
    """The rows, without the columns of the environment."""
    precision = 'fp32' if args.no_amp else 'amp'
    losses = {name: step() for name, step in steps.items()}  # also the first, untimed call
    print('first losses: ' + ', '.join(f'{name} {loss:.5f}' for name, loss in losses.items()))
    expected = losses.get('conv2d', next(iter(losses.values())))
    for loss in losses.values():
        if not abs(loss - expected) <= TOLERANCE[precision] * abs(expected):
            raise ArithmeticError(f'the first losses differ: {losses}')
    times = timing.interleaved({name: timing.Job(step) for name, step in steps.items()}, device,
                               max_seconds=0.0, min_rounds=args.rounds, max_rounds=args.rounds)
    rows = []
    for name, step in steps.items():
        peak, how = memory.peak_of(step, device)
        depthwise, total = depthwise_share(step, device)
        rows.append(dict(
            suite='train-step', config=args.config, batch=args.batch, crop=args.crop,
            dtype=precision, candidate=name, loss=losses[name], median_ms=times[name].median,
            p20_ms=times[name].p20, p80_ms=times[name].p80, repeats=times[name].repeats,
            peak_bytes=peak, peak_how=how, depthwise_ms=1e3 * depthwise,
            depthwise_share=depthwise / total))
        print(f'{name}: {times[name].median:.0f} ms, peak {peak and peak >> 20} MiB, depth-wise '
              f'{100 * depthwise / total:.1f}%', flush=True)
    return rows


def report(rows: list[dict]) -> str:
    """A table of rows of one run."""
    plain = [row['median_ms'] for row in rows if not row['candidate'].startswith('ours')]
    lines = []
    for row in rows:
        ratio, peak = min(plain, default=math.nan) / row['median_ms'], row['peak_bytes']
        lines.append([row['candidate'], f'{row["median_ms"]:.0f}', f'{ratio:.2f}',
                      f'{peak / 2**30:.2f}' if peak else '-', f'{row["depthwise_ms"]:.0f}',
                      f'{100 * row["depthwise_share"]:.1f}%'])
    return results.markdown(['candidate', 'step, ms', 'best nn.Conv2d / this', 'peak, GiB',
                             'depth-wise, ms', 'share'], lines)


def main(argv=None) -> int:
    parser, args = parse_args(argv)
    device = timing.prepare(args.device, args.threads)
    path = args.out or results.default_path(device, 'train-step')
    try:
        file = results.RowFile(path, args.append)
        steps = prepare(args, device)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        parser.error(str(error))
    where = results.environment(device)
    rows = [where | row for row in measure(steps, args, device)]
    for row in rows:
        file.write(row)
    if args.plot:
        plots.draw_steps(args.plot, rows)
    print(f'\n{report(rows)}\nrows in {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
