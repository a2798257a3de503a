"""From names of networks to a folder of results: what ``tools/erf.py`` does."""

import os
import os.path as osp
import re

import numpy as np
import torch

from .images import COLORS, FolderImages, GeneratedImages
from .models import ErfModel, ModelSpec, open_model
from .plot import draw_heat_maps, draw_table
from .report import RANDOM_NOTE, format_csv, format_table, measure
from .stages import StageError

SMALLEST = 32  # pixels


def open_pictures(folder: str | None, count: int, size: int) -> FolderImages | GeneratedImages:
    """Find the images to measure on, or make some.

    Args:
        folder (str, optional): Of images; None for generated ones.
        count (int): How many at most.
        size (int): Side of the squares that they are resized to, in pixels.

    Returns:
        FolderImages | GeneratedImages: They are read one at a time.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it.
        ValueError: If a number is out of range, or a image cannot be read.
    """
    if count < 1:
        raise ValueError(f'num_images {count}: give a positive number.')
    if size < SMALLEST:
        raise ValueError(f'size {size}: give at least {SMALLEST} pixels.')
    return FolderImages(folder, count, size) if folder else GeneratedImages(count, size)


def describe(pictures: FolderImages | GeneratedImages, wanted: int) -> list[str]:
    """Lines for the user about images that are not what was, or should be, asked for.

    Args:
        pictures (FolderImages | GeneratedImages): The images.
        wanted (int): How many were asked for.

    Returns:
        list[str]: At most one.
    """
    if isinstance(pictures, GeneratedImages):
        return [f'No images, so {pictures} are used. Published figures are of photographs.']
    if len(pictures) < wanted:
        return [f'images: {pictures.folder} holds {len(pictures)} pictures, not {wanted}: all '
                'of them are used.']
    return []


def check_models(specs: list[ModelSpec], size: int, pretrained: bool = False,
                 cfg_options: dict | None = None,
                 pictures: FolderImages | GeneratedImages | None = None) -> list[str]:
    """Build every network once, so that mistakes show before hours of work.

    Args:
        specs (list[ModelSpec]): The networks.
        size (int): Side of the images.
        pretrained (bool): As of :func:`.models.open_model`. Defaults to False.
        cfg_options (dict, optional): As there.
        pictures (FolderImages | GeneratedImages, optional): What is to be measured on, to check
            that networks take them. Defaults to None.

    Returns:
        list[str]: A line if there are random weights, and for each network that takes no color
        images one about the images for it.

    Raises:
        ImportError: As of :func:`.models.open_model`.
        FileNotFoundError: As there.
        ValueError: As there, and if ``cfg_options`` have no config.
    """
    if cfg_options and all(spec.zoo for spec in specs):
        raise ValueError('cfg_options: none of the models is a config; leave it out.')
    if pretrained and all(spec.checkpoint for spec in specs):
        raise ValueError('pretrained: every model has a CHECKPOINT; leave it out.')
    files = [_file_name(spec.name) for spec in specs]
    for name in files:
        if files.count(name) > 1 or name in RESERVED:
            raise ValueError(f'name: the files of a model would be called {name}; give another '
                             'name.')
    random, notes = [], []
    for spec in specs:
        model = open_model(spec, size, pretrained, cfg_options)
        if pictures is not None:
            notes += _fit(spec, model, pictures)[1]
        try:
            model.check_stage(size)
        except StageError as error:
            raise ValueError(f'MODEL {spec.source}: {error}.') from error
        if model.weights == 'random':
            random.append(spec.name)
    return notes + ([f'Warning: {", ".join(random)}: {RANDOM_NOTE}.'] if random else [])


def _fit(spec: ModelSpec, model: ErfModel, pictures: FolderImages | GeneratedImages
         ) -> tuple[FolderImages | GeneratedImages, list[str]]:
    """The images with as many channels as a network takes, and a line if it takes no colors."""
    try:
        fitting = pictures.for_channels(model.channels)
    except ValueError as error:
        raise ValueError(f'MODEL {spec.source}: {error}') from error
    if model.channels == COLORS:
        return fitting, []
    return fitting, [f'{spec.name} takes images of {model.channels} channel'
                     f'{"s" * (model.channels > 1)}: it is measured on {fitting}.']


RESERVED = ('erf', 'maps', 'table')


def _file_name(name: str) -> str:
    return re.sub(r'[^\w.+-]+', '_', name).strip('_.') or 'model'


def run(specs: list[ModelSpec], pictures: FolderImages | GeneratedImages, out: str,
        device: str | None = None, pretrained: bool = False, cfg_options: dict | None = None
        ) -> str:
    """Measure networks one after the other and write what comes out.

    A matrix is written as soon as it is there, tables and images at the end.

    Args:
        specs (list[ModelSpec]): The networks.
        pictures (FolderImages | GeneratedImages): What to measure on.
        out (str): Folder for the results.
        device (str, optional): Where to run. Defaults to None, a GPU if there is one.
        pretrained (bool): As of :func:`.models.open_model`. Defaults to False.
        cfg_options (dict, optional): As there.

    Returns:
        str: The table, and where the files are.

    Raises:
        FileExistsError: If a file exists by then.
        ValueError: If a network cannot be measured.
    """
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    results = []
    for spec in specs:
        model = open_model(spec, pictures.size, pretrained, cfg_options)
        results.append(measure(spec, model, _fit(spec, model, pictures)[0], device))
        del model  # the next one may need its memory
        _write(out, f'{_file_name(spec.name)}.npy', _saver(results[-1].matrix))
    for result in results:
        _write(out, f'{_file_name(result.spec.name)}.png', _drawer(draw_heat_maps, [result]))
    if len(results) > 1:
        _write(out, 'maps.png', _drawer(draw_heat_maps, results))
    _write(out, 'table.png', _drawer(draw_table, results))
    _write(out, 'erf.csv', _text(format_csv(results)))
    return f'{format_table(results)}\n\nMatrices, heat maps and table: {out}'


def _write(folder: str, name: str, write) -> None:
    from ...files import write_new
    os.makedirs(folder, exist_ok=True)
    write_new(osp.join(folder, name), write)


def _saver(matrix: np.ndarray):
    return lambda path: np.save(path, matrix)


def _drawer(draw, results):
    return lambda path: draw(results, path)


def _text(text: str):

    def write(path):
        with open(path, 'w', encoding='utf-8', newline='') as file:
            file.write(text)

    return write
