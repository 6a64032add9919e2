"""lucidrains' package: the installed one, or the newest `lucidrains-VERSION` in the folder that FASTDDPM_PEERS names.

Its modules want torchvision to read and write images with, which no test does: a stand-in is there while they are imported.
"""

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

NAME = "denoising_diffusion_pytorch"
NEEDED = (NAME, "accelerate", "einops", "ema_pytorch", "scipy")
TRANSFORMS = ("Compose", "Lambda", "Resize", "RandomHorizontalFlip", "CenterCrop", "ToTensor")


def module(name=""):
    """A module of the package. Skips the module that calls where something is missing."""
    unpacked = sorted(Path(os.environ.get("FASTDDPM_PEERS", "nowhere")).glob("lucidrains-*"))
    if not find_spec(NAME) and unpacked:
        sys.path.append(str(unpacked[-1]))
    missing = [needed for needed in NEEDED if not find_spec(needed)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)
    absent = not find_spec("torchvision")
    if absent:
        sys.modules["torchvision"] = _torchvision()
    try:
        return importlib.import_module(f"{NAME}.{name}" if name else NAME)
    finally:
        if absent:
            del sys.modules["torchvision"]


def _torchvision():
    made = ModuleType("torchvision")
    made.transforms = SimpleNamespace(**dict.fromkeys(TRANSFORMS, _nothing))
    made.utils = SimpleNamespace(save_image=_nothing)
    return made


def _nothing(*given, **named):
    """No transform, and no picture."""
