"""Where a run takes place, and with what: recorded beside every figure."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from fastddpm import _extension, info

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("fastddpm", "torch", "triton", "numpy", "diffusers", "denoising-diffusion-pytorch", "pytest-benchmark")
HERE = Path(__file__).parent


def backend() -> str:
    """Which code serves the ops here."""
    return info.backend("noising", DEVICE.type)


def has_kernels() -> bool:
    return not backend().startswith("reference")


def mend() -> str:
    """What to do where there are no kernels."""
    why = _extension.reason if DEVICE.type == "cpu" else backend()
    return (
        f"there are no kernels to measure here: {why}. Build them with `pip install --no-build-isolation -e .` (a C++ compiler "
        "is needed), or measure the eager reference with --reference."
    )


def describe() -> dict:
    module = _extension.module
    return {
        "device": device_name(),
        "kind": DEVICE.type,
        "backend": backend(),
        "instruction_set": getattr(module, "isa", None),
        "compiler": getattr(module, "compiler", None),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def device_name() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        models = []
    name = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def slug(device: str | None = None) -> str:
    """The device's name, this machine's if none is given, for a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", device or device_name()).strip("-")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, "+" behind it where files of it were changed."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def short(commit: str | None) -> str:
    """For a reader; "+" says that files were changed."""
    return "unknown" if commit is None else commit[:10] + "+" * commit.endswith("+")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=HERE, check=True, capture_output=True, text=True).stdout
