"""Pictures for the effective receptive field: a folder's, or generated ones; one at a time."""

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


class FolderImages:
    """Pictures of a folder, resized to squares without regard to their shape, as in the paper.

    Of more pictures than are wanted, every n-th in the order of their names is taken, so that class
    folders are all represented.

    Args:
        folder (str): Searched with its subfolders.
        count (int): The largest number of pictures.
        size (int): Side of the squares in pixels.

    Attributes:
        paths (list[str]): The pictures.

    Raises:
        FileNotFoundError: If there is no such folder, or no picture in it.
        ValueError: If one of the pictures is none.
    """

    def __init__(self, folder: str, count: int, size: int):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f'--images: no such folder {folder!r}. Name a folder of '
                                    'pictures, or leave --images out to use generated ones.')
        found = sorted(
            os.path.join(place, name)
            for place, _, names in os.walk(folder, followlinks=True) for name in names
            if name.lower().endswith(SUFFIXES))
        if not found:
            raise FileNotFoundError(f'--images: {folder!r} holds no picture '
                                    f'({", ".join(SUFFIXES)}).')
        chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
        self.paths = [found[index] for index in chosen]
        self.folder, self.size, self.available = folder, size, len(found)
        for path in self.paths:
            _check_picture(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (size, size, 3) RGB, uint8."""
        for path in self.paths:
            with Image.open(path) as image:
                small = image.convert('RGB').resize((self.size, self.size), Image.BICUBIC)
            yield np.array(small)

    def __str__(self) -> str:
        return f'{len(self)} of the {self.available} pictures in {self.folder}'


def _check_picture(path: str) -> None:
    try:
        Image.open(path).close()
    except OSError as error:
        raise ValueError(f'--images: {path!r} cannot be read as a picture ({error}). Remove it, or '
                         'name another folder.') from error


class GeneratedImages:
    """Random pictures whose amplitudes fall as 1/f, as those of photographs do (Field, 1987).

    They have no objects in them. What they measure is how a network passes gradients, roughly as
    for photographs, but not how it reacts to what it was trained on.

    Args:
        count (int): How many; the same ones every time.
        size (int): Their side in pixels.
    """

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (size, size, 3) RGB, uint8."""
        for index in range(self.count):
            yield generate_image(index, self.size)

    def __str__(self) -> str:
        return f'{self.count} generated pictures with the 1/f spectrum of photographs'


def generate_image(seed: int, size: int) -> np.ndarray:
    """One picture of :class:`GeneratedImages`.

    Args:
        seed (int): Which.
        size (int): Its side in pixels.

    Returns:
        np.ndarray: (size, size, 3), uint8.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # the mean is set below
    # Colours differ less than brightness does.
    noise = rng.standard_normal((1, size, size)) + 0.3 * rng.standard_normal((3, size, size))
    waves = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(size, size))
    waves *= 55 / max(waves.std(), 1e-9)
    return np.clip(waves + 118, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
