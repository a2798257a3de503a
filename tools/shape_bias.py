"""Compare the shape bias of classifiers: table, CSV and one picture, from files of their answers.

The files are those that tools/test.py writes with configs/*_shape_bias.py. Shape bias is the share
of answers that name the shape, of those that name shape or texture (Geirhos et al., ICLR 2019).
"""

import argparse
import os.path as osp
import sys
from pathlib import Path

try:
    from mmreplk.analysis.shape_bias import decisions as shape_bias, plot as shape_bias_plot
    from mmreplk.commands import arguments as cli, checks as preflight
    from mmreplk.files import write_new
    from mmreplk.paths import check_file
except (ImportError, RuntimeError) as error:
    print(f'shape_bias.py: error: {error}', file=sys.stderr)
    sys.exit(2)

EPILOG = """example:
  shape_bias.py work_dirs/shape_bias/*.csv --out work_dirs/shape_bias_compared

written to --out: shape_bias.png, shape_bias.csv and shape_bias.txt"""


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', metavar='CSV', nargs='+', help='answers of one model or person')
    parser.add_argument('--group', action='append', default=[], metavar='NAME=PATTERN',
                        help='count subjects whose names match as one, such as people=subject-*')
    parser.add_argument('--out', default=osp.join('work_dirs', 'shape_bias_compared'),
                        metavar='DIR', help='folder for the results, new or empty (default: '
                        'work_dirs/shape_bias_compared)')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    with cli.clear_errors(parser):
        preflight.check_output(args.out, '--out')
        for path in args.files:
            check_file(path, 'CSV', 'Check the path; tools/test.py writes it to the csv_dir of '
                       'the config.')
        found = shape_bias.read_decisions(args.files, shape_bias.parse_groups(args.group))
        table, rows = shape_bias.format_table(found), shape_bias.format_csv(found)
        for name, write in (
            ('shape_bias.csv', lambda path: Path(path).write_text(rows, encoding='utf-8')),
            ('shape_bias.txt', lambda path: Path(path).write_text(f'{table}\n', encoding='utf-8')),
            ('shape_bias.png', lambda path: shape_bias_plot.draw_shape_bias(found, path)),
        ):
            write_new(osp.join(args.out, name), write)
    print(f'{table}\n\nPicture, rows and table: {args.out}')


if __name__ == '__main__':
    main()
