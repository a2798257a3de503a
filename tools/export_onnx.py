"""Export a merged segmentor, classifier or backbone as ONNX, for any batch and size."""

import argparse
import sys

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.deploy import onnx as onnx_export
except (ImportError, RuntimeError) as error:
    print(f'export_onnx.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The input is an image after normalization; mean, std and channel order are in the '
        'metadata of the file. onnxruntime and PyTorch are compared at two batches and sizes; if '
        'they differ by more than rounding, nothing is written and the exit code is 1.')
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?', help='weights, merged or '
                        'not, a path or an address; without it, random ones')
    parser.add_argument('out', metavar='OUT', help='file to write, such as model.onnx')
    parser.add_argument('--part', choices=onnx_export.PARTS, default='model',
                        help='model: logits of a segmentor at the size of the image, or '
                        'probabilities of a classifier (default); backbone: its feature maps')
    parser.add_argument('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'),
                        help='size of the first comparison (default: 224 224)')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        if not args.out.endswith('.onnx'):
            raise ValueError(f'OUT: {args.out!r} must end in .onnx.')
        preflight.check_output(args.out, 'OUT')
        if min(args.size) < 32:
            raise ValueError(f'--size {" ".join(map(str, args.size))}: at least 32 pixels each.')
        cfg = cli.read_config(args.config, args.cfg_options)
        preflight.check_replknet(cfg)
        onnx_export.check_exportable(cfg, args.part)
        if args.checkpoint:
            preflight.check_file(args.checkpoint, 'CHECKPOINT', 'Check the path.')
        size = tuple(args.size)
        lines, ok = onnx_export.export(cfg, args.checkpoint, args.out, args.part, size)
    print('\n'.join(lines))
    sys.exit(0 if ok else 1)


if __name__ == '__main__':
    main()
