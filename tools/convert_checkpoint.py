"""Turn RepLKNet weights from one layout of names into another: ours, the authors', MMPretrain's."""

import argparse
import sys

try:
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.models.arch import ARCHS
    from mmreplk.weights import convert
except (ImportError, RuntimeError) as error:
    print(f'convert_checkpoint.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Values stay as they are, bit by bit. SRC is read with weights_only=True: a file '
        'that needs more is refused.')
    parser.add_argument('src', metavar='SRC', help='weights of a classifier, backbone, segmentor '
                        'or detector, merged or not, in any of the three layouts')
    parser.add_argument('out', metavar='OUT', help='file to write; it must not exist')
    parser.add_argument('--to', choices=convert.LAYOUTS, default='mmreplk',
                        help='layout to write (default: mmreplk, which our configs load)')
    parser.add_argument('--arch', choices=list(ARCHS), help='refuse weights of another one')
    parser.add_argument('--ema', action='store_true',
                        help='take the moving average that training saved beside the weights')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        preflight.check_file(args.src, 'SRC', 'Check the path.')
        preflight.check_output(args.out, 'OUT')
        lines = convert.convert(args.src, args.out, args.to, args.arch, args.ema)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
