"""Files that are whole or not there: written aside, synced, renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from .config import UsageError

NAME = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Whoever reads `path`, at any moment, a power cut included, finds the old content or the new, never a part."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(folder: Path) -> bool:
    return (folder / NAME).exists()


def save(folder: Path, state: dict[str, Any]) -> None:
    write_atomically(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """The state saved in a run's folder.

    Raises:
        UsageError: no checkpoint there, or a file that is none.
    """
    path = folder / NAME
    if not path.exists():
        raise UsageError(f"run: expected a folder with a {NAME}, got '{folder}'")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises zip, pickle and runtime errors alike
        raise UsageError(
            f"run: expected a checkpoint of fastddpm in '{path}', got a file that can't be read: {error}"
        ) from None
