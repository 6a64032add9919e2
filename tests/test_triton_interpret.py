"""Runs the lane of Triton's interpreter, the modules of triton_interpret/, in a process of its own: the variable is read when a
kernel is decorated. By hand: `TRITON_INTERPRET=1 python -m pytest -o python_files="*_lane.py" tests/triton_interpret`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

LANE = Path(__file__).with_name("triton_interpret")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.mark.skipif(
    _numbers(triton.__version__) < (3, 7) and _numbers(np.__version__) >= (2, 4),
    reason="triton 3.6's interpreter fails on numpy >= 2.4 (triton-lang/triton#9171)",
)
def test_kernels_in_the_interpreter():
    lane = ["-o", "python_files=*_lane.py", str(LANE)]
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", *lane]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
