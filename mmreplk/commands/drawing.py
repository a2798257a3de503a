"""Drawing what a model has predicted for an image: masks, boxes, a legend. Matplotlib, OpenCV."""

from collections import Counter
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..analysis.figures import new_figure

LEAST = 480  # smaller images are enlarged by a whole factor, so that their labels can be read
DPI = 100
FONT = 9  # points
LINE = 20  # pixels a line of the legend
SHARE_OF_LABEL = 0.02  # classes with less of the image stand in the legend alone


@dataclass
class Drawing:
    """What is drawn for one image; places are in its pixels, colors of 0 to 255.

    Attributes:
        image (np.ndarray): RGB, ``(H, W, 3)`` uint8, masks blended in.
        words (str): The classes found, in one line.
        legend (list[tuple[str, tuple]]): Text and color of each entry.
        boxes (list[tuple]): ``(x0, y0, x1, y1, color)``.
        labels (list[tuple]): ``(x, y, text, color)``: text with its upper left corner there, or as
            near as it lies inside the image and on no other label.
    """
    image: np.ndarray
    words: str
    legend: list = field(default_factory=list)
    boxes: list = field(default_factory=list)
    labels: list = field(default_factory=list)


def colors_of(classes, palette) -> list[tuple[int, int, int]]:
    """A color for each class: those of the data set, else evenly spaced hues.

    Args:
        classes (Sequence[str]): The names.
        palette (Sequence | str | None): Of the data set; a str says that it has none.
    """
    if palette is not None and not isinstance(palette, str) and len(palette) >= len(classes):
        return [tuple(int(value) for value in color) for color in palette]
    hues = np.uint8([[[180 * (index * 0.618 % 1), 190, 230] for index in range(len(classes))]])
    return [tuple(map(int, color)) for color in cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]]


def of_segments(image: np.ndarray, found: np.ndarray, classes, palette, opacity: float) -> Drawing:
    """Draw a label map.

    Args:
        image (np.ndarray): RGB, ``(H, W, 3)`` uint8.
        found (np.ndarray): The class of each pixel, ``(H, W)`` int; others than those
            of ``classes`` stay bare.
        classes (Sequence[str]): The names.
        palette (Sequence | str | None): As of :func:`colors_of`.
        opacity (float): Of the masks, 0 to 1.

    Returns:
        Drawing: Classes by their share of the image, the largest first.
    """
    colors = colors_of(classes, palette)
    shares = Counter({int(index): int(count) / found.size
                      for index, count in zip(*np.unique(found, return_counts=True), strict=True)
                      if 0 <= index < len(classes)})
    drawing = Drawing(image.copy(), '')
    texts = []
    for index, share in shares.most_common():
        mask = found == index
        _blend(drawing.image, mask, colors[index], opacity)
        texts.append(f'{classes[index]} {share:.1%}')
        drawing.legend.append((texts[-1], colors[index]))
        if share >= SHARE_OF_LABEL:
            x, y = _inmost(mask)
            drawing.labels.append((x, y, classes[index], colors[index]))
    drawing.words = ', '.join(texts) or 'no class'
    return drawing


def of_detections(image: np.ndarray, instances, classes, palette, opacity: float,
                  score_thr: float) -> Drawing:
    """Draw boxes, and masks if there are some.

    Args:
        image (np.ndarray): RGB, ``(H, W, 3)`` uint8.
        instances (InstanceData): With ``bboxes`` ``(N, 4)``, ``scores`` and ``labels``
            ``(N,)``, and optionally ``masks`` ``(N, H, W)``.
        classes (Sequence[str]): The names.
        palette (Sequence | str | None): As of :func:`colors_of`.
        opacity (float): Of the masks, 0 to 1.
        score_thr (float): Those below are not drawn.

    Returns:
        Drawing: Classes by their number, with the scores of each.
    """
    colors = colors_of(classes, palette)
    instances = instances[instances.scores >= score_thr].cpu()
    order = instances.scores.argsort(descending=True).tolist()
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    drawing = Drawing(image.copy(), '')
    masks = np.asarray(instances.masks) if 'masks' in instances else None
    for index in reversed(order) if masks is not None else ():  # the surest on top
        _blend(drawing.image, masks[index].astype(bool), colors[labels[index]], opacity)
    for index in order:
        x0, y0, x1, y1 = instances.bboxes[index].tolist()
        color = colors[labels[index]]
        drawing.boxes.append((x0, y0, x1, y1, color))
        drawing.labels.append((x0, y0, f'{classes[labels[index]]} {scores[index]:.2f}', color))
    texts = []
    for label, count in Counter(labels[index] for index in order).most_common():
        of_class = [f'{scores[index]:.2f}' for index in order if labels[index] == label]
        more = ', ...' if count > 5 else ''
        texts.append(f'{count} x {classes[label]} ({", ".join(of_class[:5])}{more})')
        drawing.legend.append((f'{count} x {classes[label]}', colors[label]))
    drawing.words = ', '.join(texts) or f'nothing with a score of {score_thr} or more'
    return drawing


