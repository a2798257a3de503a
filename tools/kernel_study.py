"""Train a narrow RepLKNet with several kernel sizes on labels that need far context, and compare.

One command, less than an hour on two quiet cores: pictures are drawn, every network is trained and
evaluated by tools/train.py and tools/test.py, and mIoU against kernel size and the effective
receptive fields of the trained networks are shown in one figure. Stopped and started again, it goes
on where it was; more kernels or seeds can be added to a study. See mmreplk/analysis/README.md.
"""

import argparse
import os
import os.path as osp
import signal
import sys

try:
    import mmreplk.commands  # noqa: F401  # first: says what is missing
    from mmreplk.analysis.kernel_study import (
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


def parse_args():
    default = kernel_study.StudySettings()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default=osp.join('work_dirs', 'kernel_study'), metavar='DIR',
                        help='folder of the study: new, empty, or begun with the same settings '
                        '(default: work_dirs/kernel_study)')
    parser.add_argument('--kernels', type=int, nargs='+', default=default.kernels, metavar='K',
                        help='kernel sizes of both stages (default: 3 7 13 31)')
    parser.add_argument('--seeds', type=int, nargs='+', default=default.seeds, metavar='SEED',
                        help='a network for each kernel size and seed (default: 0 1 2)')
    parser.add_argument('--iters', type=int, default=default.iters, metavar='N',
                        help=f'iterations of training (default: {default.iters})')
    parser.add_argument('--num-train', type=int, default=default.num_train, metavar='N',
                        help=f'pictures to train on (default: {default.num_train})')
    parser.add_argument('--num-val', type=int, default=default.num_val, metavar='N',
                        help=f'pictures to score on (default: {default.num_val})')
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1), metavar='N',
                        help='networks at a time; the cores are shared out (default: 2)')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    # So that the processes that it has started end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with cli.clear_errors(parser):
        settings = kernel_study.StudySettings(
            tuple(args.kernels), tuple(args.seeds), args.iters, args.num_train, args.num_val)
        study = kernel_study.KernelStudy(args.out, settings)
        kernel_study_train.check_jobs(args.jobs)
    try:
        print(kernel_study_run.run_study(study, args.jobs, lambda line: print(line, flush=True)))
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: stopped; the same command goes on from here\n')


if __name__ == '__main__':
    main()
