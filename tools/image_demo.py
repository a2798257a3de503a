"""Draw what a segmentor, detector or classifier predicts: an image, a folder or a video."""

import argparse
import os
import sys

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.commands import arguments as cli, checks as preflight, inference, launch
    from mmreplk.training import fsdp
    from mmreplk.weights.safe_load import forbid_code
except (ImportError, RuntimeError) as error:
    print(f'image_demo.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', metavar='IMAGE', help='image, folder of images, or video')
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights, a path or an address')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='image to write; for a folder a folder, for a video .mp4 or .avi')
    parser.add_argument('--device', help='such as cuda:0 or cpu; by default a GPU if there is one')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='detections below this score are not drawn (default: 0.3)')
    parser.add_argument('--opacity', type=float, default=0.5,
                        help='of masks, 0 to 1 (default: 0.5)')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    forbid_code()
    with cli.clear_errors(parser):
        cfg = cli.read_config(args.config, args.cfg_options)
        preflight.check_scope(cfg)
        if not os.path.isdir(args.image):
            preflight.check_file(args.image, 'IMAGE', 'Check the path.')
        kind = inference.kind_of_input(args.image, args.out)
        if not 0 <= args.opacity <= 1:
            raise ValueError(f'--opacity {args.opacity}: give a number from 0 to 1.')
        preflight.check_backbone(cfg)
        preflight.check_weights(cfg, args.checkpoint, 'CHECKPOINT')
        preflight.check_device(args.device)
        preflight.check_output(args.out, '--out')
        fsdp.unshard(cfg)
        launch.fit_to_hardware(cfg, 'none')
    predict = inference.build_predictor(
        cfg, args.checkpoint, args.device, args.score_thr, args.opacity)
    with cli.clear_errors(parser):
        inference.draw(predict, kind, args.image, args.out)


if __name__ == '__main__':
    main()
