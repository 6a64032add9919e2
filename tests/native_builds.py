"""Builds what lies in tests/native: the kernels and their ops on a stand-in for libtorch, for any compiler and sanitizer."""

import ast
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE, KERNELS = ROOT / "tests" / "native", ROOT / "kernels" / "cpu"
SETS = ("avx512", "avx2", "neon", "portable")
CXX = os.environ.get("CXX", "c++")
OPTIONS = ast.literal_eval(re.search(r"NO_CONTRACTION = (\[.*?\])", (ROOT / "setup.py").read_text())[1])
"""What setup.py compiles with for the sake of the bits."""

SANITIZED = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def missing(*tools):
    """Why a test of these is skipped, or None."""
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"needs {' and '.join(absent)}" if absent else None


def run(command, **options):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout


def build(folder, *flags, main="driver", compiler=CXX):
    """The path of the program; what each of its files was compiled to lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{NATIVE / 'standin'}", f"-I{KERNELS}"]

    def compiled(source):
        out = folder / f"{source.stem}.o"
        run([compiler, "-std=c++17", "-w", *OPTIONS, *flags, *includes, "-c", source, "-o", out])
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [NATIVE / f"{main}.cpp", *(KERNELS / f"{name}.cpp" for name in SETS)]))
    run([compiler, *flags, *objects, "-pthread", "-o", folder / main])
    return folder / main
