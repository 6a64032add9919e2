"""A run's checkpoints; and files that are whole or not there: written aside, synced, renamed."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from . import state_file
from .config import UsageError

NAME = "checkpoint.safetensors"
OLD_NAME = "checkpoint.pt"
"""What runs of before left, in torch's own format."""
_NUMBERED = re.compile(r"checkpoint-(\d+)\.safetensors")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Whoever reads `path`, at any moment, a power cut included, finds the old content or the new, never a part.

    Raises:
        OSError: naming `path`, which is what it was (the disk is full, for one).
    """
    aside = path.with_name(path.name + ".tmp")
    aside.unlink(missing_ok=True)
    try:
        with open(aside, "xb") as file:  # no link that lies there is followed
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror:
            raise OSError(error.errno, f"{error.strerror}, so this was left as it was", str(path)) from None
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(folder: Path) -> bool:
    return any((folder / name).exists() for name in (NAME, OLD_NAME))


def save(folder: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Writes the run's checkpoint. Of `keep` above 1 the last ones stay, as checkpoint-STEP.safetensors too."""
    content = state_file.to_bytes(state)
    write_atomically(folder / NAME, lambda file: file.write(content))
    (folder / OLD_NAME).unlink(missing_ok=True)
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))}
    if keep > 1:
        numbered[state["step"]] = _linked(folder, state["step"])
    last = sorted(step for step in numbered if step <= state["step"])[-keep:] if keep > 1 else []
    for step in numbered.keys() - set(last):  # a run that was gone back in has later ones
        numbered[step].unlink()


def _linked(folder: Path, step: int) -> Path:
    """The checkpoint by another name: one file, until the next is saved."""
    path = folder / f"checkpoint-{step}.safetensors"
    path.unlink(missing_ok=True)
    os.link(folder / NAME, path)
    return path


def load(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """The state saved in a run's folder.

    Raises:
        UsageError: no checkpoint there, or a file that is none.
    """
    read = {NAME: state_file.read, OLD_NAME: _read_old}
    name = next((name for name in read if (folder / name).exists()), None)
    if name is None:
        raise UsageError(f"run: expected a folder with a {NAME}, got '{folder}'")
    try:
        return read[name](folder / name, device)
    except Exception as error:  # safetensors, json, zip and pickle all raise their own
        raise UsageError(
            f"run: expected a checkpoint of fastddpm in '{folder / name}', got a file that can't be read: {error}"
        ) from None


def _read_old(path: Path, device: torch.device | str) -> dict[str, Any]:
    state = torch.load(path, map_location=device, weights_only=True)
    return {**state, "generators": [state["generators"]]}  # of one rank
