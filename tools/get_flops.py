"""Count parameters and multiply-adds of models, by part and by kind of layer, and time them."""

import argparse
import os
import os.path as osp
import sys

# Before torch is loaded, as in train.py.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
# Else PyTorch's profiler writes a line whenever it starts or stops.
os.environ.setdefault('KINETO_LOG_LEVEL', '6')

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    import mmreplk.commands  # noqa: F401  # first: says what is missing
    from mmreplk.analysis import cost_of, draw_costs, format_cost, format_shares, latency_of
    from mmreplk.commands import arguments as cli, checks as preflight, launch
    from mmreplk.files import write_new
except (ImportError, RuntimeError) as error:
    print(f'get_flops.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', metavar='CONFIG', nargs='+',
                        help='config files, or mmreplk::NAME.py')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'),
                        help='size of the image; by default, of a segmentor the scale to which its '
                        'test pipeline resizes, of a classifier the crop of its test pipeline, of '
                        'a detector 800 1280')
    parser.add_argument('--deploy', action='store_true',
                        help='count the merged network: one kernel for each large and small one')
    parser.add_argument('--latency', action='store_true',
                        help='time the model too, with random weights in float32, and say what '
                        'share of the time each kind of layer takes')
    parser.add_argument('--batch', type=int, metavar='N', help='images at a time for --latency '
                        '(default: 1)')
    parser.add_argument('--rounds', type=int, metavar='N', help='passes to time for --latency '
                        '(default: 5)')
    parser.add_argument('--device', help='for --latency, such as cuda:0 or cpu; by default a GPU '
                        'if there is one')
    parser.add_argument('--plot', metavar='FILE.png', help='draw the shares of all models into '
                        'this new picture')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        timing = check_options(args)
        cfgs = {path: read_config(path, args.cfg_options) for path in args.configs}
        # All are counted before any is timed, so that a mistake in the last costs no time.
        costs = {path: cost_of(cfg, args.shape, args.deploy) for path, cfg in cfgs.items()}
        drawn = {}
        for path, cost in costs.items():
            latency = None
            if args.latency:
                latency = latency_of(cfgs[path], args.shape, args.deploy, **timing)
            print('\n' * bool(drawn) + f'{path}: {format_cost(cost)}\n\n'
                  f'{format_shares(cost, latency)}', flush=True)
            name = osp.splitext(osp.basename(path.rsplit('::', 1)[-1]))[0]
            drawn[name if name not in drawn else path] = cost, latency
        if args.plot:
            write_new(args.plot, lambda draft: draw_costs(drawn, draft))


def read_config(path: str, options: dict | None):
    """Read a config and check its codebase and backbone."""
    cfg = cli.read_config(path, options)
    preflight.check_scope(cfg)
    preflight.check_backbone(cfg)
    return cfg


def check_options(args) -> dict:
    """Check what has to do with files and timing; returns the arguments of latency_of."""
    if args.plot:
        if not args.plot.endswith(('.png', '.pdf', '.svg')):
            raise ValueError(f'--plot {args.plot}: name a file that ends in .png, .pdf or .svg.')
        preflight.check_output(args.plot, '--plot')
    if len(set(args.configs)) < len(args.configs):
        raise ValueError('CONFIG: one of them is given twice.')
    timing = {name: value for name in ('batch', 'rounds', 'device')
              if (value := getattr(args, name)) is not None}
    if timing and not args.latency:
        raise ValueError(f'--{next(iter(timing))}: it is for --latency; add that, or leave it out.')
    for option in ('batch', 'rounds'):
        if timing.get(option, 1) < 1:
            raise ValueError(f'--{option} {timing[option]}: give a positive number.')
    if args.latency:
        preflight.check_device(args.device)
        timing.setdefault('device', 'cuda' if launch.has_gpu() else 'cpu')
    return timing


if __name__ == '__main__':
    main()
