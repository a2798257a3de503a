"""Measure and draw effective receptive fields: of mm configs, and of timm and torchvision models.

Which pixels does the center of a feature map depend on? The method of the RepLKNet paper, section
on effective receptive fields; see mmreplk/analysis/README.md.
"""

import argparse
import os.path as osp
import sys

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.analysis.erf import models as erf_models, runs as erf_runs
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.weights.safe_load import forbid_code
except (ImportError, RuntimeError) as error:
    print(f'erf.py: error: {error}', file=sys.stderr)
    sys.exit(2)

EPILOG = """examples:
  erf.py mmreplk::upernet_replknet31b_ade20k.py upernet.pth --images data/imagenet/val
  erf.py torchvision:resnet101 --pretrained --images data/imagenet/val --out erf_resnet101
  erf.py CONFIG.py CHECKPOINT.pth timm:convnext_base convnext.safetensors torchvision:resnet101
  erf.py CONFIG.py CONFIG.py --stage 0 --stage 3 --name 'stage 1' --name 'stage 4'

written to --out: NAME.npy (contributions S, float64) and NAME.png (heat map) of each model,
erf.csv, table.png, and of several models maps.png (heat maps side by side)."""


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', metavar='MODEL [CHECKPOINT]', nargs='+',
                        help='a config of MMSegmentation, MMDetection or MMPretrain (file, or '
                        'mmreplk::NAME.py), timm:NAME or torchvision:NAME (classifiers), each '
                        'followed by the file of its weights, if any. Without one the weights are '
                        'random, unless --pretrained is given')
    parser.add_argument('--pretrained', action='store_true',
                        help='for models without CHECKPOINT: fetch the weights that timm or '
                        'torchvision names as default, or load those from which the config starts '
                        'its training')
    parser.add_argument('--stage', action='append', metavar='STAGE',
                        help='number among the outputs of the backbone (of timm: among '
                        'forward_intermediates), or dotted name of any module, such as '
                        'backbone.stages.2 or layer3. Once for all models, or once for each '
                        '(default: -1, the last)')
    parser.add_argument('--name', action='append', metavar='NAME',
                        help='what to call a model in the results; once for each')
    parser.add_argument('--images', metavar='FOLDER',
                        help='folder of pictures, such as the validation images of ImageNet; '
                        'subfolders are searched too. For networks of other than three channels, '
                        'of arrays (H, W, channels) in .npy files. By default pictures are '
                        'generated, with as many channels as a network takes')
    parser.add_argument('--num-images', type=int, default=50, metavar='N',
                        help='how many pictures, spread over the folder (default: 50)')
    parser.add_argument('--size', type=int, default=1024, metavar='PIXELS',
                        help='height and width to which they are resized (default: 1024)')
    parser.add_argument('--out', default=osp.join('work_dirs', 'erf'), metavar='DIR',
                        help='folder for the results, new or empty (default: work_dirs/erf)')
    parser.add_argument('--device', help='such as cuda:0 or cpu; by default a GPU if there is one')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    forbid_code()
    with cli.clear_errors(parser):
        specs = erf_models.parse_models(args.models, args.stage or ['-1'], args.name or [])
        preflight.check_device(args.device)
        preflight.check_output(args.out, '--out')
        pictures = erf_runs.open_pictures(args.images, args.num_images, args.size)
        options = dict(pretrained=args.pretrained, cfg_options=args.cfg_options)
        notes = erf_runs.check_models(specs, args.size, pictures=pictures, **options)
    for note in (*erf_runs.describe(pictures, args.num_images), *notes):
        print(note, file=sys.stderr)
    try:
        print(erf_runs.run(specs, pictures, args.out, args.device, **options))
    except (OSError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')


if __name__ == '__main__':
    main()
