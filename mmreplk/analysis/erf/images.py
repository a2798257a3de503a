"""Images for the effective receptive field: a folder's, or generated ones; one at a time."""

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

COLORS = 3
ARRAYS = '.npy'
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


class FolderImages:
    """Images of a folder, resized to squares without regard to their shape, as in the paper.

    Of more images than are wanted, every n-th in the order of their names is taken, so that class
    folders are all represented. For a network whose images are no color images, see
    :meth:`for_channels`.

    Args:
        folder (str): Searched with its subfolders.
        count (int): The largest number of images.
        size (int): Side of the squares in pixels.
        channels (int): Channels of the images. Defaults to 3, colors.

    Attributes:
        paths (list[str]): The images.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If one of the images is none.
    """

    def __init__(self, folder: str, count: int, size: int, channels: int = COLORS):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f'images: no such folder {folder!r}. Name a folder of '
                                    'pictures, or leave images out to use generated ones.')
        found = sorted(
            os.path.join(place, name)
            for place, _, names in os.walk(folder, followlinks=True) for name in names
            if name.lower().endswith((*SUFFIXES, ARRAYS)))
        arrays = [path for path in found if path.lower().endswith(ARRAYS)]
        pictures = [path for path in found if path not in set(arrays)]
        found = (pictures or arrays) if channels == COLORS else (arrays or pictures)
        if not found:
            raise FileNotFoundError(f'images: {folder!r} holds no picture '
                                    f'({", ".join((*SUFFIXES, ARRAYS))}).')
        chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
        self.paths = [found[index] for index in chosen]
        self.folder, self.size, self.available = folder, size, len(found)
        self.count, self.channels = count, channels
        self._channels = [_channels_of(path) for path in self.paths]

    def for_channels(self, channels: int) -> 'FolderImages':
        """The images of the folder for a network whose images have so many channels.

        Three are red, green and blue; one is gray. Others come from arrays (H, W, channels) of
        numbers, files of NumPy (.npy) in the network's order of channels, or from images that
        have as many.

        Raises:
            ValueError: If the folder has no such images.
        """
        other = FolderImages(self.folder, self.count, self.size, channels)
        for path, found in zip(other.paths, other._channels, strict=True):
            converted = channels in (1, COLORS) and not path.lower().endswith(ARRAYS)
            if found != channels and not converted:
                raise ValueError(
                    f'images: {path!r} has {found} channel{"s" * (found > 1)}, but the network '
                    f'takes images of {channels}. Name a folder of arrays (H, W, {channels}) in '
                    'files of NumPy (.npy), or leave images out: pictures are then generated '
                    'with as many channels as a network takes.')
        return other

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (size, size, channels): RGB or gray, uint8, or what arrays hold, float32."""
        for path in self.paths:
            yield _read(path, self.size, self.channels)

    def __str__(self) -> str:
        return f'{len(self)} of the {self.available} pictures in {self.folder}'


def _channels_of(path: str) -> int:
    """The channels of a file; raises ValueError if it holds no image."""
    try:
        if path.lower().endswith(ARRAYS):
            array = np.load(path, mmap_mode='r', allow_pickle=False)
            if array.ndim != 3 or array.dtype.kind not in 'buif' or not array.size:
                raise ValueError(f'an array {array.shape} of {array.dtype}, not (H, W, channels) '
                                 'of numbers')
            return array.shape[2]
        with Image.open(path) as image:
            return len(image.getbands())
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f'images: {path!r} cannot be read as a picture ({error}). Remove it, or '
                         'name another folder.') from error


def _read(path: str, size: int, channels: int) -> np.ndarray:
    if path.lower().endswith(ARRAYS):
        array = np.load(path, allow_pickle=False).astype(np.float32)
        planes = [Image.fromarray(plane).resize((size, size), Image.BICUBIC)
                  for plane in np.ascontiguousarray(array.transpose(2, 0, 1))]
        return np.stack([np.array(plane) for plane in planes], -1)
    with Image.open(path) as image:
        if channels in (1, COLORS):
            image = image.convert('RGB' if channels == COLORS else 'L')
        small = np.array(image.resize((size, size), Image.BICUBIC))
    return small if small.ndim == 3 else small[..., None]


class GeneratedImages:
    """Random images whose amplitudes fall as 1/f, as those of photographs do (Field, 1987).

    They have no objects in them. What they measure is how a network passes gradients, roughly as
    for photographs, but not how it reacts to what it was trained on.

    Args:
        count (int): How many; the same ones every time.
        size (int): Their side in pixels.
        channels (int): Their channels. Defaults to 3, colors.
    """

    def __init__(self, count: int, size: int, channels: int = COLORS):
        self.count, self.size, self.channels = count, size, channels

    def for_channels(self, channels: int) -> 'GeneratedImages':
        """As many images for a network whose images have so many channels."""
        return GeneratedImages(self.count, self.size, channels)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (size, size, channels), uint8."""
        for index in range(self.count):
            yield generate_image(index, self.size, self.channels)

    def __str__(self) -> str:
        what = '' if self.channels == COLORS else f' of {self.channels} channel'
        what += 's' if what and self.channels > 1 else ''
        return f'{self.count} generated pictures{what} with the 1/f spectrum of photographs'


def generate_image(seed: int, size: int, channels: int = COLORS) -> np.ndarray:
    """One image of :class:`GeneratedImages`.

    Args:
        seed (int): Which.
        size (int): Its side in pixels.
        channels (int): Its channels. Defaults to 3, colors.

    Returns:
        np.ndarray: (size, size, channels), uint8.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # the mean is set below
    # Colors differ less than brightness does.
    noise = rng.standard_normal((1, size, size)) + 0.3 * rng.standard_normal(
        (channels, size, size))
    waves = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(size, size))
    waves *= 55 / max(waves.std(), 1e-9)
    return np.clip(waves + 118, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
