"""Data sets, held in memory as one tensor `[N, C, H, W]`, uint8 or float32 in [-1, 1], or a folder that is decoded as it is
needed; their labels, where they have some; and the order of the batches."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import randn
from .config import CHANNELS, UsageError
from .folder import FILES, ImageFolder, channels_first, decode, files_in

IN_MEMORY = 64 << 20
"""Up to so many bytes of pixels a folder's images are decoded once and held."""


class Data(NamedTuple):
    """Images, and their classes where they have some.

    Attributes:
        images: `[N, C, H, W]`, uint8 or float32 in [-1, 1]; or a folder of so many.
        labels: int64 `[N]`, places in `classes`; None without.
        classes: their names.
    """

    images: Tensor | ImageFolder
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def first(self, count: int | None) -> "Data":
        images = self.images[:count] if isinstance(self.images, Tensor) else self.images.first(count)
        return self._replace(images=images, labels=None if self.labels is None else self.labels[:count])

    def to(self, device: torch.device) -> "Data":
        """What is held in memory, in the device's."""
        if not isinstance(self.images, Tensor):
            return self
        return self._replace(images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device))

    def batches(self, indices: Iterable[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The images and labels of each batch, in order."""
        for places, images in self._found(indices, workers):
            yield images, None if self.labels is None else self.labels[places]

    def _found(self, indices: Iterable[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self.images, Tensor):
            return ((batch, self.images[batch]) for batch in indices)
        return self.images.batches(indices, workers)


def load(data: str, image_size: int | None = None, channels: str | None = None, labelled: bool = False) -> Data:
    """The images of `load_images`, and if `labelled` their labels: of digits, or of a folder that holds one sub-folder a class,
    the classes sorted by name.

    Raises:
        UsageError: data that isn't there or can't be used, or has no labels, and why.
    """
    path = Path(data)
    if data != "digits" and path.is_dir():
        return _load_folder(path, image_size or 32, channels or "rgb", labelled)
    if not labelled:
        return Data(load_images(data, image_size, channels))
    if data == "digits":
        return Data(load_images(data, image_size, channels), _digits_labels(), tuple("0123456789"))
    expected = "'digits' or a folder with one sub-folder a class, for a class-conditional run"
    raise UsageError(f"data: expected {expected}, got {data!r} ({_what_is(path)})")


def load_images(data: str, image_size: int | None = None, channels: str | None = None) -> Tensor | ImageFolder:
    """The images of "digits", of a folder, or of a .npy file.

    Args:
        data: "digits" (scikit-learn's 1797 handwritten digits of 8x8), a folder (searched to any depth), or FILE.npy.
        image_size: for a folder: the side of the square that every image is resized and cut to; None is 32.
        channels: for a folder: "grey" or "rgb"; None is "rgb".

    Returns:
        `[N, C, H, W]`, C 1 or 3: uint8, or float32 in [-1, 1]; or a folder of more than IN_MEMORY.

    Raises:
        UsageError: data that isn't there or can't be used, and why.
    """
    path = Path(data)
    if data != "digits" and path.is_dir():
        return _load_folder(path, image_size or 32, channels or "rgb", labelled=False).images
    if image_size is not None or channels is not None:
        raise UsageError(f"image_size, channels: expected only with a folder of images, got them with data {data!r}")
    if data == "digits":
        return _load_digits()
    if path.suffix == ".npy" and path.is_file():
        return _load_npy(path)
    raise UsageError(f"data: expected 'digits', a folder of images or a .npy file, got {data!r} ({_what_is(path)})")


def as_float(images: Tensor) -> Tensor:
    """float32 in [-1, 1] from a batch of either kind."""
    return images if images.is_floating_point() else images.float().div_(127.5).sub_(1)


def fingerprint(data: Data) -> str:
    """By which a resumed run can tell that it sees the same data: a digest of shape, dtype and content; of a folder that is not
    held in memory one of its files' names and sizes."""
    return _digest(data) if isinstance(data.images, Tensor) else data.images.fingerprint()


def has_digest(data: Data, saved: str) -> bool:
    """Whether a folder is what a run of before, which held every folder in memory, took this fingerprint of."""
    return not isinstance(data.images, Tensor) and not saved.startswith(FILES) and _digest(data) == saved


def _digest(data: Data) -> str:
    """Of shape, dtype and content. A folder is decoded image by image."""
    if isinstance(data.images, Tensor):
        dtype, images = data.images.dtype, iter((data.images,))
    else:
        folder = data.images
        dtype, images = torch.uint8, (channels_first([folder[i][1]]) for i in range(len(folder)))
    digest = hashlib.sha256(f"{dtype} {list(data.images.shape)}".encode())
    for image in images:
        digest.update(image.contiguous().numpy().data)
    if data.labels is not None:
        digest.update(f"{data.classes} {data.labels.tolist()}".encode())
    return digest.hexdigest()


def drop_labels(labels: Tensor, key: Tensor, probability: float, no_label: int) -> Tensor:
    """Labels `[B]`, each with that probability replaced by `no_label`: where its key's first normal is below the quantile."""
    quantile = NormalDist().inv_cdf(probability) if probability > 0 else -math.inf
    return torch.where(randn(key, (len(labels), 1))[:, 0] < quantile, no_label, labels)


class BatchOrder:
    """Which images make each batch: an endless row of permutations, one an epoch, cut into batches.

    A batch is a pure function of (seed, step), so a resumed run needs no state of it. Every image comes once an epoch,
    whatever the batch size.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, device: torch.device):
        self.num_images, self.batch_size, self.seed, self.device = num_images, batch_size, seed, device
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def indices(self, step: int) -> Tensor:
        """int64 `[batch_size]`, on the device."""
        parts: list[Tensor] = []
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        while first < last:
            epoch, start = divmod(first, self.num_images)
            parts.append(self._epoch(epoch)[start : start + last - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
        return torch.from_numpy(order).to(self.device)


def _load_digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float().div_(8).sub_(1)[:, None]  # 17 grey levels, 0 .. 16


def _digits_labels() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().target).long()


def _load_folder(folder: Path, size: int, channels: str, labelled: bool) -> Data:
    """Labelled, it is of one sub-folder a class, images at any depth in it."""
    paths = files_in(str(folder))
    beside = next((path for path in paths if labelled and os.path.dirname(path) == str(folder)), None)
    if beside is not None:
        expected = "images in sub-folders alone, one a class, for a class-conditional run"
        raise UsageError(f"data: expected {expected}, got '{os.path.basename(beside)}' in '{folder}' itself")
    images: Tensor | ImageFolder = ImageFolder(str(folder), paths, size, channels)
    if images.shape.numel() <= IN_MEMORY:
        images, paths = _load_files(folder, paths, size, channels)
    if not labelled:
        return Data(images)
    names = [os.path.relpath(path, folder).split(os.sep)[0] for path in paths]
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return Data(images, torch.tensor([places[name] for name in names]), tuple(places))


def _load_files(folder: Path, paths: list[str], size: int, channels: str) -> tuple[Tensor, list[str]]:
    """The images that can be read, and their files."""
    decoded = {path: decode(path, size, channels) for path in paths}
    images = {path: image for path, image in decoded.items() if image is not None}
    if not images:
        raise UsageError(f"data: expected images that can be read, got {len(paths)} broken files in '{folder}'")
    if len(images) < len(paths):
        warnings.warn(f"{len(paths) - len(images)} of {len(paths)} files in '{folder}' were skipped", stacklevel=2)
    return channels_first(list(images.values())), list(images)


def _load_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"data: expected an array of numbers in '{path}', got a file that numpy can't read: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"data: expected one array in '{path}', got an archive of several (.npz)")
    images = _channels_first(path, array)
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    if images.dtype.kind != "f":
        raise UsageError(f"data: expected uint8 or floating values in '{path}', got {images.dtype}")
    _check_range(path, images)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def _channels_first(path: Path, array: np.ndarray) -> np.ndarray:
    shape = list(array.shape)
    if 0 in shape:
        raise UsageError(f"data: expected one image or more in '{path}', got shape {shape}")
    if array.ndim == 3:
        return array[:, None]
    counts = CHANNELS.values()
    first, last = array.ndim == 4 and shape[1] in counts, array.ndim == 4 and shape[3] in counts
    if first == last:
        wanted = "[N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, and no doubt which"
        raise UsageError(f"data: expected shape {wanted}, in '{path}', got {shape}")
    return array if first else array.transpose(0, 3, 1, 2)


def _check_range(path: Path, images: np.ndarray) -> None:
    broken = ~np.isfinite(images).reshape(len(images), -1).all(1)
    if broken.any():
        raise UsageError(f"data: expected finite values in '{path}', got NaN or infinity, first in image {broken.argmax()}")
    low, high = float(images.min()), float(images.max())
    if low < -1 or high > 1:
        raise UsageError(f"data: expected floating values in [-1, 1] in '{path}', got {low:g} .. {high:g} (or save uint8)")
    if low >= 0:
        raise UsageError(f"data: expected floating values over [-1, 1] in '{path}', got {low:g} .. {high:g}: scale by 2 x - 1")


def _what_is(path: Path) -> str:
    return "no such file" if not path.exists() else "another kind of file"
