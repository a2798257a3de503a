"""Train a model of MMSegmentation, MMDetection or MMPretrain, on one process or many."""

import argparse
import os
import sys

# Before torch is loaded. OpenMP threads spin while they wait by default, and so take the cores from
# the workers that load the data: a CPU run is several times slower then.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

try:
    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.commands import arguments as cli, checks, launch, shrink, train_options as options
    from mmreplk.training import harden, resumable
    from mmreplk.training.work_dir_lock import lock_work_dir
    from mmreplk.weights.safe_load import forbid_code
except (ImportError, RuntimeError) as error:
    print(f'train.py: error: {error}', file=sys.stderr)
    sys.exit(2)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='FILE',
                        help='go on from the last checkpoint of the work dir, or from FILE')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the total batch')
    parser.add_argument('--reduce', type=int, metavar='N',
                        help='try the config on a small network: widths divided by N, one pair of '
                        'blocks a stage, random weights, small images and batches')
    cli.add_common_arguments(parser)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    forbid_code(args.trust_checkpoints)
    notes = []
    with cli.clear_errors(parser, args.launcher):
        cfg = cli.prepare(args)
        if args.amp:
            options.use_amp(cfg)
        if args.auto_scale_lr:
            options.use_auto_scale_lr(cfg)
        if args.resume:
            options.use_resume(cfg, args.resume)
        if launch.restarts():
            resumable.resume_restarted(cfg)
        if args.reduce is not None:
            checks.check_scope(cfg)
            notes.append(shrink.reduce_model(cfg, args.reduce))
        notes.append(checks.preflight_train(cfg, args.launcher))
        notes.append(launch.fit_to_hardware(cfg, args.launcher))
        notes.append(harden(cfg))
        checks.make_work_dir(cfg)
        if launch.is_first_process(args.launcher):
            notes.append(lock_work_dir(cfg.work_dir))
    with launch.process_group(cfg, args.launcher):
        runner = cli.build_runner(cfg, *notes)
        runner.train()
    launch.finish(args.launcher)


if __name__ == '__main__':
    main()
