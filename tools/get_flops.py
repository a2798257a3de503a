"""Count the parameters and multiply-adds of a config's model, by part and by kind of layer."""

import argparse
import sys

try:
    import mmreplk  # noqa: F401  # makes mmreplk::NAME.py a config path
    from mmreplk.analysis import cost_of, format_cost
    from mmreplk.engine import cli, preflight
except (ImportError, RuntimeError) as error:
    print(f'get_flops.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'),
                        help='size of the image; by default, of a segmentor the scale to which its '
                        'test pipeline resizes, of a classifier the crop of its test pipeline, of '
                        'a detector 800 1280')
    parser.add_argument('--deploy', action='store_true',
                        help='count the merged network: one kernel for each large and small one')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        cfg = cli.read_config(args.config, args.cfg_options)
        preflight.check_scope(cfg)
        preflight.check_backbone(cfg)
        text = format_cost(cost_of(cfg, args.shape, args.deploy))
    print(f'{args.config}: {text}')


if __name__ == '__main__':
    main()
