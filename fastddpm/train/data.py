"""Data sets, held in memory as one tensor `[N, C, H, W]`, uint8 or float32 in [-1, 1]; and the order of the batches."""

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import CHANNELS, UsageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def load_images(data: str, image_size: int | None = None, channels: str | None = None) -> Tensor:
    """The images of "digits", of a folder, or of a .npy file.

    Args:
        data: "digits" (scikit-learn's 1797 handwritten digits of 8x8), a folder (searched to any depth), or FILE.npy.
        image_size: for a folder: the side of the square that every image is resized and cut to; None is 32.
        channels: for a folder: "grey" or "rgb"; None is "rgb".

    Returns:
        `[N, C, H, W]`, C 1 or 3: uint8, or float32 in [-1, 1].

    Raises:
        UsageError: data that isn't there or can't be used, and why.
    """
    path = Path(data)
    if data != "digits" and path.is_dir():
        return _load_folder(path, image_size or 32, channels or "rgb")
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


def fingerprint(images: Tensor) -> str:
    """A digest of shape, dtype and content, so that a resumed run can tell that it sees the same data."""
    digest = hashlib.sha256(f"{images.dtype} {list(images.shape)}".encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


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


def _load_folder(folder: Path, size: int, channels: str) -> Tensor:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"data: expected images ({' '.join(SUFFIXES)}) in the folder, got none in '{folder}'")
    decoded = [_decode(path, size, channels) for path in paths]
    images = [image for image in decoded if image is not None]
    if not images:
        raise UsageError(f"data: expected images that can be read, got {len(paths)} broken files in '{folder}'")
    if len(images) < len(paths):
        warnings.warn(f"{len(paths) - len(images)} of {len(paths)} files in '{folder}' were skipped", stacklevel=2)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _decode(path: Path, size: int, channels: str) -> np.ndarray | None:
    """uint8 `[size, size, C]`: the shorter side resized, the centre cut out. None, with a warning, of a broken file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if channels == "grey" else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what pillow's decoders raise
        warnings.warn(f"skipped '{path}', which can't be read as an image: {error}", stacklevel=2)
        return None
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, CHANNELS[channels])


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
