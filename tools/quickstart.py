"""Draw a data set, train a narrow UperNet-RepLKNet on it, evaluate it and show what it predicts.

Everything goes through the scripts that real experiments use: tools/dataset/draw_scenes.py,
tools/train.py and tools/test.py.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    sys.exit(f'quickstart.py: error: {error}. `bash tools/quickstart.sh` installs what it needs.')

REPO = Path(__file__).resolve().parents[1]
TOOLS = REPO / 'tools'
CONFIG = REPO / 'configs' / 'upernet_replknet_narrow_scenes.py'
NUM_TRAIN, NUM_VAL, SIZE, SEED = 400, 80, 128, 0
WARM_UP = 40  # iterations, as in CONFIG
PICTURES = 8
TAIL = 30  # lines of a failed command's output

# ADE20K's own palette paints grass like trees and water like the sky.
COLORS = {
    'building': (190, 98, 80),
    'sky': (142, 202, 242),
    'tree': (24, 98, 48),
    'road': (92, 92, 104),
    'grass': (134, 200, 82),
    'sidewalk': (222, 202, 168),
    'person': (226, 38, 92),
    'mountain': (144, 122, 160),
    'car': (246, 158, 24),
    'water': (30, 98, 190),
    'fence': (126, 82, 40),
    'boat': (252, 232, 72),
}
UNLABELLED_COLOR = (0, 0, 0)
IGNORED = 255

PROGRESS = re.compile(r'Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?eta: (\S+).*? loss: (\S+)')
VALIDATION = re.compile(r'Iter\(val\).*?mIoU: ([\d.]+)')


class StepFailed(RuntimeError):
    """A step did not do its work; the message says which and what to do."""


def main() -> int:
    """Run the steps and print the summary.

    Returns:
        int: The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--root', default=str(REPO / 'work_dirs' / 'quickstart'), metavar='DIR',
                        help='folder for the data set and the runs (work_dirs/quickstart)')
    parser.add_argument('--iters', type=int, metavar='N',
                        help='training iterations instead of those of the config')
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters must be at least 1, got {args.iters}')
    try:
        run_steps(Path(args.root).resolve(), args.iters)
    except (StepFailed, OSError) as error:
        print(f'quickstart.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('quickstart.py: interrupted; a new call starts a new run', file=sys.stderr)
        return 130
    return 0


def run_steps(root: Path, iters: int | None) -> None:
    """Draw, train, evaluate and show.

    Args:
        root (Path): Folder for data set and runs.
        iters (int, optional): Training iterations, or None for those of the config.

    Raises:
        StepFailed: If a step fails.
    """
    start = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    run = new_run_folder(root)
    # The tools run in root with the data under a bare name: MMEngine takes an option with a comma
    # for a list, and root is the user's choice.
    data = root / 'scenes'
    options = [f'{loader}_dataloader.dataset.data_root={data.name}'
               for loader in ('train', 'val', 'test')]

    announce(1, f'Drawing {NUM_TRAIN} + {NUM_VAL} scenes with ADE20K labels: {show(data)}', start)
    execute('draw', root, run, print, TOOLS / 'dataset' / 'draw_scenes.py', data,
            '--num-train', NUM_TRAIN, '--num-val', NUM_VAL, '--size', SIZE, '--seed', SEED,
            '--num-workers', min(4, os.cpu_count() or 1))

    announce(2, f'Training UperNet on a narrow RepLKNet: {show(run)}', start)
    execute('train', root, run, report_progress, TOOLS / 'train.py', CONFIG, '--work-dir', run,
            '--cfg-options', *options, *length_options(iters))
    checkpoint = last_checkpoint(run)

    announce(3, f'Evaluating {checkpoint.name} on the validation split', start)
    predictions = run / 'predictions'
    execute('test', root, run, lambda line: None, TOOLS / 'test.py', CONFIG, checkpoint,
            '--work-dir', run / 'test', '--out', predictions, '--cfg-options', *options)
    miou = read_metrics(run / 'test')['mIoU']

    announce(4, 'Comparing predictions with labels', start)
    classes = json.loads((data / 'draw_scenes.json').read_text(encoding='utf-8'))['classes']
    names = sorted((data / 'annotations' / 'validation').glob('*.png'))
    labels = [read_label(path, list(classes.values())) for path in names]
    predicted = [np.asarray(Image.open(predictions / path.name)).astype(int) - 1 for path in names]
    ious, accuracy = score(labels, predicted, len(classes))
    # Guards the pictures: they must show what was evaluated.
    if abs(100 * np.nanmean(ious) - miou) > 0.02:
        raise StepFailed(f'tools/test.py reports mIoU {miou}, but the predictions it wrote to '
                         f'{show(predictions)} score {100 * np.nanmean(ious):.2f}')
    pixels = np.bincount(np.concatenate([x[x != IGNORED] for x in labels]), minlength=len(classes))
    favorite = int(pixels.argmax())
    constant = [np.full_like(label, favorite) for label in labels]
    base_ious, base_accuracy = score(labels, constant, len(classes))
    sheet = run / 'predictions.png'
    draw_sheet(sheet, [data / 'images' / 'validation' / f'{path.stem}.jpg' for path in names],
               labels, predicted, list(classes), ious)

    each = ', '.join(f'{name} {100 * iou:.0f}' for name, iou in zip(classes, ious, strict=True))
    seconds = round(time.monotonic() - start)
    print(f'\nmIoU on {NUM_VAL} held-out scenes: {miou:.2f} (pixel accuracy {100 * accuracy:.2f})\n'
          f'"{list(classes)[favorite]}" everywhere:      {100 * np.nanmean(base_ious):.2f} '
          f'(pixel accuracy {100 * base_accuracy:.2f})\n'
          f'IoU by class: {each}\n'
          f'Pictures:     {show(sheet)}\n'
          f'Checkpoint:   {show(checkpoint)}\n'
          f'Total time:   {seconds // 60} min {seconds % 60} s')


def new_run_folder(root: Path) -> Path:
    """Create the first free ``run_NNN``, so that no run writes over another."""
    number = 1
    while True:
        folder = root / f'run_{number:03d}'
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def announce(number: int, what: str, start: float) -> None:
    """Print the headline of a step with the time since the start."""
    seconds = int(time.monotonic() - start)
    print(f'\n[{number}/4] {seconds // 60}:{seconds % 60:02d}  {what}', flush=True)


def show(path: Path) -> str:
    """The path as the user would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def length_options(iters: int | None) -> list[str]:
    """The settings of CONFIG that depend on the number of iterations."""
    if iters is None:
        return []
    # LinearLR and PolyLR both need at least one iteration.
    warm_up = max(1, min(WARM_UP, iters // 10))
    return [f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}',
            f'default_hooks.checkpoint.interval={iters}', f'param_scheduler.0.end={warm_up}',
            f'param_scheduler.1.begin={warm_up}',
            f'param_scheduler.1.end={max(iters, warm_up + 1)}']


def execute(name: str, cwd: Path, run: Path, report: Callable[[str], None], *command) -> None:
    """Run a script of this repository and hand each line of its output to ``report``.

    MMEngine prints its config and environment first; the whole output goes to a file instead.

    Args:
        name (str): Name of the step; its output is kept in ``run/NAME.txt``.
        cwd (Path): Folder to run in.
        run (Path): Folder of this run.
        report (Callable): Called with each line.
        *command: The script and its arguments.

    Raises:
        StepFailed: If the exit code is not 0. The message ends with the last lines.
    """
    log = run / f'{name}.txt'
    paths = [str(REPO), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED='1')
    lines = []
    with log.open('w', encoding='utf-8') as file, subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=cwd, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding='utf-8', errors='replace') as process:
        for line in process.stdout:
            file.write(line)
            lines = [*lines[1 - TAIL:], line]
            report(line.rstrip('\n'))
    if process.returncode:
        raise StepFailed(f'{Path(command[0]).name} ended with exit code {process.returncode}. Its '
                         f'last lines (all of them: {show(log)}):\n{"".join(lines)}')


def report_progress(line: str) -> None:
    """Print what a log line of MMEngine says about the progress, if anything."""
    if found := PROGRESS.search(line):
        done, total, left, loss = found.groups()
        print(f'      iteration {done:>4} of {total}   loss {float(loss):.3f}   {left} left',
              flush=True)
    elif found := VALIDATION.search(line):
        print(f'      validation mIoU {found[1]}', flush=True)


def last_checkpoint(run: Path) -> Path:
    """The checkpoint that MMEngine names in ``last_checkpoint``.

    Raises:
        StepFailed: If there is none.
    """
    pointer = run / 'last_checkpoint'
    if not pointer.is_file():
        raise StepFailed(f'training ended without a checkpoint in {show(run)}; see its train.txt')
    path = Path(pointer.read_text(encoding='utf-8').strip())
    # MMEngine writes the path as it was given, or from the folder that it ran in.
    return path if path.is_absolute() else run / path.name


def read_metrics(work_dir: Path) -> dict:
    """The metrics that MMEngine's Runner wrote as ``work_dir/TIME/TIME.json``.

    Raises:
        StepFailed: If there is no such file with an mIoU.
    """
    for path in sorted(work_dir.glob('*/*.json'), reverse=True):
        # One JSON object a line where the logger wrote more than once.
        for line in reversed(path.read_text(encoding='utf-8').splitlines()):
            metrics = json.loads(line)
            if 'mIoU' in metrics:
                return metrics
    raise StepFailed(f'tools/test.py wrote no mIoU under {show(work_dir)}; see test.txt beside it')


def read_label(path: Path, ids: list[int]) -> np.ndarray:
    """Read an annotation and turn its ADE20K numbers into class indices, others into 255."""
    table = np.full(256, IGNORED)
    table[ids] = np.arange(len(ids))
    return table[np.asarray(Image.open(path))]


def score(labels: list[np.ndarray], predicted: list[np.ndarray],
          num_classes: int) -> tuple[np.ndarray, float]:
    """IoU of each class and pixel accuracy over all labelled pixels, both from 0 to 1."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, guess in zip(labels, predicted, strict=True):
        valid = label != IGNORED
        cells = np.bincount(label[valid] * num_classes + guess[valid], minlength=num_classes**2)
        matrix += cells.reshape(num_classes, num_classes)
    hits = np.diag(matrix)
    with np.errstate(invalid='ignore'):
        ious = hits / (matrix.sum(0) + matrix.sum(1) - hits)
    return ious, float(hits.sum() / matrix.sum())


def draw_sheet(path: Path, images: list[Path], labels: list[np.ndarray],
               predicted: list[np.ndarray], classes: list[str], ious: np.ndarray) -> None:
    """Draw image, label and prediction of some scenes side by side, and the legend.

    The scenes are spread evenly over the split rather than picked for their looks.

    Args:
        path (Path): PNG file to write.
        images (list[Path]): The pictures of the split.
        labels (list[np.ndarray]): Their labels, class indices and 255.
        predicted (list[np.ndarray]): Their predictions, class indices.
        classes (list[str]): Names of the classes.
        ious (np.ndarray): IoU of each class.
    """
    side, gap, top, line = 224, 6, 34, 34
    across = 2
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(classes)] = [COLORS[name] for name in classes]
    palette[IGNORED] = UNLABELLED_COLOR
    font = ImageFont.load_default(17)

    chosen = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(int)
    rows = -(-len(chosen) // across)
    block = 3 * (side + gap) + 3 * gap
    per_line = 7
    legend = [*zip(classes, ious, strict=True), ('unlabelled', None)]
    width = across * block + gap
    height = top + rows * (side + gap) + gap + line * -(-len(legend) // per_line) + gap
    sheet = Image.new('RGB', (width, height), (250, 250, 250))
    pen = ImageDraw.Draw(sheet)

    for column in range(across):
        for i, title in enumerate(('image', 'label', 'prediction')):
            pen.text((gap + column * block + i * (side + gap) + side // 2, top // 2), title,
                     fill=(30, 30, 30), font=font, anchor='mm')
    for place, index in enumerate(chosen):
        row, column = divmod(place, across)
        panels = (Image.open(images[index]), Image.fromarray(palette[labels[index]]),
                  Image.fromarray(palette[predicted[index]]))
        for i, panel in enumerate(panels):
            smooth = Image.Resampling.BICUBIC if i == 0 else Image.Resampling.NEAREST
            sheet.paste(panel.resize((side, side), smooth),
                        (gap + column * block + i * (side + gap), top + row * (side + gap)))
    for place, (name, iou) in enumerate(legend):
        row, column = divmod(place, per_line)
        x = gap + column * (width - 2 * gap) // per_line
        y = top + rows * (side + gap) + gap + row * line
        pen.rectangle((x, y + 4, x + 24, y + 26), fill=COLORS.get(name, UNLABELLED_COLOR),
                      outline=(60, 60, 60))
        text = f'{name} (ignored)' if iou is None else f'{name} {100 * iou:.0f}'
        pen.text((x + 32, y + 15), text, fill=(30, 30, 30), font=font, anchor='lm')
    sheet.save(path)


if __name__ == '__main__':
    sys.exit(main())
