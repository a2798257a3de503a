"""Published weights as files: from their address, from another one, or from a folder."""

import hashlib
import os
import os.path as osp
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch

from ..paths import is_remote

_CHUNK = 2**20


def fetch(url: str, weights_from: str | os.PathLike | None = None,
          cache_dir: str | os.PathLike | None = None) -> str:
    """The file of published weights, whole: its hash is that in its name.

    Args:
        url (str): Its address, ``.../NAME-HASH.pth``, with the first digits of the file's SHA-256.
            A name without a hash is taken as it is.
        weights_from (str | PathLike, optional): A folder that holds the file, or another address
            under which it is found. Defaults to None, its own.
        cache_dir (str | PathLike, optional): Where to keep what is downloaded. Defaults to None,
            the folder of ``torch.hub``.

    Returns:
        str: Its path.

    Raises:
        ConnectionError: If it cannot be downloaded.
        FileNotFoundError: If the folder does not hold it.
        ValueError: If its hash is another.
    """
    name = osp.basename(urlparse(url).path)
    found = torch.hub.HASH_REGEX.search(name)
    digest = found[1] if found else ''
    if weights_from is not None:
        place = osp.expanduser(os.fspath(weights_from))
        if not is_remote(place):
            return _in_folder(place, name, digest)
        url = f'{place.rstrip("/")}/{name}'
    folder = cache_dir or osp.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    path = osp.join(folder, name)
    if osp.isfile(path) and _sha256(path).startswith(digest):
        return path
    remedy = (f'Name a folder or an address that holds {name}: create_model(..., '
              'weights_from=PLACE)')
    try:
        torch.hub.download_url_to_file(url, path, digest, progress=sys.stderr.isatty())
    except RuntimeError as error:  # of the hash
        raise ValueError(f'{url} is not the published file: {error}. {remedy}') from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, 'reason', None) or error
        raise ConnectionError(f'{url} cannot be fetched ({reason}). {remedy}') from None
    return path


def _in_folder(folder: str, name: str, digest: str) -> str:
    path = osp.join(folder, name)
    if not osp.isfile(path):
        raise FileNotFoundError(f'weights_from={folder!r}: holds no {name}; name the folder or the '
                                'address that does')
    actual = _sha256(path)
    if not actual.startswith(digest):
        raise ValueError(f'weights_from={folder!r}: {name} is not the published file, its SHA-256 '
                         f'begins with {actual[:len(digest)]}. Weights of your own: create_model('
                         '..., pretrained_cfg_overlay=dict(file=FILE))')
    return path


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
