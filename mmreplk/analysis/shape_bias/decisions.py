"""Shape bias: does a classifier go by shape or by texture, where the two disagree?

After Geirhos et al., ImageNet-trained CNNs are biased towards texture; increasing shape bias
improves accuracy and robustness (ICLR 2019). A cue-conflict image has the shape of one of 16
categories and the texture of another. Of the answers that name either::

    shape bias = answers that name the shape / (answers that name the shape or the texture)

Images whose shape and texture are of one category hold no conflict and are left out. The answers
are read from files as MMPretrain's ``ShapeBiasMetric`` writes them, which is also the format of the
published answers of people and of other networks (the authors' model-vs-human).
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

COLUMNS = ('subj', 'object_response', 'category', 'imagename')
ALL = 'all'
# "cat7-bird2.png", with anything and an underscore before it.
_NAME = re.compile(r'(?:.*_)?(?P<shape>[a-z]+)\d+-(?P<texture>[a-z]+)\d+\.\w+')


@dataclass
class Counts:
    """Answers to images of conflict.

    Attributes:
        shape (int): Those that name the shape.
        texture (int): Those that name the texture.
        other (int): Those that name neither.
    """
    shape: int = 0
    texture: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All answers."""
        return self.shape + self.texture + self.other

    @property
    def bias(self) -> float | None:
        """The shape bias, from 0 to 1; None if no answer names shape or texture."""
        decided = self.shape + self.texture
        return self.shape / decided if decided else None


@dataclass
class Decisions:
    """The answers of one network, or of one group of subjects.

    Attributes:
        categories (dict[str, Counts]): By the category of the shape, in alphabetical order.
    """
    categories: dict[str, Counts] = field(default_factory=dict)

    @property
    def overall(self) -> Counts:
        """The sum over the categories."""
        counts = self.categories.values()
        return Counts(sum(c.shape for c in counts), sum(c.texture for c in counts),
                      sum(c.other for c in counts))

    def add(self, shape: str, texture: str, answer: str) -> None:
        """Count one answer; one to a image without a conflict is left out.

        Args:
            shape (str): The category of the shape.
            texture (str): That of the texture.
            answer (str): The category that was named.
        """
        if shape == texture:
            return
        counts = self.categories.setdefault(shape, Counts())
        what = 'shape' if answer == shape else 'texture' if answer == texture else 'other'
        setattr(counts, what, getattr(counts, what) + 1)


def parse_image_name(name: str) -> tuple[str, str]:
    """The categories of a cue-conflict image.

    Args:
        name (str): Such as ``cat7-bird2.png``.

    Returns:
        tuple[str, str]: Of the shape and of the texture.

    Raises:
        ValueError: If the name is of another form.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f'{name!r} does not name a shape and a texture, as cat7-bird2.png does')
    return found['shape'], found['texture']


def parse_groups(arguments: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=PATTERN`` as often as it is given.

    Args:
        arguments (Iterable[str]): Such as ``people=subject-*``.

    Returns:
        dict[str, str]: Names to patterns.

    Raises:
        ValueError: If one is of another form, or a name comes twice.
    """
    groups = {}
    for argument in arguments:
        name, equals, pattern = argument.partition('=')
        if not equals or not name or not pattern or name in groups:
            raise ValueError(f'group {argument}: give NAME=PATTERN, each name once, such as '
                             'people=subject-*.')
        groups[name] = pattern
    return groups


class _Answer(NamedTuple):
    """One row of a file."""
    subject: str
    answer: str
    image: str
    shape: str
    texture: str


