"""A folder of more images than memory should hold: decoded by processes beside the run, a few batches ahead of it."""

import gc
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import CHANNELS, UsageError

FILES = "files:"
"""How the fingerprint of a folder begins."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """Images `[N, C, size, size]`, uint8, of which each is decoded when it is asked for.

    A file that can't be read is told of, and the next one taken in its place: which images make a batch is then still a
    function of (seed, step) and the files.
    """

    def __init__(self, root: str, paths: Sequence[str], size: int, channels: str):
        self.root, self.paths, self.size, self.channels = root, paths, size, channels

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), CHANNELS[self.channels], self.size, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[int, np.ndarray]:
        """Which image it is, and its pixels `[size, size, C]`."""
        for j in (*range(i, len(self)), *range(i)):
            image = decode(self.paths[j], self.size, self.channels)
            if image is not None:
                return j, image
        raise UsageError(f"data: expected images that can be read, got {len(self)} broken files")

    def first(self, count: int | None) -> "ImageFolder":
        return ImageFolder(self.root, self.paths[:count], self.size, self.channels)

    def fingerprint(self) -> str:
        """A digest of the files' names and sizes."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{os.path.relpath(path, self.root)}\0{os.path.getsize(path)}\n".encode(errors="surrogateescape"))
        return FILES + digest.hexdigest()

    def batches(self, indices: Iterable[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch which images they are, and the images, in order."""
        yield from DataLoader(
            self,
            batch_sampler=(batch.tolist() for batch in indices),
            num_workers=workers,
            collate_fn=_stack,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin,
            generator=torch.Generator(),  # torch's own is the network's, for dropout
        )


@contextmanager
def workers_watched() -> Iterator[None]:
    """A worker's death, which torch may tell of at any moment, in one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UsageError(f"data: a process that decodes images died (short of memory?): {error}") from None


def _stack(items: list[tuple[int, np.ndarray]]) -> tuple[Tensor, Tensor]:
    places, images = zip(*items, strict=True)
    return torch.tensor(places), channels_first(images)


def channels_first(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _begin(worker: int) -> None:
    """In a group of its own: Ctrl-C, or a SIGTERM to the run's group, is the run's to answer, which saves in peace."""
    os.setpgid(0, 0)
    gc.freeze()  # a collection would write to the memory that it shares with the run, and so copy it


def files_in(folder: str) -> list[str]:
    """Its images at any depth, in the order of their paths' parts."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    paths = [path for path in paths if os.path.splitext(path)[1].lower() in SUFFIXES]
    if not paths:
        raise UsageError(f"data: expected images ({' '.join(SUFFIXES)}) in the folder, got none in '{folder}'")
    return sorted(paths, key=lambda path: path.replace(os.sep, "\0"))


def decode(path: str, size: int, channels: str) -> np.ndarray | None:
    """uint8 `[size, size, C]`: the shorter side resized, the centre cut out. None, with a warning, of a broken file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = _eight_bits(ImageOps.exif_transpose(image), image.format)
            upright = upright.convert("L" if channels == "grey" else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what pillow's decoders raise
        warnings.warn(f"skipped '{path}', which can't be read as an image: {error}", stacklevel=2)
        return None
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, CHANNELS[channels])


def _eight_bits(image: Any, kind: str | None) -> Any:
    """pillow cuts grey values above 255 off, where those of 16 bits are to be scaled."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode, kind) == ("I", "PNG"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, got pillow's mode {image.mode!r}")
    return image