def of_classes(image: np.ndarray, scores: np.ndarray, classes, count: int = 5) -> Drawing:
    """Draw the most probable classes of a whole image.

    Args:
        image (np.ndarray): RGB, ``(H, W, 3)`` uint8.
        scores (np.ndarray): Of each class, ``(C,)``.
        classes (Sequence[str]): The names.
        count (int): How many. Defaults to 5.

    Returns:
        Drawing: The most probable first, in a legend alone.
    """
    best = np.argsort(-scores, kind='stable')[:count]
    texts = [f'{classes[index]} {scores[index]:.1%}' for index in best]
    gray = [(int(255 * (1 - scores[index])), ) * 3 for index in best]
    return Drawing(image.copy(), ', '.join(texts), list(zip(texts, gray, strict=True)))


def render(drawing: Drawing, lines: int | None = None) -> np.ndarray:
    """Draw boxes and labels over the image, and the legend below it.

    Args:
        drawing (Drawing): What to draw.
        lines (int, optional): Lines of the legend, so that the images of a video have one size;
            what does not fit into them is left out. Defaults to None, as many as it takes.

    Returns:
        np.ndarray: RGB uint8, of the width of the image (a multiple of it if that is small).
    """
    image = drawing.image
    factor = max(1, -(-LEAST // max(image.shape[:2])))
    image = image.repeat(factor, 0).repeat(factor, 1)
    height, width = image.shape[:2]
    longest = max((len(text) for text, _ in drawing.legend), default=1)
    columns = max(1, min(width // (7 * longest + 30), len(drawing.legend) or 1))
    needed = -(-len(drawing.legend) // columns)
    lines = needed if lines is None else lines
    total = height + LINE * lines + (8 if lines else 0)
    figure = new_figure(width / DPI, total / DPI, layout=None, dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(total, 0)
    axes.imshow(image, extent=(0, width, height, 0), interpolation='nearest', aspect='auto')
    for x0, y0, x1, y1, color in drawing.boxes:
        x0, x1 = (min(max(x * factor, 1), width - 1) for x in (x0, x1))
        y0, y1 = (min(max(y * factor, 1), height - 1) for y in (y0, y1))
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=_unit(color), linewidth=1.8)
    taken = []
    for x, y, text, color in drawing.labels:
        _place(axes, text, x * factor, y * factor, color, width, height, taken)
    for index, (text, color) in enumerate(drawing.legend[:columns * lines]):
        x = 8 + index % columns * (width // columns)
        y = height + 6 + LINE * (index // columns)
        axes.fill([x, x + 13, x + 13, x], [y, y, y + 13, y + 13], facecolor=_unit(color),
                  edgecolor='0.3', linewidth=0.6)
        axes.text(x + 19, y + 6.5, text, fontsize=FONT, va='center', parse_math=False)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _place(axes, text, x, y, color, width, height, taken) -> None:
    """A label inside the image, moved down from others; left out where there is no room."""
    light = np.dot(color, (0.299, 0.587, 0.114)) > 140
    label = axes.text(x, y, text, fontsize=FONT, va='top', ha='left', parse_math=False,
                      color='black' if light else 'white',
                      bbox=dict(facecolor=_unit(color), edgecolor='none', pad=1.5, alpha=0.85))
    extent = label.get_window_extent()
    wide, high = extent.width + 4, extent.height + 4
    x = min(max(x, 2), max(width - wide, 2))
    first = min(max(y, 2), height - high)
    for y in np.arange(first, height - high + 1, high / 2):
        if y < 0:
            break
        if all(x + wide <= left or left + w <= x or y + high <= top or top + h <= y
               for left, top, w, h in taken):
            label.set_position((x, y))
            taken.append((x, y, wide, high))
            return
    label.remove()


def _blend(image: np.ndarray, mask: np.ndarray, color, opacity: float) -> None:
    image[mask] = np.rint((1 - opacity) * image[mask] + opacity * np.asarray(color))


def _inmost(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) that is farthest from the border of a mask, and from that of the image."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x) - 1, int(y) - 1


def _unit(color) -> tuple[float, ...]:
    return tuple(value / 255 for value in color)
