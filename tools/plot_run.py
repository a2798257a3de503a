"""Draw loss, learning rate and metrics of one or several training runs, also while they run.

Read from MMEngine's own logs in the work dirs; what was logged before and after --resume is one
curve.
"""

import argparse
import sys

try:
    from mmreplk.analysis.runs import logs, plot
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.files import write_new
except (ImportError, RuntimeError) as error:
    print(f'plot_run.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', metavar='WORK_DIR', nargs='+', help='of tools/train.py')
    parser.add_argument('--metrics', nargs='+', metavar='NAME', help='of the validations, such as '
                        'mIoU coco/segm_mAP (default: the main one of the codebase)')
    parser.add_argument('--out', required=True, metavar='FILE.png', help='new image')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        if not args.out.endswith(('.png', '.pdf', '.svg')):
            raise ValueError(f'--out {args.out}: name a file that ends in .png, .pdf or .svg.')
        preflight.check_output(args.out, '--out')
        runs = [logs.read_run(folder) for folder in args.work_dirs]
        logs.metrics_to_show(runs, args.metrics)
        write_new(args.out, lambda draft: plot.draw_runs(runs, draft, args.metrics))
    for run in runs:
        step, loss = list(run.train['loss'].items())[-1]
        best = [f'{key} {max(run.metrics[key].values()):g} at best'
                for key in logs.metrics_to_show([run])]
        print(', '.join([f'{run.name}: iteration {step}', f'loss {loss:.4g}', *best]))
    print(f'Curves: {args.out}')


if __name__ == '__main__':
    main()
