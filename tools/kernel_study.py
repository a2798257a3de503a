"""Train a narrow RepLKNet with several kernel sizes, and compare.

On labels that need far context (--data far_context): pictures are drawn; less than an hour on two
quiet cores. On street scenes (--data camvid): from CamVid, with and without the small kernel beside
the large ones; hours. Every network is trained and evaluated by tools/train.py and tools/test.py;
mIoU against kernel size and the effective receptive fields are shown in one figure. Stopped and
started again, it goes on where it was; more kernels or seeds can be added to a study. See
mmreplk/analysis/README.md.
"""

import argparse
import os
import os.path as osp
import signal
import sys
from pathlib import Path

try:
    from mmreplk.analysis.kernel_study import (
        camvid,
        run as kernel_study_run,
        settings as kernel_study,
        train as kernel_study_train,
    )
    from mmreplk.commands import arguments as cli
except (ImportError, RuntimeError) as error:
    print(f'kernel_study.py: error: {error}', file=sys.stderr)
    sys.exit(2)

EPILOG = """written to --out: kernel_study.png, runs.csv (every network), summary.txt, and for each
network its logs, weights, predictions and receptive field (runs/), and the pictures (data/)."""

# Options that belong to one of the two; others are for both.
DRAWN_ONLY, CAMVID_ONLY = ('num_train', 'num_val'), ('plain', 'data_root')


def parse_args():
    drawn, real = kernel_study.StudySettings, camvid.CamVidSettings
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', choices=('far_context', 'camvid'), default='far_context',
                        help='drawn pictures or street scenes (default: far_context)')
    parser.add_argument('--data-root', metavar='DIR', help='of CamVid, with images/ and '
                        f'annotations/ by split (default: {real.root})')
    parser.add_argument('--out', metavar='DIR', help='folder of the study: new, empty, or begun '
                        'with the same settings (default: work_dirs/kernel_study, on CamVid '
                        'work_dirs/kernel_study_camvid)')
    parser.add_argument('--kernels', type=int, nargs='+', metavar='K',
                        help='kernel sizes of all stages, 31 on CamVid for 31-29-27-13 (default: '
                        '3 7 13 31)')
    parser.add_argument('--plain', type=int, nargs='*', metavar='K', help='on CamVid, kernel sizes '
                        'that are trained without the small kernel too (default: 13 31)')
    parser.add_argument('--seeds', type=int, nargs='+', metavar='SEED',
                        help='a network for each kernel size and seed (default: 0 1 2, on CamVid '
                        '0 1)')
    parser.add_argument('--iters', type=int, metavar='N', help='iterations of training (default: '
                        f'{drawn.iters}, on CamVid {real.iters})')
    parser.add_argument('--num-train', type=int, metavar='N',
                        help=f'pictures to draw to train on (default: {drawn.num_train})')
    parser.add_argument('--num-val', type=int, metavar='N',
                        help=f'pictures to draw to score on (default: {drawn.num_val})')
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1), metavar='N',
                        help='networks at a time; the cores are shared out (default: 2)')
    return parser, parser.parse_args()


def make_study(args):
    """The study that the options describe; those that are not given have the settings' defaults."""
    real = args.data == 'camvid'
    given = {name: tuple(value) if isinstance(value, list) else value
             for name in ('kernels', 'seeds', 'iters', *DRAWN_ONLY, *CAMVID_ONLY)
             if (value := getattr(args, name)) is not None}
    for name in DRAWN_ONLY if real else CAMVID_ONLY:
        if name in given:
            raise ValueError(f'--{name.replace("_", "-")}: it is for --data '
                             f'{"far_context" if real else "camvid"}; leave it out.')
    out = args.out or osp.join('work_dirs', 'kernel_study_camvid' if real else 'kernel_study')
    if not real:
        return kernel_study.KernelStudy(out, kernel_study.StudySettings(**given))
    if 'data_root' in given:
        given['root'] = Path(given.pop('data_root'))
    return camvid.CamVidStudy(out, camvid.CamVidSettings(**given))


def main():
    parser, args = parse_args()
    # So that the processes that it has started end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with cli.clear_errors(parser):
        study = make_study(args)
        kernel_study_train.check_jobs(args.jobs)
    try:
        print(kernel_study_run.run_study(study, args.jobs, lambda line: print(line, flush=True)))
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: stopped; the same command goes on from here\n')


if __name__ == '__main__':
    main()
