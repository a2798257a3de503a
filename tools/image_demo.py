"""Draw the prediction of a segmentor, detector or classifier for one image."""

import argparse
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
    parser.add_argument('image', metavar='IMAGE', help='image file')
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights, a path or an address')
    parser.add_argument('--out', required=True, metavar='FILE', help='picture to write')
    parser.add_argument('--device', help='such as cuda:0 or cpu; by default a GPU if there is one')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='detections below this score are not drawn (default: 0.3)')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    forbid_code()
    with cli.clear_errors(parser):
        cfg = cli.read_config(args.config, args.cfg_options)
        preflight.check_scope(cfg)
        preflight.check_file(args.image, 'IMAGE', 'Check the path.')
        preflight.check_backbone(cfg)
        preflight.check_weights(cfg, args.checkpoint, 'CHECKPOINT')
        preflight.check_device(args.device)
        preflight.check_output(args.out, '--out')
        fsdp.unshard(cfg)
        launch.fit_to_hardware(cfg, 'none')
    inference.draw_prediction(
        cfg, args.checkpoint, args.image, args.out, args.device, args.score_thr)


if __name__ == '__main__':
    main()
