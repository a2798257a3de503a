"""Evaluate a model of MMSegmentation, MMDetection or MMPretrain, on one process or many."""

import argparse
import os
import sys

# Before torch is loaded. OpenMP threads spin while they wait by default, and so take the cores from
# the workers that load the data: a CPU run is several times slower then.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.commands import arguments as cli, checks as preflight, evaluation, launch
    from mmreplk.training import fsdp, harden
    from mmreplk.weights.safe_load import forbid_code
except (ImportError, RuntimeError) as error:
    print(f'test.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights, a path or an address')
    parser.add_argument('--out', help='write the predictions: a folder of PNG files for '
                        'segmentors, a .pkl file for detectors and classifiers')
    parser.add_argument('--show-dir', help='draw every prediction into this folder')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: the config\'s '
                        'tta_model and tta_pipeline, else a horizontal flip')
    parser.add_argument('--accelerate', action='store_true', help='run the depth-wise convolutions '
                        'of any network by mmreplk\'s operator, as mmreplk.AccelerateHook does')
    cli.add_common_arguments(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    forbid_code(args.trust_checkpoints)
    notes = []
    with cli.clear_errors(parser, args.launcher):
        cfg = cli.prepare(args)
        cfg.load_from, cfg.resume = args.checkpoint, False
        preflight.preflight_test(cfg, args.launcher)
        evaluation.name_as_test(cfg)
        notes += [fsdp.unshard(cfg), harden(cfg)]
        if args.tta:
            evaluation.use_tta(cfg)
        if args.amp:
            evaluation.use_test_amp(cfg)
        if args.accelerate:
            evaluation.use_acceleration(cfg)
        if args.out:
            preflight.check_output(args.out, '--out')
            evaluation.use_out(cfg, args.out)
        if args.show_dir:
            preflight.check_output(args.show_dir, '--show-dir')
            evaluation.use_show_dir(cfg, args.show_dir, launch.process_count(args.launcher))
        notes.append(launch.fit_to_hardware(cfg, args.launcher))
        preflight.make_work_dir(cfg)
        if args.out and cfg.default_scope == 'mmseg':
            # The metric's first process would make the folder, maybe after another needs it.
            os.makedirs(args.out, exist_ok=True)
    with launch.process_group(cfg, args.launcher):
        runner = cli.build_runner(cfg, *notes)
        runner.test()
    launch.finish(args.launcher)


if __name__ == '__main__':
    main()
