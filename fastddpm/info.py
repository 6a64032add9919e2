"""`python -m fastddpm.info`: versions, what is built, which backend serves each op on each device, and why not a faster one."""

import importlib.metadata
import platform

import torch

from . import _extension, _triton, ops

PACKAGES = ("torch", "triton", "numpy", "diffusers")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def op_names() -> list[str]:
    """Every op that a public function calls, in the order ops.py defines them."""
    return [name for name, op in vars(ops).items() if isinstance(op, torch._ops.OpOverload)]


def backend(op: str, device: str) -> str:
    """Which code serves an op on a type of device, and where it is the reference, why."""
    if device == "cpu":
        compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastddpm::{op}", "CPU")
        return f"C++ ({_extension.module.isa})" if _extension.module is not None and compiled else "reference"
    if device == "cuda" and op not in _triton.OPS:
        return "reference (no kernel of its own)"
    return _triton.serves(device)


def lines() -> list[str]:
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    module = _extension.module
    if module is None:
        extension = f"not there: {_extension.reason}"
    else:
        extension = f"{module.isa}; this CPU runs {', '.join(module.isas)}; built with {module.compiler}"
    rows = [
        f"fastddpm {_version('fastddpm')}, Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        versions,
        f"C++ kernels: {extension}",
        f"CPU threads: {torch.get_num_threads()}",
        "",
        f"{'op':24}{'cpu':16}cuda (NVIDIA, ROCm)",
        *(f"{op:24}{backend(op, 'cpu'):16}{backend(op, 'cuda')}" for op in op_names()),
        "",
        f"mps, xpu: {backend('noising', 'mps')}",
        "float64 on cuda: reference (the Triton kernels compute in float32)",
    ]
    return rows


def main() -> None:
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
