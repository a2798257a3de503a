"""Draw the confusion matrix of a segmentor's predictions on its test split, with the IoU of each
class; the counts are written as CSV beside the image.
"""

import argparse
import csv
import os.path as osp
import sys

try:
    from mmreplk.analysis.confusion import matrix, plot
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.files import write_new
except (ImportError, RuntimeError) as error:
    print(f'confusion_matrix.py: error: {error}', file=sys.stderr)
    sys.exit(2)

EPILOG = """example:
  test.py CONFIG CHECKPOINT --out predictions
  confusion_matrix.py CONFIG predictions --out confusion.png"""


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, or mmreplk::NAME.py')
    parser.add_argument('predictions', metavar='PREDICTIONS', help='folder of test.py --out')
    parser.add_argument('--out', required=True, metavar='FILE.png',
                        help='new image; the counts go to FILE.csv')
    cli.add_cfg_options(parser)
    return parser, parser.parse_args()


def write_counts(found, path: str) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['label', *found.classes])
        writer.writerows([name, *row] for name, row in
                         zip(found.classes, found.counts.tolist(), strict=True))


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        if not args.out.endswith(('.png', '.pdf', '.svg')):
            raise ValueError(f'--out {args.out}: name a file that ends in .png, .pdf or .svg.')
        counts = f'{osp.splitext(args.out)[0]}.csv'
        for path in (args.out, counts):
            preflight.check_output(path, '--out')
        cfg = cli.read_config(args.config, args.cfg_options)
        found = matrix.confusion_of(cfg, args.predictions)
        write_new(counts, lambda draft: write_counts(found, draft))
        write_new(args.out, lambda draft: plot.draw_confusion(found, draft))
    width = max(map(len, found.classes))
    for name, iou in zip(found.classes, found.ious, strict=True):
        print(f'{name:{width}}  IoU {iou:6.2f}')
    print(f'mIoU: {found.miou:.2f}')
    for label, taken, share in found.worst():
        print(f'{label} taken for {taken}: {share:.1%} of its pixels')
    print(f'Matrix: {args.out}, counts: {counts}')


if __name__ == '__main__':
    main()
