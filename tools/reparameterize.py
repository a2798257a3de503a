"""Merge the small kernels of a trained model into the large ones: the same function, faster."""

import argparse
import os.path as osp
import sys

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.deploy import merge as deploy
except (ImportError, RuntimeError) as error:
    print(f'reparameterize.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Predictions are compared before and after, on the CPU. If they differ by more than '
        'rounding, nothing is written and the exit code is 1.')
    parser.add_argument('config', metavar='CONFIG', help='config of the trained classifier, '
                        'segmentor or detector, or mmreplk::NAME.py')
    parser.add_argument('checkpoint', metavar='CHECKPOINT',
                        help='its weights, a path or an address')
    parser.add_argument('out', metavar='OUT', help='file for the merged weights, such as '
                        'merged.pth; their config is written beside it, as merged.py')
    parser.add_argument('--image', metavar='FILE', help='picture to compare on; by default soft '
                        'patches of color with grain, 256x320, always the same')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        stem, suffix = osp.splitext(args.out)
        if suffix != '.pth':
            raise ValueError(f'OUT: {args.out!r} must end in .pth; its config goes beside it.')
        config_out = f'{stem}.py'
        preflight.check_output(args.out, 'OUT')
        preflight.check_output(config_out, 'OUT')
        cfg = cli.read_config(args.config, args.cfg_options)
        preflight.check_mergeable(cfg)
        preflight.check_file(args.checkpoint, 'CHECKPOINT', 'Check the path.')
        if args.image:
            preflight.check_file(args.image, '--image', 'Check the path.')
        lines, ok = deploy.reparameterize(cfg, args.checkpoint, args.out, config_out, args.image)
    print('\n'.join(lines))
    sys.exit(0 if ok else 1)


if __name__ == '__main__':
    main()