def read_decisions(paths: Iterable[str], groups: dict[str, str] | None = None
                   ) -> dict[str, Decisions]:
    """Read the answers of networks or people.

    Several files of one subject are its sessions, and count together; no image may come twice.

    Args:
        paths (Iterable[str]): CSV files.
        groups (dict[str, str], optional): Names to patterns of subjects that count as one, with the
            wildcards of file names. Defaults to None.

    Returns:
        dict[str, Decisions]: By subject or group, in the order of the files.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is no such file; the message names it and the line. Also if a subject
            answers a image twice, or a group matches nobody.
    """
    groups = groups or {}
    found: dict[str, Decisions] = {}
    seen, used = set(), set()
    for path in paths:
        for line, row in _read(path):
            # Two networks of one name would be mixed up in silence.
            if (row.subject, row.image) in seen:
                raise ValueError(
                    f'CSV {path}, line {line}: {row.subject} answers {row.image} a second time. '
                    'Give each file once, and evaluate each network under a model_name of its own.')
            seen.add((row.subject, row.image))
            group = next((name for name, pattern in groups.items()
                          if fnmatchcase(row.subject, pattern)), None)
            used.add(group)
            decisions = found.setdefault(group or row.subject, Decisions())
            decisions.add(row.shape, row.texture, row.answer)
    for name, pattern in groups.items():
        if name not in used:
            raise ValueError(f'group {name}={pattern}: matches no subject; there are '
                             f'{", ".join(sorted(found))}.')
    for name, decisions in found.items():
        if not decisions.categories:
            raise ValueError(f'CSV: {name} has no answer to a picture with a conflict.')
        decisions.categories = dict(sorted(decisions.categories.items()))
    return found


def _read(path: str) -> Iterator[tuple[int, _Answer]]:
    """The answers of a file with the numbers of their lines."""
    with open(path, encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file)
        try:
            columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
            missing = [name for name in COLUMNS if name not in columns]
            if missing:
                raise ValueError(f'CSV {path}: has no column {", ".join(missing)}. Name files as '
                                 'the ShapeBiasMetric of MMPretrain writes them.')
            for row in reader:
                subject, answer, category, image = (
                    (row[columns[name]] or '').strip() for name in COLUMNS)
                where = f'CSV {path}, line {reader.line_num}'
                try:
                    shape, texture = parse_image_name(image)
                except ValueError as error:
                    raise ValueError(f'{where}: {error}.') from None
                if shape != category:
                    raise ValueError(
                        f'{where}: {image} has the shape {shape}, but lies in the folder of '
                        f'{category}. Sort the pictures into the folders of their shapes.')
                yield reader.line_num, _Answer(subject, answer, image, shape, texture)
        except (UnicodeDecodeError, csv.Error):
            raise ValueError(f'CSV {path}: is no text.') from None
    if reader.line_num < 2:
        raise ValueError(f'CSV {path}: has no answers. Was the evaluation cut off?')


def format_table(found: dict[str, Decisions]) -> str:
    """Shape bias by category of the shape, and over all images.

    Args:
        found (dict[str, Decisions]): By name.

    Returns:
        str: Several lines.
    """
    categories = categories_of(found)
    width = max(map(len, (*categories, 'names shape or texture')))
    columns = [max(len(name), 7) for name in found]

    def line(title, cells):
        return title.ljust(width) + ''.join(
            f'  {cell:>{size}}' for cell, size in zip(cells, columns, strict=True))

    def percent(value):
        return '-' if value is None else f'{100 * value:.1f}'

    def per_model(value):
        return [value(decisions) for decisions in found.values()]

    rule = '-' * len(line('', found))
    rows = [line(category, per_model(lambda d, c=category: percent(
        d.categories.get(c, Counts()).bias))) for category in categories]
    overall = per_model(lambda d: d.overall)
    return '\n'.join([
        'Shape bias in %: answers that name the shape, of those that name shape or texture', '',
        line('', found), rule, *rows, rule, line(ALL, [percent(c.bias) for c in overall]), '',
        line('pictures', [str(c.total) for c in overall]),
        line('names the shape, %', [percent(c.shape / c.total) for c in overall]),
        line('names the texture, %', [percent(c.texture / c.total) for c in overall])])


def categories_of(found: dict[str, Decisions]) -> list[str]:
    """All categories of shapes, in alphabetical order."""
    return sorted({category for decisions in found.values() for category in decisions.categories})


def format_csv(found: dict[str, Decisions]) -> str:
    """All counts as CSV with a header.

    Args:
        found (dict[str, Decisions]): By name.

    Returns:
        str: A row for each name and category, and one for ``all``; the bias from 0 to 1, empty
        where no answer names shape or texture.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['name', 'category', 'shape', 'texture', 'other', 'shape_bias'])
    for name, decisions in found.items():
        for category, counts in (*decisions.categories.items(), (ALL, decisions.overall)):
            bias = '' if counts.bias is None else f'{counts.bias:.6f}'
            writer.writerow([name, category, counts.shape, counts.texture, counts.other, bias])
    return text.getvalue()
