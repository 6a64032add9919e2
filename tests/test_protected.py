"""No op reads or writes beyond its operands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import INSTRUCTION_SETS, NOT_BUILT


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_operands_between_protected_pages(isa):
    if isa not in INSTRUCTION_SETS:
        pytest.skip(f"this CPU cannot run it: {INSTRUCTION_SETS}" if INSTRUCTION_SETS else NOT_BUILT)
    command = [sys.executable, str(Path(__file__).with_name("protected.py"))]
    run = subprocess.run(command, env={**os.environ, "FASTDDPM_ISA": isa}, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.returncode} in {run.stdout.splitlines()[-1:]}\n{run.stderr}"
